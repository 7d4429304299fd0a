"""The process that reads one slide for `reader_pool`: `python -m bcss_jax.slides.reading.reader_main`.

A damaged file can crash the C libraries that read it, hang them, or make them ask for all memory there is; here that
costs this process and nothing else. It takes requests as lines of JSON on stdin and answers on stdout with a line of
JSON and raw bytes; nothing is pickled. It ends with its parent, however that ends.

Requests and answers, after a first {"ready": true}:
  {"open": path}                                  -> {"slide": {...}}, the fields of `reader_pool.SlideInfo`
  {"grid": [width, height, mpp, scale x, scale y], "box": [x, y, width, height]}
                                                  -> {"shape": [height, width], "unreadable": bool}, height * width * 3
                                                     bytes of RGB and, if unreadable, one bit a pixel (np.packbits)
Either may answer {"error": one line}.
"""

import json
import os
import queue
import resource
import select
import signal
import sys
import threading
from pathlib import Path
from typing import BinaryIO

import numpy as np

from bcss_jax.errors import DataError, first_line, printable
from bcss_jax.slides.grid import Grid
from bcss_jax.slides.reading.backend import Slide
from bcss_jax.slides.reading.open_slide import open_slide
from bcss_jax.slides.reading.read_block import read_block

MEMORY = 3 * 2**30  # bytes of address space beyond what is mapped at the start; a block and its margins need far less
PARENT_SECONDS = 1.0  # how often to look whether the parent is still there, should its end not close our stdin


def main() -> None:
    """Serves requests until stdin ends."""
    for request in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(request, signal.SIG_IGN)  # Ctrl-C and schedulers signal the whole group; the parent decides
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints must not get into the answers
    _limit()
    requests = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(requests, os.getppid()), daemon=True).start()
    try:
        _send(answers, {"ready": True})
        _serve(requests, answers)
    except BrokenPipeError:
        os._exit(0)  # the parent is gone


def _serve(requests: queue.SimpleQueue, answers: BinaryIO) -> None:
    slide = None
    while True:
        request = json.loads(requests.get())
        try:
            if "open" in request:
                slide = _closed(slide)
                slide = open_slide(request["open"])
                _send(answers, {"slide": _described(slide)})
                continue
            width, height, mpp, *scale = request["grid"]
            pixels, unreadable = read_block(slide, Grid(width, height, mpp, tuple(scale)), *request["box"])
        except DataError as error:
            _send(answers, {"error": str(error)})
        except Exception as error:  # no memory, a vanished disk: one failed request
            _send(answers, {"error": _failure(slide, request, error)})
        else:
            mask = b"" if unreadable is None else np.packbits(unreadable).tobytes()
            header = {"shape": list(pixels.shape[:2]), "unreadable": unreadable is not None}
            _send(answers, header, np.ascontiguousarray(pixels).data, mask)


def _closed(slide: Slide | None) -> None:
    if slide is not None:
        slide.close()


def _described(slide: Slide) -> dict:
    return {
        "format": slide.format,
        "levels": slide.levels,
        "tiles": [slide.tile_size(level) for level in range(len(slide.levels))],
        "mpp": slide.mpp,
        "bounds": slide.bounds,
        "in_memory": slide.in_memory,
    }


def _failure(slide: Slide | None, request: dict, error: Exception) -> str:
    path = printable(request["open"] if slide is None else slide.path)
    found = "too little memory" if isinstance(error, MemoryError) else f"{type(error).__name__}: {first_line(error)}"
    found = found if found.isprintable() else ascii(found)
    return f"{path}: expected a slide that can be read, found {found}; fetch it again, or check the disk it is on"


def _send(answers: BinaryIO, header: dict, *parts: bytes | memoryview) -> None:
    answers.write(json.dumps(header).encode() + b"\n")
    for part in parts:
        answers.write(part)
    answers.flush()


def _listen(requests: queue.SimpleQueue, parent: int) -> None:
    """Takes in requests; ends the process when the parent ends, also in the middle of a read."""
    pending = b""
    while True:
        if not select.select([0], [], [], PARENT_SECONDS)[0]:
            if os.getppid() != parent:
                os._exit(0)
            continue
        chunk = os.read(0, 65536)
        if not chunk:
            os._exit(0)
        *lines, pending = (pending + chunk).split(b"\n")
        for line in lines:
            requests.put(line)


def _limit() -> None:
    """Bounds memory where the system tells how much is mapped, and leaves no core files of crashes."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    statm = Path("/proc/self/statm")
    if sys.platform == "linux" and statm.exists():
        mapped = int(statm.read_text().split()[0]) * resource.getpagesize()
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        limit = mapped + MEMORY if hard == resource.RLIM_INFINITY else min(mapped + MEMORY, hard)
        resource.setrlimit(resource.RLIMIT_AS, (limit, hard))


if __name__ == "__main__":
    main()
