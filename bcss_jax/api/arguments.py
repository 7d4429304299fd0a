"""Checks what is passed to the functions of the package, which the commands pass on from the command line."""

import contextlib
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bcss_jax.common.command import as_user_error
from bcss_jax.common.ranges import Range
from bcss_jax.errors import ConfigError, printable

PathLike = str | os.PathLike[str]


@contextlib.contextmanager
def user_errors() -> Iterator[None]:
    """Raises the errors that a user can correct as the classes of `bcss_jax.errors`, as the commands report them."""
    try:
        yield
    except Exception as error:
        known = as_user_error(error)
        if known is None or known is error:
            raise
        raise known from error


def as_paths(given: PathLike | Sequence[PathLike]) -> list[Path]:
    """Returns one path or several as a list."""
    return [Path(given)] if isinstance(given, str | os.PathLike) else [Path(each) for each in given]


def optional_path(given: PathLike | None) -> Path | None:
    """Returns a path, or None."""
    return None if given is None else Path(given)


def check_numbers(ranges: Mapping[str, Range], values: Mapping[str, Any]) -> None:
    """Raises ConfigError if a value that is not None is outside the range of its name."""
    for name, allowed in ranges.items():
        if values[name] is not None and values[name] not in allowed:
            raise ConfigError(f"--{name}={printable(str(values[name]))[:40]}: must be {allowed}")


def check_choice(name: str, value: Any, choices: Collection[str]) -> None:
    """Raises ConfigError if a value is not one of the choices."""
    if value not in choices:
        raise ConfigError(f"--{name}={printable(str(value))[:40]}: choose one of {', '.join(choices)}")
