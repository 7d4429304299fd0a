"""Runs through the slides of a list.

A slide that fails does not stop the others. A slide in use is tried again last.
"""

import collections
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from bcss_jax.common.interruption import Interruption
from bcss_jax.errors import (
    DataError,
    InUseError,
    NumericalError,
    PartialError,
    Preempted,
    StorageError,
    UserError,
    first_line,
    printable,
)
from bcss_jax.slides.batch.slide_list import Entry


class BatchOutcome(NamedTuple):
    """How the slides of a list ended.

    Attributes:
      slides: how many there are.
      failures: those that failed, with the error.
      busy: those that other processes are working on.
    """

    slides: int
    failures: dict[Entry, UserError]
    busy: dict[Entry, InUseError]

    @property
    def done(self) -> int:
        """How many slides are done."""
        return self.slides - len(self.failures) - len(self.busy)


def segment_all(
    entries: list[Entry],
    segment: Callable[[Entry, str], None],
    write_failure: Callable[[Entry, UserError], None],
    after_slide: Callable[[], None],
    debug: bool,
    interruption: Interruption,
) -> BatchOutcome:
    """Segments all slides.

    Args:
      entries: the slides.
      segment: called for each slide, with its position in the list, for example "3/20 ".
      write_failure: called for an error that `segment` has not written down itself.
      after_slide: called after each slide, however it ended.
      debug: do not catch errors other than UserError.
      interruption: active; tells when to stop.

    Raises:
      Preempted: asked to stop.
      StorageError: the next slide would fail too.
      NumericalError: the network is not usable, so its output for other slides cannot be trusted.
    """
    outcome = BatchOutcome(len(entries), {}, {})
    waiting = collections.deque(enumerate(entries, 1))
    while waiting:
        number, entry = waiting.popleft()
        name = printable(entry.slide.name)
        if interruption.requested:
            raise Preempted(f"stopped before {name}; the same command resumes from there")
        was_busy = outcome.busy.pop(entry, None)
        try:
            segment(entry, f"{number}/{len(entries)} ")
        except InUseError as error:
            if was_busy is None:
                waiting.append((number, entry))  # tried again after the others
            outcome.busy[entry] = error
        except (StorageError, NumericalError):
            raise
        except Exception as error:
            if debug and not isinstance(error, UserError):
                raise
            if not isinstance(error, UserError):
                error = DataError(
                    f"{name}: {type(error).__name__}: {first_line(error)}; --debug shows where it was raised"
                )
                write_failure(entry, error)
            print(f"failed: {error}", file=sys.stderr, flush=True)
            outcome.failures[entry] = error
        after_slide()
    return outcome


def raise_unless_done(outcome: BatchOutcome, table: Path) -> None:
    """Raises PartialError or Preempted unless all slides of the list are done.

    Args:
      outcome: how the slides ended.
      table: the file that states the reasons.
    """
    affected = list(outcome.failures or outcome.busy)
    names = ", ".join(printable(entry.slide.name) for entry in affected[:5]) + (", ..." if len(affected) > 5 else "")
    if outcome.failures:
        raise PartialError(
            f"{len(outcome.failures)} of {outcome.slides} slides failed ({names}); {table} lists the reasons; run the "
            "same command again to retry them"
        )
    if outcome.busy:
        raise Preempted(
            f"other processes are working on {len(outcome.busy)} of {outcome.slides} slides ({names}); run the same "
            "command again when they have finished"
        )
