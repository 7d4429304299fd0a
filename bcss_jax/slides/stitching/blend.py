"""Blends the predictions of overlapping windows, row by row; memory holds part of a row of windows.

Windows must arrive row by row and from left to right. Sums of floats depend on their order, and the result must not
depend on how windows were batched or on how many devices computed them.
"""

import collections
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from scipy.stats import norm

from bcss_jax.slides.windows import Windows

LANE = 8192  # columns that are blended before finished ones are released
# Standard deviation of the Gaussian as a fraction of the overlap. With 1/5, which cross-fades more steeply, the seam
# score of a TransUNet on TCGA-A2-A0D2 was 1.13 instead of 1.01.
SIGMA = 0.35


def blend_weights(windows: Windows, blend: str) -> np.ndarray:
    """Returns the weight of each pixel of a window.

    Args:
      windows: the windows.
      blend: "gaussian" or "centre". With "centre", the weight is 1 in the window's cell and 0 elsewhere. With
        "gaussian", these weights are blurred with a Gaussian, so that window weights cross-fade evenly over the whole
        overlap. (nnU-Net's Gaussian is made for an overlap of one half. At an overlap of a quarter it cross-fades
        within a few pixels, and it does not end at 0.)

    Returns:
      float32 [size, size].
    """
    if blend == "gaussian":
        if not windows.margin:
            return np.ones((windows.size, windows.size), np.float32)
        distance = np.abs(np.arange(windows.size) - (windows.size - 1) / 2)
        profile = _blurred_cell(distance, windows) - _blurred_cell(windows.size / 2, windows)
        return np.outer(profile, profile).astype(np.float32)
    weights = np.zeros((windows.size, windows.size), np.float32)
    cell = slice(windows.margin, windows.margin + windows.stride)
    weights[cell, cell] = 1
    return weights


def _blurred_cell(distance, windows: Windows):
    """Returns the blurred indicator function of the cell at a distance from its center along an axis."""
    sigma = SIGMA * 2 * windows.margin
    return norm.cdf((windows.stride / 2 + distance) / sigma) - norm.cdf((distance - windows.stride / 2) / sigma)


class FinishedPixels(NamedTuple):
    """Pixels that no further window changes: some columns of the pixel rows that a row of windows finishes.

    Attributes:
      left: first column.
      right: last column + 1.
      sums: float32 [K, rows, columns], sums of probabilities times weights.
      weights: float32 [rows, columns], sums of weights, 0 where there is no window.
    """

    left: int
    right: int
    sums: np.ndarray
    weights: np.ndarray


