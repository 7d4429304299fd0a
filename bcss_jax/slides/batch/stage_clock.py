"""How long the stages of a slide take that follow one another."""

import time


class StageClock:
    """Seconds of stages, from its making on.

    Attributes:
      seconds: by stage, of those that have ended; what runs beside them may be added.
    """

    def __init__(self):
        """Starts the first stage."""
        self.seconds, self._start = {}, time.perf_counter()
        self._last = self._start

    def lap(self, name: str) -> None:
        """Ends a stage, and starts the next."""
        now = time.perf_counter()
        self.seconds[name], self._last = now - self._last, now

    def total(self) -> float:
        """Since the beginning."""
        return time.perf_counter() - self._start
