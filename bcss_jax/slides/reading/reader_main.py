"""The program of a reader process, which reads one slide: `python -m bcss_jax.slides.reading.reader_main`.

A damaged file can crash or hang the C libraries that read it, or make them allocate all memory. In a separate process
this ends only that process. Requests arrive as lines of JSON on stdin. The answers on stdout are a line of JSON
followed by raw bytes; nothing is pickled. The process ends when its parent ends for any reason.

The first line of output is {"ready": true}. Then there are two kinds of requests:

  request:  {"open": path}
  answer:   {"slide": {...}}, the fields of `reader_workers.SlideInfo`

  request:  {"grid": [width, height, mpp, scale x, scale y], "box": [x, y, width, height]}
  answer:   {"shape": [height, width], "unreadable": bool}, then height * width * 3 bytes of RGB and, if "unreadable" is
            true, one bit per pixel (np.packbits)

Both may be answered with {"error": one line}.
"""

import json
import os
import queue
import resource
import select
import sys
import threading
from pathlib import Path
from typing import BinaryIO

import numpy as np

from bcss_jax.common import interruption
from bcss_jax.errors import DataError, first_line, printable
from bcss_jax.slides.grid import Grid
from bcss_jax.slides.reading.backend import Slide
from bcss_jax.slides.reading.open_slide import open_slide
from bcss_jax.slides.reading.read_block import read_block

MEMORY = 3 * 2**30  # bytes of address space beyond those mapped at the start; a block and its margins need far less
PARENT_SECONDS = 1.0  # interval of the checks for a parent that ended without closing our stdin


def main() -> None:
    """Serves requests until stdin ends."""
    interruption.leave_to_parent()
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # keeps the output of libraries out of the answers
    _limit_memory()
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
                if slide is not None:
                    slide.close()
                    slide = None
                slide = open_slide(request["open"])
                _send(answers, {"slide": _slide_info(slide)})
                continue
            assert slide is not None, "a block is requested before a slide is open"
            width, height, mpp, *scale = request["grid"]
            pixels, unreadable = read_block(slide, Grid(width, height, mpp, tuple(scale)), *request["box"])
        except DataError as error:
            _send(answers, {"error": str(error)})
        except Exception as error:  # out of memory or a disk that is gone; only this request fails
            _send(answers, {"error": _failure(slide, request, error)})
        else:
            mask = b"" if unreadable is None else np.packbits(unreadable).tobytes()
            header = {"shape": list(pixels.shape[:2]), "unreadable": unreadable is not None}
            _send(answers, header, np.ascontiguousarray(pixels).data, mask)


def _slide_info(slide: Slide) -> dict:
    return {
        "format": slide.format,
        "levels": slide.levels,
        "tiles": [slide.tile_size(level) for level in range(len(slide.levels))],
        "stated_mpp": slide.stated_mpp,
        "bounds": slide.bounds,
        "notes": slide.notes,
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
    """Receives requests, and ends the process when the parent ends, even in the middle of a read."""
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


def _limit_memory() -> None:
    """Limits the memory where the system reports how much is mapped, and disables core files."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    statm = Path("/proc/self/statm")
    if sys.platform == "linux" and statm.exists():
        mapped = int(statm.read_text().split()[0]) * resource.getpagesize()
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        limit = mapped + MEMORY if hard == resource.RLIM_INFINITY else min(mapped + MEMORY, hard)
        resource.setrlimit(resource.RLIMIT_AS, (limit, hard))


if __name__ == "__main__":
    main()
