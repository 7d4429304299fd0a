"""Signals that ask a run to save and go: SIGTERM (preemption), SIGUSR1 (a scheduler's time limit), Ctrl-C."""

import signal

import jax
import numpy as np
from jax.experimental import multihost_utils

STEPS_BETWEEN_AGREEMENTS = 10  # asking the other processes holds up the devices


class Interruption:
    """Notes the signals, as a context manager. A second Ctrl-C ends the process at once."""

    def __enter__(self):
        """Takes the signals over."""
        self.requested = False
        self._before = {s: signal.signal(s, self._note) for s in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)}
        return self

    def __exit__(self, *exception):
        """Gives them back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number, frame):
        self.requested = True
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def agreed(self, step: int) -> bool:
        """Whether any process was asked to stop; the same answer in all of them at the same step."""
        if jax.process_count() == 1:
            return self.requested
        if step % STEPS_BETWEEN_AGREEMENTS:
            return False
        return bool(multihost_utils.process_allgather(np.asarray(self.requested)).any())
