"""Joins the predictions of overlapping windows, one row of windows after the other, in memory of one row.

Windows must come row by row and from left to right: sums of floats depend on their order, and the result shall not
depend on how windows were batched or on how many devices computed them.
"""

import collections
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from bcss_jax.slides.windows import Windows

BLENDS = ("gaussian", "centre")
SIGMA = 1 / 8  # of the bell curve, as a share of the window


def weights_of(windows: Windows, blend: str) -> np.ndarray:
    """How much each pixel of a window counts.

    Args:
      windows: the windows.
      blend: "gaussian": a bell curve with a standard deviation of an eighth of the window, as nnU-Net's, lowered so that it
        ends at 0 on the window's border (nnU-Net's ends at 1/3000 of its height, a step that the seam score shows: 1.07
        on CMU-1 instead of 1.04). "centre": a window's cell counts, nothing else.

    Returns:
      float32 [size, size].
    """
    if blend == "gaussian":
        distance = (np.arange(windows.size) - (windows.size - 1) / 2) / windows.size
        bell = np.exp(-0.5 * (distance / SIGMA) ** 2) - np.exp(-0.5 * (0.5 / SIGMA) ** 2)
        return np.outer(bell, bell).astype(np.float32)
    weights = np.zeros((windows.size, windows.size), np.float32)
    cell = slice(windows.margin, windows.margin + windows.stride)
    weights[cell, cell] = 1
    return weights


class Finished(NamedTuple):
    """Pixels that no further window changes: columns `left` to `right` of the rows that were finished.

    `sums` float32 [K, rows, columns], probabilities times weights; `weights` float32 [rows, columns], 0 where no window
    was.
    """

    left: int
    right: int
    sums: np.ndarray
    weights: np.ndarray


class Blender:
    """Sums of weighted probabilities of the rows that are not finished yet.

    A slide is mostly glass: all work is on the columns that windows cover, and memory that stays zero costs none.
    """

    def __init__(self, windows: Windows, weights: np.ndarray, classes: int, first_row: int = 0):
        """Starts with nothing.

        Args:
          windows: the windows.
          weights: float32 [size, size].
          classes: K.
          first_row: the row of windows that comes first.
        """
        self._windows, self._weights = windows, weights
        rows, columns = weights.any(1).nonzero()[0], weights.any(0).nonzero()[0]
        self._counting = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
        self._top = max(0, windows.corner(first_row, 0)[0])  # pixel row of the grid that the sums begin with
        shape = windows.size, windows.width
        self._sums, self._total = np.zeros((classes, *shape), np.float32), np.zeros(shape, np.float32)
        # Columns (left, right) that the windows of the rows still in the sums cover, newest row last.
        self._covered = collections.deque([[]], maxlen=-(-windows.size // windows.stride))

    def add(self, row: int, column: int, weighted: np.ndarray) -> None:
        """Adds a window: probabilities times weights, float32 [K, size, size]."""
        y, x = self._windows.corner(row, column)
        (ys, xs), top = self._counting, self._top
        y0, y1 = max(y + ys.start, 0), min(y + ys.stop, self._windows.height)
        x0, x1 = max(x + xs.start, 0), min(x + xs.stop, self._windows.width)
        if y1 <= y0 or x1 <= x0:
            return
        of_window = slice(y0 - y, y1 - y), slice(x0 - x, x1 - x)
        self._sums[:, y0 - top : y1 - top, x0:x1] += weighted[:, *of_window]
        self._total[y0 - top : y1 - top, x0:x1] += self._weights[of_window]
        self._covered[-1].append((x0, x1))

    def finish(self, row: int) -> tuple[int, int, list[Finished]]:
        """Gives away the pixel rows that windows after this row of windows do not change, and forgets them.

        Returns:
          The first of them and the one after the last, and what windows covered there, from left to right.
        """
        first, end = self._top, self._windows.finished_below(row)
        count, size = end - first, len(self._total)
        found = []
        for left, right in _joined(span for spans in self._covered for span in spans):
            sums, total = self._sums[:, :, left:right], self._total[:, left:right]
            found.append(Finished(left, right, sums[:, :count].copy(), total[:count].copy()))
            for each in (sums, total):  # the rest moves up
                each[..., : size - count, :] = each[..., count:, :].copy()
                each[..., size - count :, :] = 0
        self._top = end
        self._covered.append([])
        return first, end, found


def _joined(spans: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Spans without overlaps, from left to right."""
    result = []
    for left, right in sorted(spans):
        if result and left <= result[-1][1]:
            result[-1] = result[-1][0], max(right, result[-1][1])
        else:
            result.append((left, right))
    return result
