"""Assembles tiles from the finished pixels of a slide, and writes them in a separate thread.

A tile is passed to the thread as soon as its last pixel has arrived, and dropped when it is written. Memory therefore
holds little more of a row of tiles than the pixel rows that the last row of windows finished.
"""

import collections
import json
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from bcss_jax.common.digests import sha256_of_json
from bcss_jax.common.files import write_text
from bcss_jax.common.outputs.written_files import Content
from bcss_jax.common.regular_file import check_regular_file
from bcss_jax.common.timing import Stopwatch
from bcss_jax.errors import DataError
from bcss_jax.slides.classes import BACKGROUND
from bcss_jax.slides.stitching.seams import no_counts
from bcss_jax.slides.store.disagreement_map import CellSums
from bcss_jax.slides.store.tile_store import TileStore

if TYPE_CHECKING:  # storing probabilities needs a package that storing labels does not
    from bcss_jax.slides.store.probability_store import ProbabilityStore

MAX_WAITING = 64  # tiles and rows that wait to be written


class _Tile(NamedTuple):
    """The labels of a tile, uint8 [h, w], and probabilities in steps of 1/255, uint8 [K, h, w], if requested."""

    labels: np.ndarray
    steps: np.ndarray | None


class TileWriter:
    """Assembles and writes rows of tiles.

    A row counts as written when its file in the store exists, which is the last file to be written: after all tiles of
    the row that have pixels, with their probabilities. After an error nothing more is written.
    """

    def __init__(
        self,
        store: TileStore,
        probabilities: "ProbabilityStore | None",
        first_row: int,
        classes: int,
        seconds: Stopwatch,
        disagreement: CellSums | None = None,
    ):
        """Starts the writing thread.

        Args:
          store: receives the labels; the counts of `SeamCounter` are written next to each row of tiles.
          probabilities: receives the probabilities, if requested; its chunks are the store's tiles.
          first_row: the first row of tiles to write; pixels above it are ignored.
          classes: K.
          seconds: the stopwatch that counts `blending`, `writing` and `waiting_for_writer`.
          disagreement: sums the disagreement of the flips, if it is requested; its cells are written next to each row.
        """
        self._disagreement = disagreement
        self._store, self._probabilities, self._classes, self._seconds = store, probabilities, classes, seconds
        self._next = first_row  # the row of tiles that is written next
        self._tiles: dict[tuple[int, int], _Tile] = {}  # by row and column; tiles without pixels are absent
        self._counts: dict[int, np.ndarray] = {}  # of seams, by row of tiles
        self._columns: dict[int, list[int]] = {}  # columns of the tiles passed to the thread, by row
        # Used by the writing thread only: the tiles of the next row, and the contents of their probabilities.
        self._encoded: dict[tuple[int, int], int | bytes] = {}
        self._chunks: dict[tuple[int, int], list[Content | None]] = {}
        self._failed = False
        self._writer = ThreadPoolExecutor(1)
        self._writing: collections.deque[Future] = collections.deque()

    def add(
        self, top: int, left: int, labels: np.ndarray, steps: np.ndarray | None, disputed: np.ndarray | None = None
    ) -> None:
        """Adds finished pixels, which arrive from top to bottom, and within the same pixel rows from left to right.

        Args:
          top: first pixel row.
          left: first column.
          labels: uint8 [h, w].
          steps: round(255 p), uint8 [K, h, w], if probabilities are requested.
          disputed: the disagreement of the flips in steps of 1/255, uint8 [h, w], if it is requested.
        """
        size, (height, width) = self._store.tile_size, labels.shape
        with self._seconds.counted("blending"):
            for row in range(max(top // size, self._next), (top + height - 1) // size + 1):
                rows = _overlap(top, height, row * size, size)
                if self._disagreement is not None and disputed is not None:
                    self._disagreement.add(row, rows[1].start, left, disputed[rows[0]])
                for column in range(left // size, (left + width - 1) // size + 1):
                    columns = _overlap(left, width, column * size, size)
                    here, there = zip(rows, columns, strict=True)
                    tile = self._tile(row, column)
                    tile.labels[there] = labels[here]
                    if tile.steps is not None and steps is not None:
                        tile.steps[:, *there] = steps[:, *here]
        self._write_complete_tiles(top + height, left + width)

    def end(self, bottom: int, seams: np.ndarray) -> None:
        """Ends pixel rows; all pixel rows above `bottom` have been added.

        Args:
          bottom: last pixel row + 1.
          seams: counts of `SeamCounter` since the last call; they are stored with the row of tiles that contains pixel
            row `bottom - 1`.
        """
        self._write_complete_tiles(bottom, self._store.width)
        last = (bottom - 1) // self._store.tile_size
        self._counts[last] = self._counts.get(last, no_counts()) + seams
        while self._next < self._store.rows and self._end_of(self._next) <= bottom:
            counts = self._counts.pop(self._next, no_counts())
            cells = None if self._disagreement is None else self._disagreement.take(self._next)
            self._submit(self._write_row, self._next, self._columns.pop(self._next, []), counts.tolist(), cells)
            self._next += 1

    def wait(self) -> None:
        """Waits until all complete tiles and rows are written.

        Raises:
          StorageError: a file could not be written.
        """
        self._wait_until_waiting(0)

    def close(self) -> None:
        """Ends the thread; tiles and rows that still wait are not written."""
        self._writer.shutdown(cancel_futures=True)

    def _tile(self, row, column):
        if (row, column) not in self._tiles:
            shape = self._store.row_height(row), self._store.column_width(column)
            steps = None if self._probabilities is None else np.zeros((self._classes, *shape), np.uint8)
            self._tiles[row, column] = _Tile(np.zeros(shape, np.uint8), steps)
        return self._tiles[row, column]

    def _end_of(self, row):
        return min((row + 1) * self._store.tile_size, self._store.height)

    def _write_complete_tiles(self, bottom, right):
        """Passes the tiles that end above pixel row `bottom` and left of column `right` to the thread."""
        size, width = self._store.tile_size, self._store.width
        for row, column in list(self._tiles):
            if self._end_of(row) <= bottom and min((column + 1) * size, width) <= right:
                self._columns.setdefault(row, []).append(column)
                self._submit(self._write_tile, row, column, self._tiles.pop((row, column)))

    def _submit(self, task, *arguments):
        with self._seconds.counted("waiting_for_writer"):
            self._wait_until_waiting(MAX_WAITING - 1)
        self._writing.append(self._writer.submit(self._run, task, *arguments))

    def _run(self, task, *arguments):
        """Runs a task in the writing thread, unless one before it has failed: a row needs all its tiles."""
        if self._failed:
            return
        self._failed = True
        with self._seconds.counted("writing"):
            task(*arguments)
        self._failed = False

    def _write_tile(self, row, column, tile):
        if self._probabilities is not None:
            self._chunks[row, column] = self._probabilities.write_tile(row, column, tile.steps)
        self._encoded[row, column] = self._store.encode(tile.labels)

    def _write_row(self, row, columns, seams, cells):
        """Writes a row; `columns` are those of its tiles with pixels, the other tiles have no tissue."""
        tiles = [BACKGROUND] * self._store.columns
        for column in columns:
            tiles[column] = self._encoded.pop((row, column))
        if self._probabilities is not None:
            chunks = {str(column): self._chunks.pop((row, column)) for column in columns}
            _write_record(chunks_file(self._store, row), chunks)
        if cells is not None:
            _write_record(disagreement_file(self._store, row), cells)
        _write_record(seams_file(self._store, row), seams)
        self._store.write_tiles(row, tiles)

    def _wait_until_waiting(self, count):
        """Waits until at most `count` tiles and rows wait to be written."""
        while len(self._writing) > count:
            self._writing.popleft().result()


def seams_file(store: TileStore, row: int) -> Path:
    """Returns the file of the seam counts of a row of tiles, JSON [2, 2, 2]."""
    return store.folder / f"seam-counts-{row:06d}.json"


def chunks_file(store: TileStore, row: int) -> Path:
    """Returns the file of what the probabilities of a row of tiles are recognized by, JSON by column of tiles."""
    return store.folder / f"tiles-{row:06d}.json"


def disagreement_file(store: TileStore, row: int) -> Path:
    """Returns the file of the disagreement of the flips in a row of tiles, JSON [rows, columns] of cells."""
    return store.folder / f"disagreement-{row:06d}.json"


def read_disagreement(store: TileStore, row: int) -> list[list[int]]:
    """Returns the disagreement of the flips in a row of tiles, as `CellSums.take` returned it.

    Raises:
      DataError: or OSError, ValueError, TypeError: the file is missing or damaged.
    """
    return _read_record(disagreement_file(store, row), list)


def read_seams(store: TileStore, row: int) -> np.ndarray:
    """Returns the seam counts of a row of tiles, int64 [2, 2, 2].

    Raises:
      DataError: or OSError, ValueError, TypeError: the file is missing or damaged.
    """
    counts = np.asarray(_read_record(seams_file(store, row), list))
    if counts.shape != no_counts().shape or counts.dtype.kind != "i":
        raise ValueError("no seam counts")
    return counts


def is_written(
    store: TileStore, probabilities: "ProbabilityStore | None", row: int, with_disagreement: bool = False
) -> bool:
    """Returns whether a row of tiles was written completely: labels, seam counts, and what else is wanted."""
    if not store.has_row(row):
        return False
    try:
        read_seams(store, row)
        if with_disagreement:
            read_disagreement(store, row)
        if probabilities is None:
            return True
        chunks = _read_record(chunks_file(store, row), dict)
        chunks = {int(column): [each and (each[0], each[1]) for each in values] for column, values in chunks.items()}
    except (DataError, OSError, ValueError, TypeError, AttributeError, LookupError, RecursionError):  # or missing
        return False
    labeled = {column for column in range(store.columns) if store.constant(row, column) != BACKGROUND}
    return labeled <= chunks.keys() and all(probabilities.has_tile(row, each, chunks[each]) for each in chunks)


def _write_record(path: Path, value: list | dict) -> None:
    write_text(path, json.dumps({"value": value, "sha256": sha256_of_json(value)}), private=True)


def _read_record(path: Path, kind: type) -> Any:
    """Returns what `_write_record` wrote; those of earlier versions have no digest."""
    check_regular_file(path, "a record of a row of tiles", "delete it")
    found = json.loads(path.read_bytes())
    if isinstance(found, dict) and "sha256" in found:
        value = found["value"]
        if found["sha256"] != sha256_of_json(value):
            raise ValueError("another digest")
        found = value
    if not isinstance(found, kind):
        raise ValueError("another type")
    return found


def _overlap(start, length, other_start, other_length):
    """Returns the overlap of two spans as a slice of the first one and as a slice of the other one."""
    low, high = max(start, other_start), min(start + length, other_start + other_length)
    return slice(low - start, high - start), slice(low - other_start, high - other_start)
