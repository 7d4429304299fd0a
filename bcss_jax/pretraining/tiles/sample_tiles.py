"""Tiles of the built-in data set, of patients that are in no labeled data."""

import concurrent.futures
import os

import numpy as np

from bcss_jax.common.interruption import result_of
from bcss_jax.data import synthetic
from bcss_jax.pretraining.tiles.tiles import HeldTiles

COUNT = 2000


def sample_tiles(count: int = COUNT, seed: int = 0) -> HeldTiles:
    """Draws tiles of 224 pixels; a tile takes about 0.05 s of two cores.

    Args:
      count: of tiles; a patient has eight.
      seed: which data set, 0 or above; its patients are others than those of the labeled data set of the same seed.
    """
    images = np.empty((count, synthetic.SIZE, synthetic.SIZE, 3), np.uint8)
    names = [""] * count

    def draw(number: int) -> None:
        names[number], images[number] = synthetic.draw_unlabelled(number, seed)

    with concurrent.futures.ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        drawn = [pool.submit(draw, number) for number in range(count)]
        try:
            for future in drawn:
                result_of(future)
        finally:
            pool.shutdown(cancel_futures=True)
    patients = -(-count // len(synthetic.PLANS))
    return HeldTiles(images, names, (f"{count} synthetic tiles of {patients} patients that have no labels",))
