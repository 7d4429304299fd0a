"""The child process of a part: runs it, and writes what it has found whenever there is more.

    python -m benchmarks.gpu.child MODULE RESULT_FILE SETTINGS MESSAGES

MESSAGES is the number of an open pipe. A part that measures times asks through it to be the only one that runs, and
waits for the answer on standard input.
"""

import contextlib
import ctypes
import importlib
import json
import os
import signal
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

QUIET, DONE, GO = "quiet", "done", "go"


class Report:
    """What a part has found.

    Attributes:
      rows: of a table, each a dict from the name of a column to a number, text or bool.
    """

    def __init__(self, path: Path, messages: int | None = None):
        """Writes nothing yet; `messages` is the pipe to the parent, None if there is none."""
        self.rows: list[dict[str, Any]] = []
        self._path, self._messages = path, messages

    def add(self, **row: Any) -> None:
        """Adds a row and writes the file."""
        self.rows.append(row)
        self.write()

    def write(self, error: str | None = None) -> None:
        """Writes all rows, and the error that ended the part."""
        text = json.dumps({"rows": self.rows, "error": error}, default=float, indent=1)
        partial = self._path.with_suffix(".partial")
        partial.write_text(text)
        partial.replace(self._path)

    @contextlib.contextmanager
    def quiet(self) -> Iterator[None]:
        """Waits until all other parts stand still, and lets them go on at the end."""
        if self._messages is None:
            yield
            return
        self._send(QUIET)
        if sys.stdin.readline().strip() != GO:
            raise RuntimeError("the parent process is gone")
        try:
            yield
        finally:
            self._send(DONE)

    def _send(self, message: str) -> None:
        os.write(self._messages or 0, f"{message}\n".encode())


class Skipped(Exception):
    """Raised by a part that cannot run here; the message says why."""


def main(argv: list[str]) -> int:
    """Runs a part. Returns the exit code."""
    module, path, settings, messages = argv
    _die_with_parent()
    from benchmarks.gpu.stand_ins import stand_in_for_pydantic

    stand_in_for_pydantic()
    report = Report(Path(path), int(messages))
    try:
        importlib.import_module(f"benchmarks.gpu.{module}").run(report, **json.loads(settings))
    except Exception as error:
        lines = str(error).strip().splitlines() or [""]
        skipped = type(error).__name__ == Skipped.__name__  # this file is also the module __main__
        report.write(("" if skipped else f"{type(error).__name__}: ") + lines[0][:300])
        traceback.print_exc()
        return 77 if skipped else 1
    report.write()
    return 0


def _die_with_parent() -> None:
    """Asks Linux to kill this process when its parent ends, however that ends."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
