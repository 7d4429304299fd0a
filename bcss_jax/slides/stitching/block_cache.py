"""The pixels that windows need, read ahead in blocks by the reader processes and forgotten when no window needs them."""

import collections
import itertools
from collections.abc import Iterator
from concurrent.futures import Future

import numpy as np

from bcss_jax.slides.grid import Grid
from bcss_jax.slides.windows import Windows

ROWS, COLUMNS = 256, 1024  # pixels of a block: rows like the tiles of most slides, and few requests for many columns
AHEAD = 16  # blocks that are asked for before they are needed, per reader process

Key = tuple[int, int]  # row and column of a block


class BlockCache:
    """Blocks of a slide, for windows that come row by row."""

    def __init__(self, pool, grid: Grid, windows: Windows, chosen: np.ndarray, first_row: int, ahead: int):
        """Begins to read.

        Args:
          pool: `reader_pool.ReaderPool` of the slide.
          grid: its grid.
          windows: the windows.
          chosen: bool [rows, columns], those that will be asked for.
          first_row: the row of windows that comes first.
          ahead: blocks to read ahead.
        """
        self._pool, self._grid, self._windows, self._ahead = pool, grid, windows, ahead
        self._wanted = self._in_order(chosen, first_row)
        self._reading: collections.OrderedDict[Key, Future] = collections.OrderedDict()
        self._held: dict[Key, np.ndarray] = {}
        self.unreadable: dict[Key, np.ndarray] = {}  # bool masks of the blocks that the slide gives only in part
        self._read_ahead()

    def window(self, row: int, column: int) -> tuple[np.ndarray, tuple[int, int]]:
        """The part of a window that lies on the slide, waiting for it if need be.

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
        """No window needs pixels any more that lie both above and left of those."""
        for row, column in list(self._held):
            if (row + 1) * ROWS <= above and (column + 1) * COLUMNS <= left_of:
                del self._held[row, column]

    def forget_unreadable_above(self, y: int) -> None:
        """`unreadable_in` is not asked about pixel rows above `y` any more."""
        for key in [key for key in self.unreadable if (key[0] + 1) * ROWS <= y]:
            del self.unreadable[key]

    def unreadable_in(self, top: int, bottom: int, left: int, right: int) -> np.ndarray | None:
        """Which pixels of a rectangle could not be read, bool [bottom - top, right - left]; None if all could."""
        found = None
        for key in set(_keys(top, bottom, left, right)) & self.unreadable.keys():
            mask, (y, x) = self.unreadable[key], (key[0] * ROWS, key[1] * COLUMNS)
            found = np.zeros((bottom - top, right - left), bool) if found is None else found
            y0, y1, x0, x1 = max(top, y), min(bottom, y + ROWS), max(left, x), min(right, x + COLUMNS)
            found[y0 - top : y1 - top, x0 - left : x1 - left] = mask[y0 - y : y1 - y, x0 - x : x1 - x]
        return found

    def _block(self, key):
        if key not in self._held:
            while key not in self._reading:  # never, unless windows come in another order
                self._ask(next(self._wanted))
            pixels, unreadable = self._reading.pop(key).result()
            self._held[key] = pixels
            if unreadable is not None:
                self.unreadable[key] = unreadable
            self._read_ahead()
        return self._held[key]

    def _read_ahead(self):
        for key in itertools.islice(self._wanted, max(0, self._ahead - len(self._reading))):
            self._ask(key)

    def _ask(self, key):
        y, x = key[0] * ROWS, key[1] * COLUMNS
        width, height = min(COLUMNS, self._grid.width - x), min(ROWS, self._grid.height - y)
        self._reading[key] = self._pool.submit(self._grid, x, y, width, height)

    def _in_order(self, chosen, first_row) -> Iterator[Key]:
        """Each block once, in the order in which windows need it."""
        before = set()  # of the row of windows before: blocks are wanted again only by neighbors
        for row in range(first_row, len(chosen)):
            here = {}  # in order
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
