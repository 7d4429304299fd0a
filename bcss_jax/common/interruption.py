"""Handles the signals that ask a run to save and stop.

They are SIGTERM (preemption), SIGUSR1 (time limit of a scheduler) and Ctrl-C.
"""

import signal
import sys

import jax
import numpy as np
from jax.experimental import multihost_utils

from bcss_jax.errors import Preempted

STEPS_BETWEEN_AGREEMENTS = 10  # exchanging with the other processes makes the devices wait


class Interruption:
    """A context manager that handles the signals.

    Before `begin` is called there is nothing to save, and a signal raises `Preempted` immediately. Afterwards a signal
    only sets `requested`, which the loop checks. A second Ctrl-C ends the process immediately.
    """

    def __enter__(self):
        """Installs the signal handlers."""
        self.requested = self._begun = False
        self._before = {s: signal.signal(s, self._note) for s in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)}
        return self

    def __exit__(self, *exception):
        """Restores the previous signal handlers."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def begin(self) -> None:
        """Makes signals set `requested` from now on, instead of raising `Preempted`."""
        self._begun = True

    def _note(self, number, frame):
        if not self._begun:
            raise Preempted("stopped before anything was computed; the same command starts again")
        if not self.requested:
            print("stop requested: saving after this step", file=sys.stderr, flush=True)
        self.requested = True
        if number == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def agreed(self, step: int) -> bool:
        """Returns whether any process was asked to stop. All processes get the same answer at the same step."""
        if jax.process_count() == 1:
            return self.requested
        if step % STEPS_BETWEEN_AGREEMENTS:
            return False
        return bool(multihost_utils.process_allgather(np.asarray(self.requested)).any())
