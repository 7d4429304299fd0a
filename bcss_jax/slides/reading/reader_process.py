"""One reader process seen from its parent: asked one thing at a time, watched by the clock, killed when in doubt."""

import contextlib
import fcntl
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import bcss_jax

START_SECONDS = 120.0  # for an interpreter to start on a slow disk: no fault of the slide
PIPE_BYTES = 2**20
MAX_HEADER = 2**20
MAX_ANSWER = 2**31
STDERR_BYTES = 2**20  # more of it is thrown away: some libraries complain about every tile


class ReaderFailed(Exception):
    """The process crashed, ended, said nonsense or did not answer in time, and is dead. The message says which."""


class ReaderTimedOut(ReaderFailed):
    """It did not answer in time."""


class ReaderProcess:
    """A running `reader_process`."""

    def __init__(self):
        """Starts it; `wait_ready` waits for it."""
        root = str(Path(bcss_jax.__file__).parents[1])
        environment = dict(os.environ, OPENBLAS_NUM_THREADS="1", TIFFSLIDE_NUM_DECODE_THREADS="1")
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
        self._stderr = tempfile.TemporaryFile("a+b")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "bcss_jax.slides.reading.reader_main"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            env=environment,
        )
        self._answers = self.process.stdout.fileno()
        with contextlib.suppress(AttributeError, OSError):  # quicker where the system has it and allows it
            fcntl.fcntl(self._answers, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        self._poll = select.poll()  # select() fails on descriptors above 1023
        self._poll.register(self._answers, select.POLLIN)

    def wait_ready(self) -> None:
        """Waits until it takes requests.

        Raises:
          ReaderFailed: it does not start.
        """
        self._receive(START_SECONDS)

    def ask(self, request: dict, timeout_s: float) -> tuple[dict, memoryview]:
        """Sends a request and waits for the answer: its header and its bytes.

        Raises:
          ReaderFailed: there is none; `ReaderTimedOut` if there was none in time.
        """
        try:
            self.process.stdin.write(json.dumps(request).encode() + b"\n")
            self.process.stdin.flush()
        except OSError:
            raise self._failed() from None
        answer = self._receive(timeout_s)
        if os.fstat(self._stderr.fileno()).st_size > STDERR_BYTES:
            self._stderr.truncate(0)
        return answer

    def kill(self) -> None:
        """Ends the process, if it still runs, and gives everything back."""
        self.process.kill()
        self.process.wait()
        self._stderr.close()
        self.process.stdout.close()
        with contextlib.suppress(OSError):  # what was not sent is of no use to the dead
            self.process.stdin.close()

    def _receive(self, timeout_s: float) -> tuple[dict, memoryview]:
        deadline = time.monotonic() + timeout_s
        received = bytearray()
        while b"\n" not in received:
            if len(received) > MAX_HEADER:
                raise ReaderFailed("it sent nonsense")
            self._wait(deadline, timeout_s)
            chunk = os.read(self._answers, 4096)
            if not chunk:
                raise self._failed()
            received += chunk
        line, _, begun = received.partition(b"\n")
        try:
            header = json.loads(line)
            height, width = header.get("shape", (0, 0))
            size = height * width * 3 + (-(-height * width // 8) if header.get("unreadable") else 0)
            if not len(begun) <= size <= MAX_ANSWER:
                raise ValueError
        except (ValueError, TypeError, AttributeError):
            raise ReaderFailed("it sent nonsense") from None
        body = memoryview(bytearray(size))
        body[: len(begun)] = begun
        filled = len(begun)
        while filled < size:
            self._wait(deadline, timeout_s)
            count = os.readv(self._answers, [body[filled:]])
            if not count:
                raise self._failed()
            filled += count
        return header, body

    def _wait(self, deadline: float, timeout_s: float) -> None:
        remaining = max(0.0, deadline - time.monotonic())
        if not self._poll.poll(remaining * 1000):
            raise ReaderTimedOut(f"no answer within {timeout_s:g} s")

    def _failed(self) -> ReaderFailed:
        """Why it closed its pipes."""
        try:
            code = self.process.wait(5.0)
        except subprocess.TimeoutExpired:
            return ReaderFailed("it closed its output")
        how = f"exit code {code}"
        if code < 0:
            try:
                how = signal.Signals(-code).name
            except ValueError:
                how = f"signal {-code}"
            if how == "SIGKILL":
                how += ", perhaps for lack of memory"
        last = self._last_words()
        return ReaderFailed(f"the reading process died ({how})" + (f", saying {last!r}" if last else ""))

    def _last_words(self) -> str:
        self._stderr.seek(max(0, os.fstat(self._stderr.fileno()).st_size - 4096))
        lines = self._stderr.read().decode(errors="replace").split("\n")
        return next((line.strip()[:200] for line in reversed(lines) if line.strip()), "")
