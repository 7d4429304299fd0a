"""Shows progress: steps done, rate, and remaining time."""

import html
import math
import sys
import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

FIRST_LINE_SECONDS = 60.0  # of a display that prints lines
LONGEST_WAIT_SECONDS = 1800.0  # between two lines
ESTIMATE_SECONDS = 5.0  # of work, before the remaining time can be told
NOTEBOOK_SECONDS = 0.5  # between two updates; a notebook redraws, and may save, each of them


class ProgressLine:
    """Shows a progress bar on a terminal, one line that changes in place in a notebook, and prints few lines elsewhere.

    Work that is done within a minute prints nothing where there is no terminal. Longer work prints a line as soon as
    its remaining time is known, others after 1, 2, 4, 8, ... minutes, at most half an hour apart, and one at its end.

    Rate and remaining time count the work of this session only, so a resumed run does not count work done before. They
    are measured from the first update on, because the first step may include the time of compiling.
    """

    def __init__(
        self,
        label: str,
        total: int,
        done: int = 0,
        first_seconds: float = FIRST_LINE_SECONDS,
        enabled: bool = True,
    ):
        """Starts the display.

        Args:
          label: printed before the numbers.
          total: number of steps, or of anything else that is counted.
          done: how many of them were done in earlier sessions.
          first_seconds: time before the first line, where there is no terminal; 0 prints a line at each update.
          enabled: False prints nothing.
        """
        self._label, self._total, self._done = label, total, done
        self._first_seconds, self._enabled = first_seconds, enabled
        self._start = time.perf_counter()
        self._measured_from = self._start, done
        self._updates = self._lines = 0
        self._next_line = first_seconds
        self._bar = None
        self._in_notebook = notebook_line() if enabled else None
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
        if not self._enabled:
            return
        now = time.perf_counter()
        since, before = self._measured_from
        rate = (done - before) / max(now - since, 1e-9)
        left = (self._total - done) / rate if rate else math.inf
        if self._updates == 0 and done < self._total:
            self._measured_from = now, done
        self._updates += 1
        what = f"{rate:.2f}/s, {duration(left)} left" if rate else ""
        note = ", ".join(filter(None, (what, note)))
        if self._in_notebook:
            self._in_notebook.show(f"{self._label} {done}/{self._total}  {note}", self._share())
        elif self._bar:
            self._bar.update(self._task, completed=done, note=note)
        elif self._is_due(now - self._start, now - since, left):
            self._lines += 1
            print(f"{self._label} {done}/{self._total}  {note}", flush=True)

    def _share(self) -> float:
        return self._done / self._total if self._total else 1.0

    def _is_due(self, elapsed: float, measured: float, left: float) -> bool:
        """Returns whether a line is to be printed, and sets the time of the next one."""
        if not self._first_seconds:
            return True
        if self._done == self._total:
            return False  # `close` tells it
        if elapsed >= self._next_line:
            self._next_line = min(2 * elapsed, elapsed + LONGEST_WAIT_SECONDS)
            return True
        known = self._updates > 1 and measured >= ESTIMATE_SECONDS
        return self._lines == 0 and known and self._first_seconds < left < math.inf

    def print(self, line: str) -> None:
        """Prints a permanent line."""
        if self._enabled:
            self._bar.console.print(line, highlight=False, markup=False, soft_wrap=True) if self._bar else print(
                line, flush=True
            )

    def close(self) -> None:
        """Ends the display: removes the bar, or says how long all of the work took if it was shown in lines."""
        if self._in_notebook:
            took = duration(time.perf_counter() - self._start)
            self._in_notebook.show(f"{self._label}: ended after {took}", None, at_once=True)
        elif self._bar:
            self._bar.stop()
        elif self._lines and self._done == self._total and self._first_seconds:
            took = duration(time.perf_counter() - self._start)
            print(f"{self._label} {self._done}/{self._total}  in {took}", flush=True)


class NotebookLine:
    """A bar and a text in the output of one cell of a notebook, which each call of `show` replaces.

    Attributes:
      cell: number of the execution that the line belongs to.
    """

    def __init__(self, cell: int):
        """Shows nothing yet."""
        self.cell, self._handle, self._shown = cell, None, -NOTEBOOK_SECONDS

    def show(self, text: str, share: float | None, at_once: bool = False) -> None:
        """Shows a state of the work, unless the last one was shown a moment ago.

        Args:
          text: one line.
          share: of the work that is done, 0 to 1; None shows no bar.
          at_once: show it in any case.
        """
        now = time.monotonic()
        if not at_once and now - self._shown < NOTEBOOK_SECONDS:
            return
        self._shown = now
        from IPython.display import HTML, display

        bar = ""
        if share is not None:
            bar = f'<progress value="{share:.4f}" max="1" style="width: 12em; vertical-align: middle"></progress> '
        content = HTML(f"<div>{bar}<code>{html.escape(text)}</code></div>")
        if self._handle is None:
            self._handle = display(content, display_id=True)
        else:
            self._handle.update(content)


_line: NotebookLine | None = None


def notebook_line() -> NotebookLine | None:
    """Returns the line of the cell that runs, the same one for all work within it; None outside a notebook."""
    global _line
    shell = _shell()
    if shell is None:
        return None
    if _line is None or _line.cell != shell.execution_count:
        _line = NotebookLine(shell.execution_count)
    return _line


def _shell() -> Any:
    """Returns IPython's shell if it shows its output in a notebook."""
    module = sys.modules.get("IPython")  # a notebook has imported it
    shell = module.get_ipython() if module else None
    return shell if shell is not None and hasattr(shell, "kernel") else None


def duration(seconds: float) -> str:
    """Returns a time as h:mm:ss or m:ss, for example 1:02:03 or 2:03."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
