"""Joins finished pixels of a slide to tiles, and has these written by a thread.

A tile is handed to the thread as soon as its last pixel is there, and forgotten when written: of a row of tiles hardly
more is held than the pixel rows that the last row of windows finished.
"""

import collections
import json
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from bcss_jax.common.files import write_text
from bcss_jax.common.timing import Stopwatch
from bcss_jax.slides.stitching.seams import no_counts
from bcss_jax.slides.store.probability_store import ProbabilityStore
from bcss_jax.slides.store.tile_store import TileStore

TILES_BEHIND = 64  # waiting to be written


class _Tile(NamedTuple):
    """Labels uint8 [h, w], and if they are wanted probabilities in steps of 1/255, uint8 [K, h, w]."""

    labels: np.ndarray
    steps: np.ndarray | None


class TileWriter:
    """Rows of tiles in the making. A row counts as written when its last file is: that in the store."""

    def __init__(
        self, store: TileStore, probabilities: ProbabilityStore | None, first: int, classes: int, seconds: Stopwatch
    ):
        """Starts with nothing, and the writing thread.

        Args:
          store: gets the labels, and beside each row of tiles the counts of `SeamCounter`.
          probabilities: gets the probabilities, if they are wanted; its chunks are the store's tiles.
          first: the first row of tiles to write; pixels of those above are ignored.
          classes: K.
          seconds: `blending`, `writing` and `waiting_for_writer` are counted there.
        """
        self._store, self._probabilities, self._classes, self._seconds = store, probabilities, classes, seconds
        self._next = first  # the row of tiles that is written next
        self._tiles: dict[tuple[int, int], _Tile] = {}  # by row and column; those without pixels are not there
        self._counts: dict[int, np.ndarray] = {}  # of seams, by row of tiles
        self._encoded: dict[tuple[int, int], int | bytes] = {}  # of the writing thread alone
        self._writer = ThreadPoolExecutor(1)
        self._writing: collections.deque[Future] = collections.deque()

    def add(self, top: int, left: int, labels: np.ndarray, steps: np.ndarray | None) -> None:
        """Takes finished pixels, which come from top to bottom, and of the same pixel rows from left to right.

        Args:
          top: first pixel row.
          left: first column.
          labels: uint8 [h, w].
          steps: round(255 p), uint8 [K, h, w], if probabilities are wanted.
        """
        size, (height, width) = self._store.tile_size, labels.shape
        with self._seconds.counted("blending"):
            for row in range(max(top // size, self._next), (top + height - 1) // size + 1):
                rows = _overlap(top, height, row * size, size)
                for column in range(left // size, (left + width - 1) // size + 1):
                    columns = _overlap(left, width, column * size, size)
                    here, there = zip(rows, columns, strict=True)
                    tile = self._tile(row, column)
                    tile.labels[there] = labels[here]
                    if tile.steps is not None:
                        tile.steps[:, *there] = steps[:, *here]
        self._hand_over(top + height, left + width)

    def end(self, bottom: int, seams: np.ndarray) -> None:
        """All pixel rows above `bottom` are there.

        Args:
          bottom: pixel row.
          seams: counts of `SeamCounter` since the last call; the row of tiles that the pixel rows end in is given them.
        """
        self._hand_over(bottom, self._store.width)
        last = (bottom - 1) // self._store.tile_size
        self._counts[last] = self._counts.get(last, 0) + seams
        while self._next < self._store.rows and self._end_of(self._next) <= bottom:
            counts = self._counts.pop(self._next, no_counts())
            self._soon(self._write_row, self._next, counts.tolist())
            self._next += 1

    def wait(self) -> None:
        """Returns when what is complete is written.

        Raises:
          StorageError: something could not be written.
        """
        self._settle(0)

    def close(self) -> None:
        """Ends the thread; what waits is not written."""
        self._writer.shutdown(cancel_futures=True)

    def _tile(self, row, column):
        if (row, column) not in self._tiles:
            shape = self._store.row_height(row), self._store.column_width(column)
            steps = None if self._probabilities is None else np.zeros((self._classes, *shape), np.uint8)
            self._tiles[row, column] = _Tile(np.zeros(shape, np.uint8), steps)
        return self._tiles[row, column]

    def _end_of(self, row):
        return min((row + 1) * self._store.tile_size, self._store.height)

    def _hand_over(self, bottom, right):
        """Has tiles written that end above and left of that pixel."""
        size, width = self._store.tile_size, self._store.width
        for row, column in list(self._tiles):
            if self._end_of(row) <= bottom and min((column + 1) * size, width) <= right:
                self._soon(self._write_tile, row, column, self._tiles.pop((row, column)))

    def _soon(self, task, *arguments):
        with self._seconds.counted("waiting_for_writer"):
            self._settle(TILES_BEHIND - 1)
        self._writing.append(self._writer.submit(task, *arguments))

    def _write_tile(self, row, column, tile):
        with self._seconds.counted("writing"):
            if tile.steps is not None:
                self._probabilities.write_tile(row, column, tile.steps)
            self._encoded[row, column] = self._store.encode(tile.labels)

    def _write_row(self, row, seams):
        with self._seconds.counted("writing"):
            write_text(seams_file(self._store, row), json.dumps(seams))
            tiles = [self._encoded.pop((row, column), 0) for column in range(self._store.columns)]
            self._store.write_tiles(row, tiles)

    def _settle(self, most):
        while len(self._writing) > most:
            self._writing.popleft().result()


def seams_file(store: TileStore, row: int) -> Path:
    """The counts of seams of a row of tiles, JSON [2, 2, 2]."""
    return store.folder / f"seam-counts-{row:06d}.json"


def _overlap(start, length, other_start, other_length):
    """Where two spans overlap, seen from either."""
    low, high = max(start, other_start), min(start + length, other_start + other_length)
    return slice(low - start, high - start), slice(low - other_start, high - other_start)
