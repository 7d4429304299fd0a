"""Reads blocks of one slide in processes of their own, so that a damaged file costs one line, not the night's batch.

Each process is served by a thread: it asks for one block, waits at most `timeout_s`, and starts a fresh process when
the old one crashed or hung. A block is tried twice; so is opening the slide, unless it hangs.
"""

import concurrent.futures
import os
import weakref
from pathlib import Path

import numpy as np

from bcss_jax.slides.grid import Grid
from bcss_jax.slides.reading.read_block import best_level
from bcss_jax.slides.reading.reader_workers import Block, SlideInfo, Workers

__all__ = ["Block", "ReaderPool", "SlideInfo"]

THUMBNAIL_SOURCE = 2048  # a thumbnail is read in pieces of about this side, in pixels of the level it is made from
NEAR = 0.7  # a level of that share of a thumbnail's side will do; the next one may be sixteen times as large


class ReaderPool:
    """A slide, open in several processes. A context manager: they end with it.

    Attributes:
      info: what the slide says about itself.
    """

    info: SlideInfo

    def __init__(self, path: str | os.PathLike, processes: int, timeout_s: float = 30.0):
        """Opens the slide.

        Args:
          path: of the slide.
          processes: how many read at once. An image that has to be decoded whole is held by one process only.
          timeout_s: how long one block may take, and opening the slide where this is below `OPENING_SECONDS`.

        Raises:
          DataError: it does not open, or the reader crashed or hung over it.
        """
        if processes < 1:
            raise ValueError(f"{processes} processes")
        self._workers = Workers(Path(path), timeout_s)
        self._finalizer = weakref.finalize(self, self._workers.stop)
        try:
            self._workers.start(1)
            self.info, in_memory = self._workers.submit(None).result()
        except BaseException:
            self.close()
            raise
        if not in_memory:
            self._workers.start(processes - 1)

    def submit(self, grid: Grid, x: int, y: int, width: int, height: int) -> "concurrent.futures.Future[Block]":
        """Asks for a block of a grid, as `reader.read_block`.

        Returns:
          a future `Block`; its `result` raises a DataError that names the place if the reader crashed or hung twice, and
          CancelledError if the pool was closed before.

        Raises:
          ValueError: the block is not within the grid.
          RuntimeError: the pool is closed.
        """
        if not (0 <= x and 0 <= y and 0 < width <= grid.width - x and 0 < height <= grid.height - y):
            raise ValueError(
                f"a block of {width}x{height} at ({x}, {y}) does not lie in a grid of {grid.width}x{grid.height}"
            )
        grid_numbers = [int(grid.width), int(grid.height), float(grid.mpp), *(float(along) for along in grid.scale)]
        return self._workers.submit({"grid": grid_numbers, "box": [int(x), int(y), int(width), int(height)]})

    def thumbnail(self, max_side: int) -> Block:
        """The whole slide, no side longer than `max_side`; a bit smaller where that spares reading a far larger level.

        Made from the best level in pieces: without a pyramid that takes time, but no memory.

        Raises:
          DataError: as `submit`.
        """
        width, height = self.info.width, self.info.height
        near = [side for side in (max(level[:2]) for level in self.info.levels) if NEAR * max_side <= side <= max_side]
        shrink = max(1.0, max(width, height) / max(near, default=max_side))
        columns, rows = max(1, round(width / shrink)), max(1, round(height / shrink))
        grid = Grid(columns, rows, 0.0, (width / columns, height / rows))
        piece_width, piece_height = self._piece(grid)
        blocks = {}
        for y in range(0, rows, piece_height):
            for x in range(0, columns, piece_width):
                size = min(piece_width, columns - x), min(piece_height, rows - y)
                blocks[self.submit(grid, x, y, *size)] = (x, y)
        pixels, unreadable = np.empty((rows, columns, 3), np.uint8), np.zeros((rows, columns), bool)
        try:
            for future in concurrent.futures.as_completed(blocks):
                x, y = blocks[future]
                part = future.result()
                here = np.s_[y : y + part.pixels.shape[0], x : x + part.pixels.shape[1]]
                pixels[here] = part.pixels
                if part.unreadable is not None:
                    unreadable[here] = part.unreadable
        finally:
            for future in blocks:
                future.cancel()
        return Block(pixels, unreadable if unreadable.any() else None)

    def close(self) -> None:
        """Ends the processes at once; blocks asked for and not yet there are cancelled."""
        self._finalizer()
        self._workers.join()

    def __enter__(self) -> "ReaderPool":
        """The pool itself."""
        return self

    def __exit__(self, *_) -> None:
        """As `close`."""
        self.close()

    def _piece(self, grid: Grid) -> tuple[int, int]:
        """Width and height of pieces of a coarse grid: about `THUMBNAIL_SOURCE` squared pixels, but whole strips."""
        number = best_level(self.info.levels, min(grid.scale))
        downsample = self.info.levels[number].downsample
        tile_width, tile_height = self.info.tiles[number]
        source_width = max(THUMBNAIL_SOURCE, tile_width)
        source_height = max(THUMBNAIL_SOURCE**2 // source_width, tile_height)
        return tuple(
            max(1, int(source / max(1.0, along / downsample)))
            for source, along in zip((source_width, source_height), grid.scale, strict=True)
        )
