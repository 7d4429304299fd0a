"""Holds the pixels that windows need: reader processes read them ahead in blocks; unneeded blocks are dropped."""

import collections
import itertools
from collections.abc import Iterator
from concurrent.futures import Future

import numpy as np

from bcss_jax.slides.grid import Grid
from bcss_jax.slides.windows import Windows

ROWS, COLUMNS = 256, 1024  # pixels of a block: as high as the tiles of most slides, and wide to save requests
AHEAD = 16  # blocks that are requested before they are needed, per reader process

Key = tuple[int, int]  # row and column of a block


class BlockCache:
    """The blocks of a slide for windows that are requested row by row."""

    def __init__(self, pool, grid: Grid, windows: Windows, chosen: np.ndarray, first_row: int, ahead: int):
        """Starts to read.

        Args:
          pool: the `ReaderPool` of the slide.
          grid: the slide's grid.
          windows: the windows.
          chosen: bool [rows, columns], the windows that will be requested.
          first_row: the first row of windows that will be requested.
          ahead: number of blocks to read ahead.
        """
        self._pool, self._grid, self._windows, self._ahead = pool, grid, windows, ahead
        self._needed = self._in_order(chosen, first_row)
        self._requested: collections.OrderedDict[Key, Future] = collections.OrderedDict()
        self._blocks: dict[Key, np.ndarray] = {}
        self.unreadable: dict[Key, np.ndarray] = {}  # bool masks of the blocks that are partly unreadable
        self._read_ahead()

    def window(self, row: int, column: int) -> tuple[np.ndarray, tuple[int, int]]:
        """Returns the part of a window that lies on the slide; waits for it if necessary.

        Returns:
          uint8 [h, w, 3] and its upper left pixel (y, x).

        Raises:
          DataError: the slide cannot be read there.
        """
        top, bottom, left, right = self._span(row, column)
        pixels = np.empty((bottom - top, right - left, 3), np.uint8)
        for key in _keys(top, bottom, left, right):
            block, (y, x) = self._block(key), (key[0] * ROWS, key[1] * COLUMNS)
            y0, y1 = max(top, y), min(bottom, y + ROWS)
            x0, x1 = max(left, x), min(right, x + COLUMNS)
            pixels[y0 - top : y1 - top, x0 - left : x1 - left] = block[y0 - y : y1 - y, x0 - x : x1 - x]
        return pixels, (top, left)

    def forget(self, above: int, left_of: int) -> None:
        """Drops the blocks that lie both above row `above` and left of column `left_of`; no window needs them."""
        for row, column in list(self._blocks):
            if (row + 1) * ROWS <= above and (column + 1) * COLUMNS <= left_of:
                del self._blocks[row, column]

    def forget_unreadable_above(self, y: int) -> None:
        """Drops the masks of unreadable pixels above pixel row `y`; `unreadable_in` is not called for them again."""
        for key in [key for key in self.unreadable if (key[0] + 1) * ROWS <= y]:
            del self.unreadable[key]

    def unreadable_in(self, top: int, bottom: int, left: int, right: int) -> np.ndarray | None:
        """Returns which pixels of a rectangle could not be read, bool [bottom - top, right - left]; None if none."""
        result = None
        for key in set(_keys(top, bottom, left, right)) & self.unreadable.keys():
            mask, (y, x) = self.unreadable[key], (key[0] * ROWS, key[1] * COLUMNS)
            result = np.zeros((bottom - top, right - left), bool) if result is None else result
            y0, y1, x0, x1 = max(top, y), min(bottom, y + ROWS), max(left, x), min(right, x + COLUMNS)
            result[y0 - top : y1 - top, x0 - left : x1 - left] = mask[y0 - y : y1 - y, x0 - x : x1 - x]
        return result

    def _block(self, key: Key) -> np.ndarray:
        if key not in self._blocks:
            while key not in self._requested:  # happens only if windows are requested in another order
                self._request(next(self._needed))
            pixels, unreadable = self._requested.pop(key).result()
            self._blocks[key] = pixels
            if unreadable is not None:
                self.unreadable[key] = unreadable
            self._read_ahead()
        return self._blocks[key]

    def _read_ahead(self) -> None:
        for key in itertools.islice(self._needed, max(0, self._ahead - len(self._requested))):
            self._request(key)

    def _request(self, key: Key) -> None:
        y, x = key[0] * ROWS, key[1] * COLUMNS
        width, height = min(COLUMNS, self._grid.width - x), min(ROWS, self._grid.height - y)
        self._requested[key] = self._pool.submit(self._grid, x, y, width, height)

    def _in_order(self, chosen: np.ndarray, first_row: int) -> Iterator[Key]:
        """Yields each block once, in the order in which windows need it."""
        before = set()  # blocks of the previous row of windows; only neighbors need a block again
        for row in range(first_row, len(chosen)):
            here = {}  # keys in order
            for column in np.flatnonzero(chosen[row]):
                here |= dict.fromkeys(_keys(*self._span(row, int(column))))
            yield from (key for key in here if key not in before)
            before = {key for key in before if (key[0] + 1) * ROWS > self._windows.corner(row, 0)[0]} | here.keys()

    def _span(self, row, column):
        y, x = self._windows.corner(row, column)
        size = self._windows.size
        return max(y, 0), min(y + size, self._grid.height), max(x, 0), min(x + size, self._grid.width)


def _keys(top, bottom, left, right) -> Iterator[Key]:
    rows, columns = range(top // ROWS, (bottom - 1) // ROWS + 1), range(left // COLUMNS, (right - 1) // COLUMNS + 1)
    return itertools.product(rows, columns)
