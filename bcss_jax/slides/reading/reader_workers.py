"""The threads and processes behind a `ReaderPool`: who asks what, what is tried again, and that nothing is left behind."""

import concurrent.futures
import contextlib
import os
import queue
import threading
from pathlib import Path
from typing import NamedTuple

import numpy as np

from bcss_jax.errors import DataError, printable
from bcss_jax.slides.reading.backend import Level
from bcss_jax.slides.reading.reader_process import ReaderFailed, ReaderProcess, ReaderTimedOut

ATTEMPTS = 2
OPENING_SECONDS = 25.0  # a slide that takes longer, only to be opened, leads in circles; it is not tried again


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
    """A block of a grid.

    Attributes:
      pixels: uint8 [h, w, 3].
      unreadable: bool [h, w], True where the slide could not be decoded and pixels are white; None if all could.
    """

    pixels: np.ndarray
    unreadable: np.ndarray | None


class Workers:
    """The threads and processes behind a pool. They know the crew and not the pool, so that the pool can be forgotten."""

    def __init__(self, path: Path, timeout_s: float):
        """Of the slide at a path; starts nothing yet. An answer may take `timeout_s`, opening `OPENING_SECONDS` at most."""
        self._path = path
        self._timeout_s = timeout_s
        self._tasks = queue.SimpleQueue()
        self._lock = threading.RLock()  # guards what follows; again for `stop` if the collector calls it under the lock
        self._stopped = False
        self._children: set[ReaderProcess] = set()
        self._threads: list[threading.Thread] = []

    def start(self, count: int) -> None:
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
            with contextlib.suppress(queue.Empty):
                while True:
                    future, _ = self._tasks.get_nowait()
                    if future.cancel():
                        future.set_running_or_notify_cancel()  # else `as_completed` waits for it for ever
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
            except ReaderFailed as failure:
                reasons.append(str(failure))
                child = self._dismiss(child)
                if isinstance(failure, _OpeningHung):
                    break
            except _Failed:
                raise
            except BaseException as error:  # a defect of ours: whoever waits has to hear of it
                self._dismiss(child)
                raise _Failed(error, None) from error
        raise _Failed(DataError(self._message(request, reasons)), None)

    def _start(self) -> tuple:
        """A fresh process with the slide open, and what it said of the slide."""
        with self._lock:
            if self._stopped:
                raise _Failed(concurrent.futures.CancelledError(), None)
            process = ReaderProcess()
            self._children.add(process)
        try:
            process.wait_ready()
            header, _ = self._opened(process)
            if "error" in header:
                raise _Failed(DataError(header["error"]), None)
            return process, _info(self._path, header["slide"])
        except BaseException:
            self._dismiss((process, None))
            raise

    def _opened(self, process: ReaderProcess) -> tuple[dict, memoryview]:
        try:
            return process.ask({"open": os.fspath(self._path)}, min(self._timeout_s, OPENING_SECONDS))
        except ReaderTimedOut as failure:
            raise _OpeningHung(str(failure)) from failure

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
        tried = "once" if len(reasons) == 1 else f"{len(reasons)} times"
        return (
            f"{printable(self._path)}: expected a slide that can be read{where}, found that {found} (tried {tried}); "
            "fetch the slide again, or convert it to a tiled TIFF"
        )


class _OpeningHung(ReaderFailed):
    """A process did not open the slide in time; another one would not either."""


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
