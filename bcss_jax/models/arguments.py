"""Checks of the arguments that networks are built with."""

import numbers
from collections.abc import Sequence

from bcss_jax.errors import ConfigError


def is_count(value) -> bool:
    """Whether it is a positive integer (True is none)."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool) and value > 0


def check_counts(model: str, **values) -> None:
    """Raises ConfigError for the first value that is no positive integer."""
    for name, value in values.items():
        if not is_count(value):
            raise ConfigError(f"{model}: {name} must be a positive integer, not {value!r}")


def check_counts_in(model: str, length: int | None, **values) -> None:
    """Raises ConfigError for the first value that is no sequence of `length` positive integers (None: one or more)."""
    for name, value in values.items():
        sound = isinstance(value, Sequence) and not isinstance(value, str) and all(is_count(v) for v in value)
        if not sound or not value or (length and len(value) != length):
            number = f"{length} positive integers" if length else "positive integers, one or more"
            raise ConfigError(f"{model}: {name} must be {number}, not {value!r}")


def check_share(model: str, *, zero: bool, one: bool, **values) -> None:
    """Raises ConfigError for the first value that does not lie between 0 and 1; the flags say which ends are allowed."""
    for name, value in values.items():
        number = isinstance(value, numbers.Real) and not isinstance(value, bool)
        if not number or not (0 <= value if zero else 0 < value) or not (value <= 1 if one else value < 1):
            low, high = "at least" if zero else "above", "at most" if one else "below"
            raise ConfigError(f"{model}: {name} must be {low} 0 and {high} 1, not {value!r}")
