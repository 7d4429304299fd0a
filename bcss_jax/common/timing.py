"""Measures how long the parts of a command take: stopwatches, stages, and runs of several sessions."""

import contextlib
import dataclasses
import time
from collections.abc import Iterable, Iterator
from typing import Generic, TypeVar


class Stopwatch:
    """Base class of dataclasses whose attributes are seconds."""

    @contextlib.contextmanager
    def counted(self, what: str) -> Iterator[None]:
        """Adds the time that the block takes to the attribute `what`."""
        start = time.perf_counter()
        try:
            yield
        finally:
            setattr(self, what, getattr(self, what) + time.perf_counter() - start)


class StageClock:
    """Measures the stages of a command, one after another.

    Attributes:
      seconds: stage -> seconds, for the stages that have ended. Callers may add work that runs in parallel.
    """

    def __init__(self):
        """Starts the first stage."""
        self.seconds, self._start = {}, time.perf_counter()
        self._last = self._start

    def lap(self, name: str) -> None:
        """Ends the current stage under this name and starts the next."""
        now = time.perf_counter()
        self.seconds[name], self._last = now - self._last, now

    def total(self) -> float:
        """Returns the seconds since the first stage started."""
        return time.perf_counter() - self._start


@dataclasses.dataclass
class Timed:
    """Measures the time that a run takes over all its sessions.

    Attributes:
      seconds: time so far.
    """

    seconds: float = 0.0

    def __post_init__(self):
        """Starts the clock of this session."""
        self._clock = time.perf_counter()

    def tick(self) -> float:
        """Adds the time since the last tick to `seconds`, and returns `seconds`."""
        now = time.perf_counter()
        self.seconds += now - self._clock
        self._clock = now
        return self.seconds


T = TypeVar("T")


class InputWait(Generic[T]):
    """Iterator over `items` that measures how long its consumer waits for them.

    Attributes:
      seconds: time spent waiting so far.
    """

    def __init__(self, items: Iterable[T]):
        """Wraps `items`."""
        self.seconds = 0.0
        self._items = iter(items)

    def __iter__(self) -> Iterator[T]:
        """Returns itself."""
        return self

    def __next__(self) -> T:
        """Returns the next item and adds the wait for it to `seconds`."""
        start = time.perf_counter()
        try:
            return next(self._items)
        finally:
            self.seconds += time.perf_counter() - start
