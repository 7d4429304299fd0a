"""Ranges of numbers: what a setting of a run or an option of a command may be."""

import argparse
import dataclasses
import math
import numbers
from typing import Any


@dataclasses.dataclass(frozen=True)
class Range:
    """A range of finite numbers.

    Attributes:
      low: the smallest number.
      high: the largest number. Every range has one: beyond it memory or time would not suffice, or nothing changes.
      whole: only integers.
      above: `low` itself is not in the range.
      below: `high` itself is not in the range.
    """

    low: float
    high: float
    whole: bool = False
    above: bool = False
    below: bool = False

    def __contains__(self, value: Any) -> bool:
        """Returns whether a value is a number in the range; True, NaN and infinities are not."""
        kind = numbers.Integral if self.whole else numbers.Real
        if isinstance(value, bool) or not isinstance(value, kind):
            return False
        number: Any = value
        inside = self.low <= number <= self.high and math.isfinite(number)
        return inside and not (self.above and number == self.low) and not (self.below and number == self.high)

    def __str__(self) -> str:
        """Returns the range for a message, after "must be"."""
        kind = "a whole number " if self.whole else ""
        low = f"above {_text(self.low)}" if self.above else f"from {_text(self.low)}"
        high = f"to below {_text(self.high)}" if self.below else f"to {_text(self.high)}"
        return f"{kind}{low} {high}"

    def parse(self, text: str) -> Any:
        """Returns the number that a text states: the `type` of an option of argparse.

        Raises:
          argparse.ArgumentTypeError: it is no number in the range.
        """
        try:
            value = int(text) if self.whole else float(text)
        except ValueError:
            value = None
        if value not in self:
            shown = text if text.isprintable() else ascii(text)
            raise argparse.ArgumentTypeError(f"={shown[:40]}: must be {self}")  # after the option's name
        return value


def _text(number: float) -> str:
    return str(number) if isinstance(number, int) else f"{number:g}"


COUNT = Range(1, 1 << 16, whole=True)  # of images in a batch
PROCESSES = Range(1, 1024, whole=True)
WINDOW = Range(1, 4096, whole=True)  # side of a window or patch in pixels
