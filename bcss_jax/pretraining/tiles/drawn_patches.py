"""Small squares of evenly drawn tiles, from which things are learned before the training."""

import contextlib

import numpy as np

from bcss_jax.common.interruption import safe_point
from bcss_jax.common.processes import is_main_process
from bcss_jax.common.progress import ProgressLine
from bcss_jax.pretraining.tiles.tiles import Tiles

TILES, PATCHES = 512, 64  # how many tiles are read at most, and how many squares of each
AT_ONCE = 16  # tiles


def drawn_tiles(tiles: Tiles, rng: np.random.Generator) -> np.ndarray:
    """Returns the numbers of evenly drawn tiles, in random order."""
    return rng.permutation(len(tiles))[:TILES]


def drawn_patches(tiles: Tiles, side: int, seed: int, title: str) -> np.ndarray:
    """Returns squares of evenly drawn tiles, uint8 [N, side, side, 3].

    Args:
      tiles: at least as large as a square.
      side: of the squares in pixels.
      seed: of the choice of tiles and squares.
      title: of the line that shows progress.

    Raises:
      DataError: a tile cannot be read.
      Preempted: a stop was requested.
    """
    rng = np.random.default_rng(seed)
    numbers = np.sort(drawn_tiles(tiles, rng))
    found = np.empty((len(numbers), PATCHES, side, side, 3), np.uint8)
    with contextlib.closing(ProgressLine(title, len(numbers), enabled=is_main_process())) as line:
        for start in range(0, len(numbers), AT_ONCE):
            safe_point()
            part = slice(start, start + AT_ONCE)
            for image, of_image in zip(tiles.read(numbers[part]), found[part], strict=True):
                places = rng.integers(0, tiles.size - side + 1, (PATCHES, 2))
                for patch, (y, x) in zip(of_image, places, strict=True):
                    patch[...] = image[y : y + side, x : x + side]
            line.update(min(part.stop, len(numbers)))
    return found.reshape(-1, side, side, 3)
