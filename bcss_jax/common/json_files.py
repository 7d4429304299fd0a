"""Reads JSON files with errors of one line, and compares JSON values."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bcss_jax.errors import DataError, UserError, first_line, printable

SHOWN_CHARACTERS = 40  # longer values are left out of messages


def read_json(
    path: str | os.PathLike, expected: str, remedy: str, *, kind: type = object, error_type: type[UserError] = DataError
) -> Any:
    """Reads a JSON file.

    Args:
      path: of the file.
      expected: what the file should be, for the message, for example "the run's config as JSON".
      remedy: what the user can do about it, for the message.
      kind: type of the content, for example `dict`; every type if left out.
      error_type: error to raise.

    Raises:
      DataError: or `error_type`: the file cannot be read, is not JSON, or holds another type.
    """
    try:
        content = json.loads(Path(path).read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        found = error.strerror if isinstance(error, OSError) else f"no JSON ({first_line(error)})"
        raise error_type(f"{printable(path)}: expected {expected}, found: {found}; {remedy}") from error
    if not isinstance(content, kind):
        found = f"a JSON value of type {type(content).__name__}"
        raise error_type(f"{printable(path)}: expected {expected}, found: {found}; {remedy}")
    return content


def as_json(value: Any, other: Callable[[Any], Any] | None = None) -> Any:
    """Returns a copy of the value as it would come back from a JSON file: tuples become lists.

    Args:
      value: JSON, and what `other` turns into JSON.
      other: is called with values that JSON does not have. None: they raise TypeError.
    """
    return json.loads(json.dumps(value, default=other))


def differences(
    old: dict, new: dict, *, defaults: dict | None = None, missing: Any = None, prefix: str = ""
) -> dict[str, tuple[Any, Any]]:
    """Returns the fields in which two JSON objects differ.

    Args:
      old: may hold objects, whose fields are compared one by one.
      new: like `old`.
      defaults: values of the fields that `old` lacks.
      missing: value of a field that an object lacks and that has no default.
      prefix: written before each name.

    Returns:
      {dotted name of the field: (its value in `old`, its value in `new`)}, in alphabetical order at each level.
    """
    found, defaults = {}, defaults or {}
    for key in sorted(old.keys() | new.keys()):
        before, after = old.get(key, defaults.get(key, missing)), new.get(key, missing)
        if isinstance(before, dict) and isinstance(after, dict):
            inner = defaults.get(key)
            inner = inner if isinstance(inner, dict) else None
            found |= differences(before, after, defaults=inner, missing=missing, prefix=f"{prefix}{key}.")
        elif before != after:
            found[prefix + key] = before, after
    return found


def describe_differences(found: dict[str, tuple[Any, Any]]) -> str:
    """Returns what `differences` found for a message: `field: old -> new; ...`, without values that are long."""
    parts = []
    for field, (before, after) in found.items():
        short = max(len(str(before)), len(str(after))) < SHOWN_CHARACTERS
        parts.append(f"{field}: {before} -> {after}" if short else field)
    return "; ".join(parts)


def file_holds(path: Path, content: Any) -> bool:
    """Returns whether a JSON file, which is no link, has this content, however it is formatted."""
    try:
        return not path.is_symlink() and path.is_file() and json.loads(path.read_bytes()) == as_json(content)
    except (OSError, ValueError, RecursionError):
        return False