class Blender:
    """Sums the weighted probabilities of pixels that are not finished.

    There are two buffers. The lane is as high as a window and moves from left to right over the windows of a row.
    Behind the lane, the pixel rows that the row of windows finishes (`Windows.finished_rows`) are returned. The other
    pixel rows, which the next row of windows overlaps, are carried over to it in the second buffer. Most of a slide is
    glass: only columns that windows cover are processed, and the system provides no memory for pages of zeros.
    """

    def __init__(self, windows: Windows, weights: np.ndarray, classes: int, first_row: int = 0):
        """Starts with sums of zero.

        Args:
          windows: the windows.
          weights: float32 [size, size], weights of a window's pixels.
          classes: K.
          first_row: the first row of windows that is added.
        """
        self._windows, self._weights = windows, weights
        rows, columns = np.flatnonzero(weights.any(1)), np.flatnonzero(weights.any(0))
        self._weighted = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)  # where weights are not 0
        self._width = min(max(LANE, windows.size) + windows.size, windows.width)
        self._lane = _zeros(classes, windows.size, self._width)
        self._carried = _zeros(classes, windows.size - windows.stride, windows.width)
        # For each row of windows in the sums, the columns (left, right) that its windows cover; the newest row is last.
        self._covered: collections.deque[list[tuple[int, int]]] = collections.deque(
            [[]], maxlen=-(-windows.size // windows.stride)
        )
        self._left = 0
        self._row = first_row

    def add(self, row: int, column: int, weighted: np.ndarray) -> list[FinishedPixels]:
        """Adds a window, and returns pixels that are finished because the lane moves on.

        Args:
          row: row of windows.
          column: column of windows, to the right of the previous window.
          weighted: probabilities times weights, float32 [K, size, size].
        """
        assert row == self._row, f"row {row} of windows before row {self._row} was finished"
        y, x = self._windows.corner(row, column)
        (ys, xs), (top, _) = self._weighted, self._windows.finished_rows(row)
        y0, y1 = max(y + ys.start, top), min(y + ys.stop, self._windows.height)
        x0, x1 = max(x + xs.start, 0), min(x + xs.stop, self._windows.width)
        if y1 <= y0 or x1 <= x0:
            return []
        finished = self._move_to(x0) if x1 > self._left + self._width else []
        rows, columns = slice(y0 - top, y1 - top), slice(x0 - self._left, x1 - self._left)
        inside = slice(y0 - y, y1 - y), slice(x0 - x, x1 - x)
        self._lane[0][:, rows, columns] += weighted[:, *inside]
        self._lane[1][rows, columns] += self._weights[inside]
        self._covered[-1].append((x0, x1))
        return finished

    def finish(self, row: int) -> list[FinishedPixels]:
        """Ends a row of windows, and returns the remaining pixels of the pixel rows that it finishes."""
        assert row == self._row, f"row {row} of windows was finished before row {self._row}"
        finished = self._move_to(self._windows.width)
        self._covered.append([])
        self._row, self._left = row + 1, 0
        self._load(0)
        return finished

    def _move_to(self, x: int) -> list[FinishedPixels]:
        """Moves the lane's left end to column `x`; this row of windows does not change any column before it."""
        finished = []
        while self._left < x:
            right = self._left + self._width
            if not self._spans(self._left, right):  # no window covers these columns
                self._left = min(x, right)
                self._load(self._left)
                continue
            end = min(x, right)
            finished += self._release(end)
            moved = end - self._left
            for array in self._lane:
                array[..., : self._width - moved] = array[..., moved:].copy()
                array[..., self._width - moved :] = 0
            self._left = end
            self._load(right)
        return finished

    def _release(self, end: int) -> list[FinishedPixels]:
        """Returns the finished pixels of the lane's columns before `end`, and carries over the other pixel rows."""
        top, bottom = self._windows.finished_rows(self._row)
        count, finished = bottom - top, []
        unfinished = self._windows.size - count
        for left, right in self._spans(self._left, end):
            columns = slice(left - self._left, right - self._left)
            if count:
                sums, weights = (array[..., :count, columns].copy() for array in self._lane)
                finished.append(FinishedPixels(left, right, sums, weights))
            for carried, array in zip(self._carried, self._lane, strict=True):
                carried[..., :unfinished, left:right] = array[..., count : count + carried.shape[-2], columns]
                carried[..., unfinished:, left:right] = 0
        return finished

    def _load(self, first: int) -> None:
        """Copies the carried pixel rows into the lane, from column `first` on, where the lane is 0."""
        for left, right in self._spans(first, self._left + self._width):
            for carried, array in zip(self._carried, self._lane, strict=True):
                array[..., : carried.shape[-2], left - self._left : right - self._left] = carried[..., left:right]

    def _spans(self, left: int, right: int) -> list[tuple[int, int]]:
        """Returns the columns between `left` and `right` that are covered by windows in the sums."""
        return _merge_spans((span for spans in self._covered for span in spans), left, right)


def _zeros(classes: int, rows: int, columns: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns sums and weights of zero."""
    return np.zeros((classes, rows, columns), np.float32), np.zeros((rows, columns), np.float32)


def _merge_spans(spans: Iterable[tuple[int, int]], low: int, high: int) -> list[tuple[int, int]]:
    """Returns the parts of the spans between `low` and `high`, merged where they overlap, from left to right."""
    result = []
    for left, right in sorted((max(left, low), min(right, high)) for left, right in spans):
        if left >= right:
            continue
        if result and left <= result[-1][1]:
            result[-1] = result[-1][0], max(right, result[-1][1])
        else:
            result.append((left, right))
    return result
