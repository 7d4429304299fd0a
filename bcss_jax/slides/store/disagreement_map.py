"""disagreement.png: where the flips and turns of one network (`--tta`) give the pixels of a slide different classes.

A cell of the map is `CELL` x `CELL` pixels of the labels. Its gray value is the mean over its pixels of the share of
the pairs of flips that disagree (`inference.flip_disagreement`), in steps of 1/255; what has no label counts as 0, and
so does what a cell at the edge has outside of the slide. Rows of cells are written with the rows of tiles of the
labels, so memory does not depend on the size of the slide, and a slide that was stopped resumes.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from bcss_jax.common.files import write_png
from bcss_jax.data.decoding.open_image import decoded, open_image
from bcss_jax.errors import DataError, printable
from bcss_jax.slides.grid import Grid

FILE = "disagreement.png"
CELL = 32  # pixels of the labels along a side of a cell; divides the side of a tile
STEPS = 255  # of a share


class CellSums:
    """Sums of disagreement in the cells of the rows of tiles that are not finished."""

    def __init__(self, tile_size: int, width: int):
        """Starts with nothing.

        Args:
          tile_size: side of a tile of labels, pixels.
          width: of the slide, pixels of the labels.
        """
        if tile_size % CELL:
            raise ValueError(f"tiles of {tile_size} pixels are not whole cells of {CELL}")
        self._shape = tile_size // CELL, cells_along(width)
        self._sums: dict[int, np.ndarray] = {}  # int64 [rows, columns] of cells by row of tiles

    def add(self, row: int, top: int, left: int, steps: np.ndarray) -> None:
        """Adds pixels.

        Args:
          row: row of tiles.
          top: first pixel row, counted within the row of tiles.
          left: first column of pixels.
          steps: shares in steps of 1/255, uint8 [h, w]. Whole numbers: their sum does not depend on their order.
        """
        sums = self._sums.setdefault(row, np.zeros(self._shape, np.int64))
        height, width = steps.shape
        (rows, down), (columns, across) = _cells_of(top, height), _cells_of(left, width)
        inside = np.add.reduceat(np.add.reduceat(steps, down, axis=0, dtype=np.int64), across, axis=1)
        sums[rows, columns] += inside

    def take(self, row: int) -> list[list[int]]:
        """Returns the cells of a finished row of tiles, means in steps of 1/255, and forgets it."""
        sums = self._sums.pop(row, None)
        means = np.zeros(self._shape, int) if sums is None else np.rint(sums / CELL**2).astype(int)
        return means.tolist()


def cells_along(pixels: int) -> int:
    """Returns how many cells a side of so many pixels has."""
    return -(-pixels // CELL)


def write_map(path: Path, rows: Sequence[list[list[int]]], grid: Grid) -> None:
    """Writes the map whole or not at all.

    Args:
      path: the file.
      rows: for each row of tiles, what `CellSums.take` returned.
      grid: of the labels.

    Raises:
      StorageError: the file cannot be written.
    """
    write_png(path, np.concatenate([np.array(each, np.uint8) for each in rows])[: cells_along(grid.height)])


def read_map(path: Path, grid: Grid) -> np.ndarray:
    """Returns the share of each cell's area in dispute, float32 [rows, columns].

    Raises:
      DataError: the file is missing or damaged, or is not the map of this grid.
    """
    stored = open_image(path)
    expected = cells_along(grid.width), cells_along(grid.height)
    if (stored.width, stored.height, stored.color, stored.bits) != (*expected, "gray", 8):
        raise DataError(
            f"{printable(path)}: expected {expected[0]} x {expected[1]} pixels of 8-bit gray, found {stored.width} x "
            f"{stored.height} of {stored.bits}-bit {stored.color}; segment the slide again with --overwrite"
        )
    return decoded(stored).astype(np.float32) / STEPS


def _cells_of(first: int, count: int) -> tuple[slice, np.ndarray]:
    """Returns the cells that pixels lie in, and where each cell begins among them."""
    numbers = np.arange(first, first + count) // CELL
    return slice(int(numbers[0]), int(numbers[-1]) + 1), np.flatnonzero(np.diff(numbers, prepend=-1))
