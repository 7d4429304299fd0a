"""Ranks the regions of a slide by how much of them is in dispute."""

from typing import NamedTuple

import numpy as np

SIDE = 32  # cells along a region: 1024 pixels of the labels, about a screen at the resolution of the model
LEAST = 0.01  # share of a region's area in dispute below which it is not worth a visit
MOST = 200  # regions
STEPS = 1 << 16  # in which shares are counted


class RankedRegion(NamedTuple):
    """A region of cells.

    Attributes:
      row: first row.
      column: first column.
      disputed: float64 [rows, columns], the share of each cell in dispute, 0 for what an earlier region covers.
    """

    row: int
    column: int
    disputed: np.ndarray

    @property
    def share(self) -> float:
        """The share of the region's area that is in dispute and in no earlier region."""
        return float(self.disputed.mean())


def ranked_regions(cells: np.ndarray) -> list[RankedRegion]:
    """Returns regions from the one most in dispute on.

    The next region is always the one with the largest area in dispute that none before it has covered, so shares never
    rise. Of equal ones the first in reading order is taken, moved so that what is in dispute lies in its middle.

    Args:
      cells: float [rows, columns], the share of each cell in dispute.

    Returns:
      At most `MOST` regions of `SIDE` x `SIDE` cells (fewer where the slide is smaller) with at least `LEAST` of their
      area in dispute. They may overlap.
    """
    left = np.rint(np.asarray(cells, np.float64) * STEPS).astype(np.int64)  # exact sums, so that ties are ties
    height, width = (min(SIDE, size) for size in left.shape)
    regions = []
    while len(regions) < MOST:
        sums = _window_sums(left, height, width)
        top, start = np.unravel_index(np.argmax(sums), sums.shape)
        row, column = _centered(left, int(top), int(start), height, width, sums)
        inside = left[row : row + height, column : column + width]
        region = RankedRegion(row, column, inside / STEPS)
        if region.share < LEAST:
            break
        regions.append(region)
        inside[...] = 0
    return regions


def _window_sums(cells: np.ndarray, height: int, width: int) -> np.ndarray:
    """Returns the sum of the cells in each window, by its first row and column."""
    total = np.pad(cells.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    rows = total[height:] - total[:-height]
    return rows[:, width:] - rows[:, :-width]


def _centered(cells: np.ndarray, row: int, column: int, height: int, width: int, sums: np.ndarray) -> tuple[int, int]:
    """Returns the window moved to the center of what it has in dispute, if it then has no less of it."""
    inside = cells[row : row + height, column : column + width]
    if not inside.any():
        return row, column
    down, across = (np.average(np.arange(size), weights=inside.sum(axis)) for size, axis in ((height, 1), (width, 0)))
    moved = (
        min(max(row + round(float(down) - (height - 1) / 2), 0), sums.shape[0] - 1),
        min(max(column + round(float(across) - (width - 1) / 2), 0), sums.shape[1] - 1),
    )
    return moved if sums[moved] >= sums[row, column] else (row, column)
