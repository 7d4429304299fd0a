"""What a person sees while something runs: how far, how fast, how long still, and what it waits for."""

import sys
import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn


class ProgressLine:
    """A bar on a terminal; elsewhere a line every few seconds.

    Rate and remaining time are those of this session, so that a resumed run is not credited with work done before.
    """

    def __init__(self, label: str, total: int, done: int = 0, every_seconds: float = 10.0, enabled: bool = True):
        """`total` and `done` count the same thing, say steps; `enabled=False` prints nothing."""
        self._label, self._total, self._first, self._done = label, total, done, done
        self._every, self._enabled = every_seconds, enabled
        self._start = self._printed = time.perf_counter()
        self._bar = None
        if enabled and sys.stdout.isatty():
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[note]}"),
            )
            self._bar = Progress(*columns, console=Console(), transient=True)
            self._task = self._bar.add_task(label, total=total, completed=done, note="")
            self._bar.start()

    def update(self, done: int, note: str = "") -> None:
        """Shows that `done` of the total are done, and a short text."""
        self._done = done
        now = time.perf_counter()
        if not self._enabled:
            return
        rate = (done - self._first) / max(now - self._start, 1e-9)
        left = (self._total - done) / rate if rate else 0.0
        note = f"{rate:.2f}/s, {duration(left)} left{', ' if note else ''}{note}"
        if self._bar:
            self._bar.update(self._task, completed=done, note=note)
        elif now - self._printed >= self._every:
            self._printed = now
            print(f"{self._label} {done}/{self._total}  {note}", flush=True)

    def print(self, line: str) -> None:
        """Prints a line that stays."""
        if self._enabled:
            self._bar.console.print(line, highlight=False, markup=False, soft_wrap=True) if self._bar else print(
                line, flush=True
            )

    def close(self) -> None:
        """Takes the bar away."""
        if self._bar:
            self._bar.stop()


def duration(seconds: float) -> str:
    """1:02:03 or 2:03."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
