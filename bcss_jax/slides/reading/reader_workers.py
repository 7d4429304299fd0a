"""The threads and processes behind a `ReaderPool`: they serve requests, retry failed ones, and end with the pool."""

import concurrent.futures
import contextlib
import os
import queue
import threading
from pathlib import Path
from typing import NamedTuple

import numpy as np

from bcss_jax.data.resolution.check import StatedMpp, first_stated
from bcss_jax.errors import DataError, printable
from bcss_jax.slides.reading.backend import Level
from bcss_jax.slides.reading.reader_process import ReaderFailed, ReaderProcess, ReaderTimedOut

ATTEMPTS = 2
OPENING_SECONDS = 25.0  # if opening takes longer, the file's structure loops; opening is not tried again


class SlideInfo(NamedTuple):
    """The metadata of a slide.

    Attributes:
      path: the slide's file.
      format: for example "aperio", "generic-tiff", "tiffslide" or "png".
      width: pixels of level 0.
      height: pixels of level 0.
      levels: level 0 first.
      tiles: width and height of the stored tiles of each level.
      stated_mpp: what the slide says about its um per pixel, unchecked (see `data.resolution.check.resolved_mpp`).
      bounds: x, y, width, height of the scanned area in level-0 pixels, or None.
      notes: what a user should know of how the slide is read, a line each without the slide's name.
    """

    path: Path
    format: str
    width: int
    height: int
    levels: tuple[Level, ...]
    tiles: tuple[tuple[int, int], ...]
    stated_mpp: tuple[StatedMpp, ...]
    bounds: tuple[int, int, int, int] | None
    notes: tuple[str, ...] = ()

    @property
    def mpp(self) -> tuple[float, float] | None:
        """What the source to believe first states: um per pixel along x and y, unchecked; None if none is stated."""
        return first_stated(self.stated_mpp)


class Block(NamedTuple):
    """A block of a grid.

    Attributes:
      pixels: uint8 [h, w, 3].
      unreadable: bool [h, w], True where the slide could not be decoded and pixels are white; None if all were decoded.
    """

    pixels: np.ndarray
    unreadable: np.ndarray | None


