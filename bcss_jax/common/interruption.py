"""Signals that ask a run to save and go: SIGTERM (preemption), SIGUSR1 (a scheduler's time limit), Ctrl-C."""

import signal
import sys

import jax
import numpy as np
from jax.experimental import multihost_utils

from bcss_jax.errors import Preempted

STEPS_BETWEEN_AGREEMENTS = 10  # asking the other processes holds up the devices


class Interruption:
    """Takes the signals over, as a context manager.

    Until `begin` there is nothing to save and a signal raises `Preempted` at once; after it the signal is noted for the
    loop to act on. A second Ctrl-C ends the process at once.
    """

    def __enter__(self):
        """Takes the signals over."""
        self.requested = self._begun = False
        self._before = {s: signal.signal(s, self._note) for s in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)}
        return self

    def __exit__(self, *exception):
        """Gives them back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def begin(self) -> None:
        """From now on a signal is only noted."""
        self._begun = True

    def _note(self, number, frame):
        if not self._begun:
            raise Preempted("stopped before anything was computed; the same command starts again")
        if not self.requested:
            print("asked to stop: saving after this step", file=sys.stderr, flush=True)
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
