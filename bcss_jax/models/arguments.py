"""Checks of the arguments that networks are built with and of the images that they are given."""

import numbers
from collections.abc import Sequence
from typing import Any

import jax

from bcss_jax.common.ranges import Range
from bcss_jax.errors import ConfigError

MOST = 1 << 16  # channels or pixels; more do not fit into any memory
MOST_LAYERS = 256  # after each other at one resolution
MOST_LEVELS = 16  # of resolution, each half of the one before


def is_count(value: Any) -> bool:
    """Returns whether a value is a positive integer that a network can have; True is not."""
    return value in Range(1, MOST, whole=True)


def check_counts(model: str, *, most: int = MOST, **values: Any) -> None:
    """Raises ConfigError for the first value that is not a positive integer of at most `most`."""
    for name, value in values.items():
        if value not in Range(1, most, whole=True):
            limit = f" of at most {most}" if isinstance(value, int) and value > most else ""
            raise ConfigError(f"{model}: {name} must be a positive integer{limit}, not {_short(value)}")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}.."


def check_counts_in(model: str, length: int | None, *, most: int = MOST, **values: Any) -> None:
    """Raises ConfigError for the first value that is not a sequence of positive integers.

    Args:
      model: name of the model, for the message.
      length: required length of each sequence; None: one to `MOST_LEVELS`.
      most: the largest integer.
      **values: the arguments by name.
    """
    for name, value in values.items():
        allowed = Range(1, most, whole=True)
        valid = isinstance(value, Sequence) and not isinstance(value, str) and all(v in allowed for v in value)
        if not valid or not 0 < len(value) <= MOST_LEVELS or (length and len(value) != length):
            number = f"{length} positive integers" if length else "one or more positive integers"
            raise ConfigError(f"{model}: {name} must be {number}, at most {most}, not {_short(value)}")


def check_fraction(model: str, *, allow_zero: bool, allow_one: bool, **values: Any) -> None:
    """Raises ConfigError for the first value that is not a number between 0 and 1."""
    for name, value in values.items():
        number = isinstance(value, numbers.Real) and not isinstance(value, bool)
        above = number and (float(value) >= 0 if allow_zero else float(value) > 0)
        below = number and (float(value) <= 1 if allow_one else float(value) < 1)
        if not above or not below:
            low, high = "at least" if allow_zero else "above", "at most" if allow_one else "below"
            raise ConfigError(f"{model}: {name} must be {low} 0 and {high} 1, not {value!r}")


def check_image_size(model: str, images: jax.Array, smallest: int, network: str, alternative: str = "") -> None:
    """Raises ConfigError if images are too small for a network.

    Args:
      model: name of the model, for the message.
      images: (N, H, W, C).
      smallest: number of pixels that height and width must have at least.
      network: what the images are too small for.
      alternative: another remedy than larger images, such as " or a smaller depth".
    """
    height, width = images.shape[1:3]
    if min(height, width) < smallest:
        raise ConfigError(
            f"{model}: {height}x{width} pixels are too few for {network}; use images of at least {smallest} pixels on "
            f"each side, here {max(height, smallest)}x{max(width, smallest)}{alternative}"
        )
