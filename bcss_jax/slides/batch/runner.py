"""The slides of a list one after another: those that fail cost the others nothing, those in use elsewhere are tried last."""

import collections
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from bcss_jax.common.interruption import Interruption
from bcss_jax.errors import (
    DataError,
    InUseError,
    PartialError,
    Preempted,
    StorageError,
    UserError,
    first_line,
    printable,
)
from bcss_jax.slides.batch.slide_list import Entry


class Ended(NamedTuple):
    """What became of slides.

    Attributes:
      slides: how many there were.
      failures: those that failed, and why.
      busy: those that other processes are at work on.
    """

    slides: int
    failures: dict[Entry, UserError]
    busy: dict[Entry, InUseError]

    @property
    def done(self) -> int:
        """How many are done."""
        return self.slides - len(self.failures) - len(self.busy)


def segment_all(
    entries: list[Entry],
    work: Callable[[Entry, str], None],
    note: Callable[[Entry, UserError], None],
    after_slide: Callable[[], None],
    debug: bool,
    interruption: Interruption,
) -> Ended:
    """Works on all slides.

    Args:
      entries: the slides.
      work: does one; gets its place too, such as "3/20 ".
      note: keeps an error of which `work` has not kept anything.
      after_slide: called after each, however it ended.
      debug: let errors through that are no user's.
      interruption: active; tells when to stop.

    Raises:
      Preempted: asked to stop.
      StorageError: the next slide would fail too.
    """
    ended = Ended(len(entries), {}, {})
    waiting = collections.deque(enumerate(entries, 1))
    while waiting:
        number, entry = waiting.popleft()
        name = printable(entry.slide.name)
        if interruption.requested:
            raise Preempted(f"stopped before {name}; the same command goes on from there")
        was_busy = ended.busy.pop(entry, None)
        try:
            work(entry, f"{number}/{len(entries)} ")
        except InUseError as error:
            if was_busy is None:
                waiting.append((number, entry))  # once more when the others are done
            ended.busy[entry] = error
        except (Preempted, StorageError):
            raise
        except Exception as error:
            if debug and not isinstance(error, UserError):
                raise
            if not isinstance(error, UserError):
                error = DataError(f"{name}: {type(error).__name__}: {first_line(error)}; --debug shows where")
                note(entry, error)
            print(f"failed: {error}", file=sys.stderr, flush=True)
            ended.failures[entry] = error
        after_slide()
    return ended


def conclude(ended: Ended, table: Path) -> None:
    """Raises what a list ends with where not all of its slides are done: PartialError or Preempted.

    Args:
      ended: what became of them.
      table: file that says why.
    """
    affected = list(ended.failures or ended.busy)
    names = ", ".join(printable(entry.slide.name) for entry in affected[:5]) + (", ..." if len(affected) > 5 else "")
    if ended.failures:
        raise PartialError(
            f"{len(ended.failures)} of {ended.slides} slides failed ({names}); {table} says why, and the same command "
            "tries them again"
        )
    if ended.busy:
        raise Preempted(
            f"other processes are at work on {len(ended.busy)} of {ended.slides} slides ({names}); run the same command "
            "again to see them done"
        )
