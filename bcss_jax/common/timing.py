"""Adds up what the time went into."""

import contextlib
import time
from collections.abc import Iterator


class Stopwatch:
    """Base of dataclasses whose attributes are seconds."""

    @contextlib.contextmanager
    def counted(self, what: str) -> Iterator[None]:
        """Adds the time within to one of the attributes."""
        start = time.perf_counter()
        try:
            yield
        finally:
            setattr(self, what, getattr(self, what) + time.perf_counter() - start)
