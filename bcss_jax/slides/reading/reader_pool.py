"""Reads blocks of one slide in separate processes, so that a damaged file causes one error and not the end of a batch.

Each process is served by a thread. The thread requests one block at a time, waits at most `timeout_s` seconds, and
starts a new process if the old one crashed or hung. A block is tried twice. Opening the slide is also tried twice,
unless it hangs.
"""

import concurrent.futures
import os
import weakref
from pathlib import Path

import numpy as np

from bcss_jax.common.interruption import result_of
from bcss_jax.slides.grid import Grid
from bcss_jax.slides.reading.read_block import best_level
from bcss_jax.slides.reading.reader_workers import Block, SlideInfo, Workers

__all__ = ["Block", "ReaderPool", "SlideInfo"]

THUMBNAIL_SOURCE = 2048  # side of the pieces a thumbnail is read in, in pixels of the level it is made from
MIN_SIDE = 0.7  # smallest usable level, as a fraction of the thumbnail's side; the next may be 16 times as large


class ReaderPool:
    """A slide that is open in several processes. As a context manager, it ends the processes on exit.

    Attributes:
      info: the slide's metadata.
    """

    info: SlideInfo

    def __init__(self, path: str | os.PathLike, processes: int, timeout_s: float = 30.0):
        """Opens the slide.

        Args:
          path: the slide's file.
          processes: how many processes read at once. An image that must be decoded as a whole is read by one only.
          timeout_s: seconds that one block may take. Opening the slide may take the same time, but at most
            `reader_workers.OPENING_SECONDS`.

        Raises:
          DataError: the slide cannot be opened, or the reader process crashed or hung.
        """
        if processes < 1:
            raise ValueError(f"{processes} processes")
        self._workers = Workers(Path(path), timeout_s)
        self._finalizer = weakref.finalize(self, self._workers.stop)
        try:
            self._workers.start(1)
            self.info, in_memory = result_of(self._workers.open_slide())
        except BaseException:
            self.close()
            raise
        if not in_memory:
            self._workers.start(processes - 1)

    def submit(self, grid: Grid, x: int, y: int, width: int, height: int) -> "concurrent.futures.Future[Block]":
        """Requests a block of a grid; see `read_block.read_block`.

        Args:
          grid: the grid of the slide.
          x: left edge of the block; this and the next three are in pixels of the grid.
          y: top edge of the block.
          width: of the block.
          height: of the block.

        Returns:
          The future `Block`. Its `result` raises a DataError with the position if the reader process crashed or hung
          twice, and a CancelledError if the pool was closed first.

        Raises:
          ValueError: the block is not within the grid.
          RuntimeError: the pool is closed.
        """
        if not (0 <= x and 0 <= y and 0 < width <= grid.width - x and 0 < height <= grid.height - y):
            raise ValueError(
                f"a block of {width}x{height} at ({x}, {y}) does not lie in a grid of {grid.width}x{grid.height}"
            )
        grid_numbers = [int(grid.width), int(grid.height), float(grid.mpp), *(float(along) for along in grid.scale)]
        return self._workers.read_block({"grid": grid_numbers, "box": [int(x), int(y), int(width), int(height)]})

    def thumbnail(self, max_side: int) -> Block:
        """Returns the whole slide with no side longer than `max_side`.

        The thumbnail is somewhat smaller if a level of that size saves reading a far larger one. It is made in pieces
        from the best level, so that a slide without a pyramid takes time but little memory.

        Raises:
          DataError: a piece cannot be read; see `submit`.
        """
        width, height = self.info.width, self.info.height
        sides = (max(level[:2]) for level in self.info.levels)
        usable = [side for side in sides if MIN_SIDE * max_side <= side <= max_side]
        shrink = max(1.0, max(width, height) / max(usable, default=max_side))
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
            for future in blocks:
                x, y = blocks[future]
                block = result_of(future)
                here = np.s_[y : y + block.pixels.shape[0], x : x + block.pixels.shape[1]]
                pixels[here] = block.pixels
                if block.unreadable is not None:
                    unreadable[here] = block.unreadable
        finally:
            for future in blocks:
                future.cancel()
        return Block(pixels, unreadable if unreadable.any() else None)

    def close(self) -> None:
        """Ends the processes immediately and cancels all requested blocks that are not finished."""
        self._finalizer()
        self._workers.join()

    def __enter__(self) -> "ReaderPool":
        """Returns the pool itself."""
        return self

    def __exit__(self, *_) -> None:
        """Closes the pool."""
        self.close()

    def _piece(self, grid: Grid) -> tuple[int, int]:
        """Returns width and height of the pieces a coarse grid is read in.

        A piece takes about `THUMBNAIL_SOURCE` squared source pixels, but at least one tile or strip.
        """
        number = best_level(self.info.levels, min(grid.scale))
        downsample = self.info.levels[number].downsample
        tile_width, tile_height = self.info.tiles[number]
        source_width = max(THUMBNAIL_SOURCE, tile_width)
        source_height = max(THUMBNAIL_SOURCE**2 // source_width, tile_height)
        width, height = (
            max(1, int(source / max(1.0, along / downsample)))
            for source, along in zip((source_width, source_height), grid.scale, strict=True)
        )
        return width, height
