"""Tiles of the built-in data set, of patients that are in no labeled data."""

import numpy as np

from bcss_jax.data import synthetic
from bcss_jax.pretraining.tiles.in_order import in_order
from bcss_jax.pretraining.tiles.tiles import HeldTiles

COUNT = 2000


def sample_tiles(count: int = COUNT, seed: int = 0) -> HeldTiles:
    """Draws tiles of 224 pixels; a tile takes about 0.05 s of two cores.

    Args:
      count: of tiles; a patient has eight.
      seed: which data set, 0 or above; its patients are others than those of the labeled data set of the same seed.
    """
    images = np.empty((count, synthetic.SIZE, synthetic.SIZE, 3), np.uint8)
    names = []
    for number, (name, image) in enumerate(in_order(lambda n: synthetic.draw_unlabeled(n, seed), range(count))):
        images[number] = image
        names.append(name)
    patients = -(-count // len(synthetic.PLANS))
    return HeldTiles(images, names, (f"{count} synthetic tiles of {patients} patients that have no labels",))
