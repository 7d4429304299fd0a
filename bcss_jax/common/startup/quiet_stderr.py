"""Keeps lines that libraries in C++ write to standard error from being shown."""

import contextlib
import os
import re
import sys
import tempfile
import threading
from collections.abc import Iterator

_LOCK = threading.RLock()  # two redirections of one descriptor, ended in the wrong order, would lose it


@contextlib.contextmanager
def lines_dropped(noise: re.Pattern[bytes]) -> Iterator[None]:
    """Drops lines from file descriptor 2 within the block; all others are written when the block ends.

    Args:
      noise: matches the beginning of a line that is dropped.
    """
    with _LOCK:
        _flush()
        try:
            held, stderr = tempfile.TemporaryFile(), os.fdopen(os.dup(2), "wb")
        except OSError:  # no standard error, or no place for a temporary file: the lines are shown
            yield
            return
        with held, stderr:
            os.dup2(held.fileno(), 2)
            try:
                yield
            finally:
                _flush()
                os.dup2(stderr.fileno(), 2)
                held.seek(0)
                stderr.writelines(line for line in held if not noise.match(line))


def _flush() -> None:
    if sys.stderr is not None:
        sys.stderr.flush()
