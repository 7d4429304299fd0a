"""Runs parts as child processes: several at once while they compile, one alone while it measures times.

Compiling takes most of the time and keeps the cores busy. A part that is ready to measure asks for it; all others are
then stopped (SIGSTOP) until it is done, so that neither the cores nor the GPU are shared while times are taken.
"""

import collections
import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from benchmarks.gpu import child
from benchmarks.gpu.parts import Part

ROOT = Path(__file__).resolve().parents[2]
SETTLE = 0.3  # seconds in which the GPU ends what stopped processes had started
POLL = 0.05  # seconds between looks at the processes
SKIPPED_CODE = 77


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a part ended.

    Attributes:
      name: of the part.
      module: of the part.
      state: "done", "failed", "too long" or "skipped".
      reason: in one line, unless it is done.
      seconds: that it took, without those in which it was stopped.
      rows: what it has found.
    """

    name: str
    module: str
    state: str
    reason: str
    seconds: float
    rows: list[dict[str, Any]]


class Scheduler:
    """Child processes on one machine until a point in time."""

    def __init__(self, folder: Path, deadline: float, at_once: int, finished: Callable[[Outcome], None]):
        """Starts nothing yet.

        Args:
          folder: gets NAME.json and NAME.log of each part.
          deadline: when all must be over, by `time.monotonic`.
          at_once: number of parts that compile at once.
          finished: is called with the outcome of each part.
        """
        self._folder, self._deadline, self._at_once, self._finished = folder, deadline, at_once, finished
        self._running: list[_Job] = []
        self._asking: collections.deque[_Job] = collections.deque()
        self._measuring: _Job | None = None

    def run(self, parts: Iterable[Part]) -> None:
        """Runs the parts, started in this order."""
        waiting = collections.deque(parts)
        try:
            while waiting or self._running:
                while waiting and time.monotonic() >= self._deadline:
                    self._skip(waiting.popleft())
                while waiting and self._may_start(waiting[0]):
                    self._running.append(_Job(waiting.popleft(), self._folder))
                for job in list(self._running):
                    self._look_at(job)
                self._let_measure()
                time.sleep(POLL)
        finally:
            for job in self._running:
                job.kill()

    def _may_start(self, part: Part) -> bool:
        if self._measuring or any(job.part.alone for job in self._running):
            return False
        return len(self._running) < (1 if part.alone else self._at_once)

    def _skip(self, part: Part) -> None:
        self._finished(Outcome(part.name, part.module, "skipped", "the time was over before it began", 0, []))

    def _look_at(self, job: "_Job") -> None:
        for message in job.messages():
            if message == child.QUIET:
                self._asking.append(job)
            elif message == child.DONE:
                self._end_measuring(job)
        code, now = job.process.poll(), time.monotonic()
        state, reason = None, ""
        if code is not None:
            state, reason = job.outcome_of(code)
        elif job.seconds(now) > job.part.seconds:
            state, reason = "too long", f"ended after {job.part.seconds:.0f} s"
        elif now > self._deadline:
            state, reason = "too long", "the time was over"
        if state is None:
            return
        job.kill()
        self._running.remove(job)
        with contextlib.suppress(ValueError):
            self._asking.remove(job)
        self._end_measuring(job)
        self._finished(Outcome(job.part.name, job.part.module, state, reason, job.seconds(now), job.rows()))

    def _let_measure(self) -> None:
        if self._measuring or not self._asking:
            return
        self._measuring = self._asking.popleft()
        for job in self._running:
            if job is not self._measuring:
                job.pause()
        time.sleep(SETTLE)
        self._measuring.go()

    def _end_measuring(self, job: "_Job") -> None:
        if job is not self._measuring:
            return
        self._measuring = None
        for other in self._running:
            other.resume()


class _Job:
    """A part that runs."""

    def __init__(self, part: Part, folder: Path):
        self.part, self._result, self._log = part, folder / f"{part.name}.json", folder / f"{part.name}.log"
        self._result.unlink(missing_ok=True)
        self._messages, theirs = os.pipe()
        os.set_blocking(self._messages, False)
        self._received = b""
        command = [sys.executable, "-m", "benchmarks.gpu.child", part.module, str(self._result)]
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [*command, json.dumps(part.settings), str(theirs)],
                cwd=ROOT,
                env=os.environ | {"PYTHONUNBUFFERED": "1"} | part.environment,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                pass_fds=[theirs],
                start_new_session=True,
            )
        os.close(theirs)
        self._started, self._paused_since, self._paused = time.monotonic(), None, 0.0

    def seconds(self, now: float) -> float:
        """Returns the seconds since the start in which the part was not stopped."""
        stopped = now - self._paused_since if self._paused_since else 0.0
        return now - self._started - self._paused - stopped

    def messages(self) -> list[str]:
        """Returns what the child has sent since the last call."""
        with contextlib.suppress(BlockingIOError):
            self._received += os.read(self._messages, 4096)
        *lines, self._received = self._received.split(b"\n")
        return [line.decode() for line in lines]

    def go(self) -> None:
        """Lets the child measure."""
        with contextlib.suppress(OSError):
            assert self.process.stdin
            self.process.stdin.write(f"{child.GO}\n".encode())
            self.process.stdin.flush()

    def pause(self) -> None:
        """Stops the child and its children."""
        self._paused_since = time.monotonic()
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Lets them go on."""
        if self._paused_since:
            self._paused += time.monotonic() - self._paused_since
            self._paused_since = None
            self._signal(signal.SIGCONT)

    def kill(self) -> None:
        """Ends the child and its children, if they still run."""
        if self.process.poll() is None:
            self._signal(signal.SIGKILL)
        with contextlib.suppress(ProcessLookupError, PermissionError):  # what the child has left behind
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        with contextlib.suppress(OSError):
            os.close(self._messages)
            assert self.process.stdin
            self.process.stdin.close()

    def _signal(self, number: signal.Signals) -> None:
        for process in reversed(family_of(self.process.pid)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, number)

    def rows(self) -> list[dict[str, Any]]:
        """Returns what the part has found so far."""
        return self._content().get("rows", [])

    def _content(self) -> dict[str, Any]:
        return json.loads(self._result.read_text()) if self._result.exists() else {}

    def outcome_of(self, code: int) -> tuple[str, str]:
        """Returns state and reason of a process that has ended with an exit code."""
        if code == 0:
            return "done", ""
        reason = self._content().get("error")
        if not reason:
            lines = self._log.read_text(errors="replace").strip().splitlines() or ["no output"]
            ended = signal.Signals(-code).name if code < 0 else f"exit code {code}"
            reason = f"{ended}: {lines[-1][:300]}"
        return ("skipped" if code == SKIPPED_CODE else "failed"), reason


def family_of(process: int) -> list[int]:
    """Returns the ids of a process and of all its descendants."""
    found = [process]
    for number in found:  # grows while it is read
        with contextlib.suppress(OSError):
            for task in Path(f"/proc/{number}/task").iterdir():
                found += map(int, (task / "children").read_text().split())
    return found
