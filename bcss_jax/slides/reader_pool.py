"""Reads blocks of one slide in processes of their own, so that a damaged file costs one line, not the night's batch.

Each process is served by a thread: it asks for one block, waits at most `timeout_s`, and starts a fresh process when
the old one crashed or hung. A block is tried twice.
"""

import concurrent.futures
import os
import queue
import threading
import weakref
from pathlib import Path
from typing import NamedTuple

import numpy as np

from bcss_jax.errors import DataError
from bcss_jax.slides.grid import Grid
from bcss_jax.slides.reader import best_level
from bcss_jax.slides.reader_base import Level
from bcss_jax.slides.reader_child import ChildFailed, ReaderChild
from bcss_jax.tiles import printable

ATTEMPTS = 2
THUMBNAIL_SOURCE = 2048  # a thumbnail is read in pieces of about this side, in pixels of the level it is made from


class SlideInfo(NamedTuple):
    """What a slide says about itself.

    Attributes:
      path: of its file.
      format: e.g. "aperio", "generic-tiff", "tiffslide", "png".
      width: of level 0, pixels.
      height: likewise.
      levels: level 0 first.
      tiles: width and height of the stored tiles of each level.
      mpp: um per pixel along x and y as the slide says it, unchecked (`resolution.resolved_mpp`), or None.
      bounds: x, y, width, height of the scanned area in level-0 pixels, or None.
    """

    path: Path
    format: str
    width: int
    height: int
    levels: tuple[Level, ...]
    tiles: tuple[tuple[int, int], ...]
    mpp: tuple[float, float] | None
    bounds: tuple[int, int, int, int] | None