class Workers:
    """The threads and processes behind a pool.

    They hold no reference to the pool, so that the garbage collector can close a pool that nobody uses.
    """

    def __init__(self, path: Path, timeout_s: float):
        """Prepares reading a slide; `start` starts the threads.

        Args:
          path: the slide's file.
          timeout_s: seconds that one answer may take. Opening may take the same time, but at most `OPENING_SECONDS`.
        """
        self._path = path
        self._timeout_s = timeout_s
        self._tasks = queue.SimpleQueue()
        # Guards the attributes below. Reentrant, because the garbage collector may call `stop` while the lock is held.
        self._lock = threading.RLock()
        self._stopped = False
        self._processes: set[ReaderProcess] = set()
        self._threads: list[threading.Thread] = []

    def start(self, count: int) -> None:
        """Starts threads; each starts its process when it has the first request."""
        for _ in range(count):
            thread = threading.Thread(target=self._work, name="slide reader", daemon=True)
            self._threads.append(thread)
            thread.start()

    def open_slide(self) -> "concurrent.futures.Future[tuple[SlideInfo, bool]]":
        """Queues a request to open the slide; returns the future metadata, and whether the image is held in memory."""
        return self._submit(None)

    def read_block(self, request: dict) -> concurrent.futures.Future[Block]:
        """Queues a request for a block, as `reader_main` describes it."""
        return self._submit(request)

    def _submit(self, request: dict | None) -> concurrent.futures.Future:
        future = concurrent.futures.Future()
        with self._lock:
            if self._stopped:
                raise RuntimeError("the reader pool is closed")
            self._tasks.put((future, request))
        return future

    def stop(self) -> None:
        """Kills the processes and tells the threads to end."""
        with self._lock:
            self._stopped = True
            for reader in self._processes:
                reader.process.kill()
            with contextlib.suppress(queue.Empty):
                while True:
                    future, _ = self._tasks.get_nowait()
                    if future.cancel():
                        future.set_running_or_notify_cancel()  # without it, `as_completed` would wait forever
            for _ in self._threads:
                self._tasks.put(None)

    def join(self) -> None:
        """Waits until the threads, and with them the processes, have ended."""
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        """Serves requests until `stop` is called; this is what each thread runs."""
        reader = None
        while (task := self._tasks.get()) is not None:
            future, request = task
            if future.set_running_or_notify_cancel():
                try:
                    reader, result = self._answer(reader, request)
                except _RequestFailed as failure:
                    reader = failure.reader
                    future.set_exception(failure.error)
                else:
                    future.set_result(result)
            del task, future
        self._kill(reader)

    def _answer(self, reader: "_OpenReader | None", request: dict | None) -> "tuple[_OpenReader, object]":
        """Returns the process to use for the next request, and the answer to this one."""
        reasons = []
        for _ in range(ATTEMPTS):
            try:
                if reader is None:
                    reader = self._start_process()
                if request is None:
                    return reader, (reader.info, reader.in_memory)
                header, body = reader.process.ask(request, self._timeout_s)
                if "error" in header:
                    raise _RequestFailed(DataError(header["error"]), reader)
                return reader, _block(header, body)
            except ReaderFailed as failure:
                reasons.append(str(failure))
                self._kill(reader)
                reader = None
                if isinstance(failure, _OpeningTimedOut):
                    break
            except _RequestFailed:
                raise
            except BaseException as error:  # a defect in this program; passed on to whoever waits for the answer
                self._kill(reader)
                raise _RequestFailed(error, None) from error
        raise _RequestFailed(DataError(self._message(request, reasons)), None)

    def _start_process(self) -> "_OpenReader":
        """Starts a process and opens the slide in it."""
        with self._lock:
            if self._stopped:
                raise _RequestFailed(concurrent.futures.CancelledError(), None)
            process = ReaderProcess()
            self._processes.add(process)
        try:
            process.wait_ready()
            header, _ = self._open_slide_in(process)
            if "error" in header:
                raise _RequestFailed(DataError(header["error"]), None)
            return _OpenReader(process, *_info(self._path, header["slide"]))
        except BaseException:
            self._kill_process(process)
            raise

    def _open_slide_in(self, process: ReaderProcess) -> tuple[dict, memoryview]:
        try:
            return process.ask({"open": os.fspath(self._path)}, min(self._timeout_s, OPENING_SECONDS))
        except ReaderTimedOut as failure:
            raise _OpeningTimedOut(str(failure)) from failure

    def _kill(self, reader: "_OpenReader | None") -> None:
        if reader is not None:
            self._kill_process(reader.process)

    def _kill_process(self, process: ReaderProcess) -> None:
        with self._lock:
            self._processes.discard(process)
        process.kill()

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


class _OpenReader(NamedTuple):
    """A process in which the slide is open, the slide's metadata, and whether the process holds the whole image."""

    process: ReaderProcess
    info: SlideInfo
    in_memory: bool


class _OpeningTimedOut(ReaderFailed):
    """Raised when a process did not open the slide in time; another process would not either."""


class _RequestFailed(Exception):
    """Raised when a request ends with an error; `reader` is the process for the next request, if it is usable."""

    def __init__(self, error: BaseException, reader: _OpenReader | None):
        super().__init__(str(error))
        self.error = error
        self.reader = reader


def _info(path: Path, slide: dict) -> tuple[SlideInfo, bool]:
    levels = tuple(Level(*level) for level in slide["levels"])
    stated = tuple(StatedMpp(mpp and tuple(mpp), *texts) for mpp, *texts in slide["stated_mpp"])
    bounds = None if slide["bounds"] is None else tuple(slide["bounds"])
    tiles = tuple(tuple(size) for size in slide["tiles"])
    width, height = levels[0].width, levels[0].height
    info = SlideInfo(path, slide["format"], width, height, levels, tiles, stated, bounds, tuple(slide["notes"]))
    return info, slide["in_memory"]


def _block(header: dict, body: memoryview) -> Block:
    height, width = header["shape"]
    count = height * width
    pixels = np.frombuffer(body[: count * 3], np.uint8).reshape(height, width, 3)
    if not header["unreadable"]:
        return Block(pixels, None)
    bits = np.frombuffer(body[count * 3 :], np.uint8)
    return Block(pixels, np.unpackbits(bits, count=count).astype(bool).reshape(height, width))
