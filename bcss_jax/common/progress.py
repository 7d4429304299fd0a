"""Shows progress: steps done, rate, and remaining time."""

import sys
import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn


class ProgressLine:
    """Shows a progress bar on a terminal, and prints a line every few seconds elsewhere.

    Rate and remaining time count the work of this session only, so a resumed run does not count work done before.
    """

    def __init__(self, label: str, total: int, done: int = 0, every_seconds: float = 10.0, enabled: bool = True):
        """Starts the display.

        Args:
          label: printed before the numbers.
          total: number of steps, or of anything else that is counted.
          done: how many of them were done in earlier sessions.
          every_seconds: time between two lines, where there is no terminal.
          enabled: False prints nothing.
        """
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
        """Shows the number of steps done and a short text."""
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
        """Prints a permanent line."""
        if self._enabled:
            self._bar.console.print(line, highlight=False, markup=False, soft_wrap=True) if self._bar else print(
                line, flush=True
            )

    def close(self) -> None:
        """Removes the bar."""
        if self._bar:
            self._bar.stop()


def duration(seconds: float) -> str:
    """Returns a time as h:mm:ss or m:ss, for example 1:02:03 or 2:03."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