class Block(NamedTuple):
    """Pixels uint8 [h, w, 3]; `unreadable`: bool [h, w], True where they could not be decoded (white), None if all were.

    Attributes:
      pixels: as above.
      unreadable: as above.
    """

    pixels: np.ndarray
    unreadable: np.ndarray | None


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
          timeout_s: how long one block, or opening the slide, may take.

        Raises:
          DataError: it does not open, or the reader crashed or hung over it.
        """
        if processes < 1:
            raise ValueError(f"{processes} processes")
        self._crew = _Crew(Path(path), timeout_s)
        self._finalizer = weakref.finalize(self, self._crew.stop)
        try:
            self._crew.hire(1)
            self.info, in_memory = self._crew.submit(None).result()
        except BaseException:
            self.close()
            raise
        if not in_memory:
            self._crew.hire(processes - 1)

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
        return self._crew.submit({"grid": grid_numbers, "box": [int(x), int(y), int(width), int(height)]})

    def thumbnail(self, max_side: int) -> np.ndarray:
        """The whole slide, no side longer than `max_side`, uint8 [h, w, 3]; unreadable parts are white.

        Made from the best level in pieces: without a pyramid that takes time, but no memory.

        Raises:
          DataError: as `submit`.
        """
        width, height = self.info.width, self.info.height
        shrink = max(1.0, max(width, height) / max_side)
        columns, rows = max(1, round(width / shrink)), max(1, round(height / shrink))
        grid = Grid(columns, rows, 0.0, (width / columns, height / rows))
        piece_width, piece_height = self._piece(grid)
        blocks = {}
        for y in range(0, rows, piece_height):
            for x in range(0, columns, piece_width):
                size = min(piece_width, columns - x), min(piece_height, rows - y)
                blocks[self.submit(grid, x, y, *size)] = (x, y)
        pixels = np.empty((rows, columns, 3), np.uint8)
        try:
            for future in concurrent.futures.as_completed(blocks):
                x, y = blocks[future]
                part = future.result().pixels
                pixels[y : y + part.shape[0], x : x + part.shape[1]] = part
        finally:
            for future in blocks:
                future.cancel()
        return pixels

    def close(self) -> None:
        """Ends the processes at once; blocks asked for and not yet there are cancelled."""
        self._finalizer()
        self._crew.join()

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


class _Crew:
    """The threads and processes behind a pool. They know the crew and not the pool, so that the pool can be forgotten."""

    def __init__(self, path: Path, timeout_s: float):
        self._path = path
        self._timeout_s = timeout_s
        self._tasks = queue.SimpleQueue()
        self._lock = threading.Lock()  # guards what follows
        self._stopped = False
        self._children: set[ReaderChild] = set()
        self._threads: list[threading.Thread] = []

    def hire(self, count: int) -> None:
        """Adds threads, each with a process as soon as there is something to read."""
        for _ in range(count):
            thread = threading.Thread(target=self._work, name="slide reader", daemon=True)
            self._threads.append(thread)
            thread.start()

    def submit(self, request: dict | None) -> concurrent.futures.Future:
        """Queues a request for a block, or (None) for what opening the slide told."""
        future = concurrent.futures.Future()
        with self._lock:
            if self._stopped:
                raise RuntimeError("the reader pool is closed")
            self._tasks.put((future, request))
        return future

    def stop(self) -> None:
        """Kills the processes and lets the threads run out."""
        with self._lock:
            self._stopped = True
            for child in self._children:
                child.process.kill()
            while not self._tasks.empty():
                task = self._tasks.get()
                if task is not None:
                    task[0].cancel()
            for _ in self._threads:
                self._tasks.put(None)

    def join(self) -> None:
        """Waits for the threads, and so for the processes, to end."""
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        child = None
        while (task := self._tasks.get()) is not None:
            future, request = task
            if future.set_running_or_notify_cancel():
                try:
                    child, result = self._answer(child, request)
                except _Failed as failure:
                    child = failure.child
                    future.set_exception(failure.error)
                except BaseException as error:  # a defect of ours: whoever waits has to hear of it
                    child = self._dismiss(child)
                    future.set_exception(error)
                else:
                    future.set_result(result)
            del task, future
        self._dismiss(child)

    def _answer(self, child: tuple | None, request: dict | None) -> tuple[tuple, object]:
        """The answer to a request, and the process that gave it with what it said of the slide."""
        reasons = []
        for _ in range(ATTEMPTS):
            try:
                if child is None:
                    child = self._start()
                process, opened = child
                if request is None:
                    return child, opened
                header, body = process.ask(request, self._timeout_s)
                if "error" in header:
                    raise _Failed(DataError(header["error"]), child)
                return child, _block(header, body)
            except ChildFailed as failure:
                reasons.append(str(failure))
                child = self._dismiss(child)
        raise _Failed(DataError(self._message(request, reasons)), None)

    def _start(self) -> tuple:
        """A fresh process with the slide open, and what it said of the slide."""
        with self._lock:
            if self._stopped:
                raise _Failed(concurrent.futures.CancelledError(), None)
            process = ReaderChild()
            self._children.add(process)
        try:
            process.wait_ready()
            header, _ = process.ask({"open": os.fspath(self._path)}, self._timeout_s)
            if "error" in header:
                raise _Failed(DataError(header["error"]), None)
        except BaseException:
            self._dismiss((process, None))
            raise
        return process, _info(self._path, header["slide"])

    def _dismiss(self, child: tuple | None) -> None:
        if child is not None:
            with self._lock:
                self._children.discard(child[0])
            child[0].kill()

    def _message(self, request: dict | None, reasons: list[str]) -> str:
        where = ""
        if request is not None:
            (x, y, width, height), scale = request["box"], request["grid"][3:]
            where = (
                f" at x={round(x * scale[0])}, y={round(y * scale[1])} "
                f"({round(width * scale[0])}x{round(height * scale[1])} pixels of level 0)"
            )
        found = reasons[0] if len(set(reasons)) == 1 else ", then ".join(reasons)
        return (
            f"{printable(self._path)}: expected a slide that can be read{where}, found that {found} (tried "
            f"{len(reasons)} times); fetch the slide again, or convert it to a tiled TIFF"
        )


class _Failed(Exception):
    """A request that ends with an error; `child` is the process to go on with, if it is still good."""

    def __init__(self, error: BaseException, child: tuple | None):
        super().__init__(str(error))
        self.error = error
        self.child = child


def _info(path: Path, slide: dict) -> tuple[SlideInfo, bool]:
    levels = tuple(Level(*level) for level in slide["levels"])
    mpp, bounds = (None if slide[name] is None else tuple(slide[name]) for name in ("mpp", "bounds"))
    tiles = tuple(tuple(size) for size in slide["tiles"])
    info = SlideInfo(path, slide["format"], levels[0].width, levels[0].height, levels, tiles, mpp, bounds)
    return info, slide["in_memory"]


def _block(header: dict, body: memoryview) -> Block:
    height, width = header["shape"]
    count = height * width
    pixels = np.frombuffer(body[: count * 3], np.uint8).reshape(height, width, 3)
    if not header["unreadable"]:
        return Block(pixels, None)
    bits = np.frombuffer(body[count * 3 :], np.uint8)
    return Block(pixels, np.unpackbits(bits, count=count).astype(bool).reshape(height, width))
