"""Says what the time between the start of a command and its first training step was spent on."""

import time


class StartClock:
    """Divides the time since its creation into named parts."""

    def __init__(self):
        """Starts the clock."""
        self._began = self._last = time.perf_counter()
        self._seconds: dict[str, float] = {}

    def lap(self, name: str) -> None:
        """Adds the time since the last call to the part `name`."""
        now = time.perf_counter()
        self._seconds[name] = self._seconds.get(name, 0.0) + now - self._last
        self._last = now

    def line(self) -> str:
        """Returns for example "first step after 9.8 s: imports 3.1, data 2.0, compiling 4.2, step 0.5"."""
        parts = ", ".join(f"{name} {seconds:.1f}" for name, seconds in self._seconds.items())
        return f"first step after {self._last - self._began:.1f} s: {parts}"


_current: StartClock | None = None


def begin() -> None:
    """Starts the clock of a command."""
    global _current
    _current = StartClock()


def current() -> StartClock:
    """Returns the clock that runs; starts one if there is none, as where training is called from Python."""
    if _current is None:
        begin()
    assert _current is not None
    return _current


def take() -> StartClock:
    """Returns the clock that runs; the next training has one of its own."""
    global _current
    clock, _current = current(), None
    return clock
