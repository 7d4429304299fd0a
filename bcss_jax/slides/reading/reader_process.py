"""A reader process as seen by its parent, which sends one request at a time and kills the process if it fails."""

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
from bcss_jax.common import interruption

START_SECONDS = 120.0  # time for an interpreter to start from a slow disk, which is not the slide's fault
PIPE_BYTES = 2**20
MAX_HEADER = 2**20
MAX_ANSWER = 2**31
STDERR_BYTES = 2**20  # longer output is discarded, because some libraries print a message for every tile


class ReaderFailed(Exception):
    """Raised when the process crashed, ended, sent an invalid answer or did not answer in time. The message says which.

    The process must be killed afterward.
    """


class ReaderTimedOut(ReaderFailed):
    """Raised when the process did not answer in time."""


class ReaderProcess:
    """A running process of `reader_main`."""

    def __init__(self):
        """Starts the process; `wait_ready` waits until it is ready."""
        root = str(Path(bcss_jax.__file__).parents[1])
        environment = dict(os.environ, OPENBLAS_NUM_THREADS="1", TIFFSLIDE_NUM_DECODE_THREADS="1")
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
        self._stderr = tempfile.TemporaryFile("a+b")
        with interruption.blocked():  # a signal to the whole group must not end it before it ignores signals
            self.process = subprocess.Popen(
                [sys.executable, "-m", "bcss_jax.slides.reading.reader_main"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._stderr,
                env=environment,
            )
        assert self.process.stdin is not None and self.process.stdout is not None
        self._stdin, self._stdout = self.process.stdin, self.process.stdout
        self._answers = self._stdout.fileno()
        with contextlib.suppress(AttributeError, OSError):  # a large pipe is faster, where the system allows it
            fcntl.fcntl(self._answers, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        self._poll = select.poll()  # select() fails on descriptors above 1023
        self._poll.register(self._answers, select.POLLIN)

    def wait_ready(self) -> None:
        """Waits until the process accepts requests.

        Raises:
          ReaderFailed: the process does not start.
        """
        self._receive(START_SECONDS)

    def ask(self, request: dict, timeout_s: float) -> tuple[dict, memoryview]:
        """Sends a request and returns the answer: its header and its bytes.

        Raises:
          ReaderTimedOut: there is no answer within `timeout_s` seconds.
          ReaderFailed: there is no valid answer for another reason.
        """
        try:
            self._stdin.write(json.dumps(request).encode() + b"\n")
            self._stdin.flush()
        except OSError:
            raise self._failed() from None
        answer = self._receive(timeout_s)
        if os.fstat(self._stderr.fileno()).st_size > STDERR_BYTES:
            self._stderr.truncate(0)
        return answer

    def kill(self) -> None:
        """Ends the process if it still runs, and closes its pipes."""
        self.process.kill()
        self.process.wait()
        self._stderr.close()
        self._stdout.close()
        with contextlib.suppress(OSError):  # unsent data cannot be flushed, and no one reads it
            self._stdin.close()

    def _receive(self, timeout_s: float) -> tuple[dict, memoryview]:
        deadline = time.monotonic() + timeout_s
        received = bytearray()
        while b"\n" not in received:
            if len(received) > MAX_HEADER:
                raise ReaderFailed("the reader process sent an invalid answer")
            self._wait(deadline, timeout_s)
            chunk = os.read(self._answers, 4096)
            if not chunk:
                raise self._failed()
            received += chunk
        line, _, start = received.partition(b"\n")
        try:
            header = json.loads(line)
            height, width = header.get("shape", (0, 0))
            size = height * width * 3 + (-(-height * width // 8) if header.get("unreadable") else 0)
            if not len(start) <= size <= MAX_ANSWER:
                raise ValueError
        except (ValueError, TypeError, AttributeError):
            raise ReaderFailed("the reader process sent an invalid answer") from None
        body = memoryview(bytearray(size))
        body[: len(start)] = start
        filled = len(start)
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
            raise ReaderTimedOut(f"the reader process gave no answer within {timeout_s:g} s")

    def _failed(self) -> ReaderFailed:
        """Returns the error that says why the process closed its pipes."""
        try:
            code = self.process.wait(5.0)
        except subprocess.TimeoutExpired:
            return ReaderFailed("the reader process closed its output")
        how = f"exit code {code}"
        if code < 0:
            try:
                how = signal.Signals(-code).name
            except ValueError:
                how = f"signal {-code}"
            if how == "SIGKILL":
                how += ", perhaps for lack of memory"
        last = self._last_line_of_stderr()
        return ReaderFailed(f"the reader process died ({how})" + (f", saying {last!r}" if last else ""))

    def _last_line_of_stderr(self) -> str:
        self._stderr.seek(max(0, os.fstat(self._stderr.fileno()).st_size - 4096))
        lines = self._stderr.read().decode(errors="replace").split("\n")
        return next((line.strip()[:200] for line in reversed(lines) if line.strip()), "")
