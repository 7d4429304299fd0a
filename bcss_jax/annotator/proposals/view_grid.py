"""The views that are shown to a network: squares that overlap by half, at resolutions that are twice each other.

The resolution follows the zoom of the page. As views are always the same ones, what a network has computed of a view
serves all clicks near its middle, and the next session.
"""

import math
from typing import NamedTuple

import numpy as np

from bcss_jax.slides.grid import grid_of
from bcss_jax.slides.prompts.view import MOST_ENLARGED, Box, View

MOST_OF_VIEW = 0.9  # of the side of a view, that an object in it may take


class Key(NamedTuple):
    """A view: its pixels span 2**level finest pixels of the slide; column and row count halves of a view."""

    level: int
    column: int
    row: int


class ViewGrid:
    """The views of a slide."""

    def __init__(self, size: tuple[int, int], mpp: tuple[float, float], side: int):
        """Prepares the views.

        Args:
          size: width and height of level 0.
          mpp: um per pixel of level 0 along x and y; they may differ, the pixels of views are square.
          side: pixels of a view.
        """
        self._size, self._mpp, self._side = size, mpp, side
        self._step = max(1, side // 2)
        self._finest = -int(math.log2(MOST_ENLARGED))
        longest = max(along * each for along, each in zip(size, mpp, strict=True))
        self._coarsest = max(self._finest, math.ceil(math.log2(max(longest / (min(mpp) * side), 1e-9))))

    def level(self, um_per_pixel: float) -> int:
        """Returns the level that is nearest to a resolution of the page, um per pixel of the screen."""
        return int(np.clip(round(math.log2(um_per_pixel / min(self._mpp))), self._finest, self._coarsest))

    def view(self, key: Key) -> View:
        """Returns a view; those at the right and lower edge end there."""
        grid = grid_of(*self._size, self._mpp, min(self._mpp) * 2.0**key.level)
        spans = [
            (max(0, min(number * self._step, length - self._side)), min(self._side, length))
            for number, length in zip((key.column, key.row), (grid.width, grid.height), strict=True)
        ]
        (left, width), (top, height) = spans
        return View(grid, left, top, width, height)

    def key_for(self, box: Box, level: int) -> Key:
        """Returns the view that shows a box best: at this level, or the finest coarser one into which it fits.

        Args:
          box: in pixels of level 0; a point has no width.
          level: see `level`.
        """
        for each in range(level, self._coarsest + 1):
            key = self._nearest(box, each)
            x0, y0, x1, y1 = self.view(key).box
            fits = (box[2] - box[0]) <= MOST_OF_VIEW * (x1 - x0) and (box[3] - box[1]) <= MOST_OF_VIEW * (y1 - y0)
            if (fits and self.view(key).holds(box)) or each == self._coarsest:
                return key
        raise AssertionError("a level is at most the coarsest")

    def keys_in(self, box: Box, level: int, most: int) -> list[Key]:
        """Returns the views around a part of the slide that is looked at, the nearest to its middle first.

        Args:
          box: in pixels of level 0.
          level: see `level`.
          most: number of views.
        """
        first, last = self._nearest((*box[:2], *box[:2]), level), self._nearest((*box[2:], *box[2:]), level)
        middle = self._nearest(box, level)
        keys = [
            Key(level, column, row)
            for column in _around(first.column, last.column, middle.column, most)
            for row in _around(first.row, last.row, middle.row, most)
        ]
        keys.sort(key=lambda key: (key.column - middle.column) ** 2 + (key.row - middle.row) ** 2)
        return keys[:most]

    def _nearest(self, box: Box, level: int) -> Key:
        grid = grid_of(*self._size, self._mpp, min(self._mpp) * 2.0**level)
        center = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
        numbers = []
        for at, scale, length in zip(center, grid.scale, (grid.width, grid.height), strict=True):
            last = max(0, math.ceil((length - self._side) / self._step))
            number = round((at / scale - self._side / 2) / self._step)
            numbers.append(int(np.clip(number, 0, last)))
        return Key(level, *numbers)


def _around(first: int, last: int, middle: int, most: int) -> range:
    return range(max(first, middle - most), min(last, middle + most) + 1)
