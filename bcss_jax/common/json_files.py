"""Reads JSON files with errors of one line, and compares JSON values.

Every JSON file of this program is read by `read_json`, which checks what the file holds against a description of its
shape: a type such as `dict`, or a `TypedDict` whose fields have types and ranges (pydantic's).
"""

import functools
import json
import math
import os
from collections.abc import Callable
from typing import Any

import pydantic

from bcss_jax.common.regular_file import read_regular_file
from bcss_jax.errors import DataError, UserError, first_line, printable

SHOWN_CHARACTERS = 40  # longer values are left out of messages
SHOWN_DIFFERENCES = 20
MAX_DEPTH = 64  # of lists and objects in each other; what this program writes has fewer than ten
MAX_BYTES = 1 << 30  # of a file; parsed JSON takes ten times its size
MAX_INTEGER = 1 << 63  # NumPy and JAX have no larger integers


def read_json(
    path: str | os.PathLike,
    expected: str,
    remedy: str,
    *,
    kind: Any = object,
    finite: bool = True,
    error_type: type[UserError] = DataError,
) -> Any:
    """Reads a JSON file and checks its content.

    Args:
      path: of the file.
      expected: what the file should be, for the message, for example "the run's config as JSON".
      remedy: what the user can do about it, for the message.
      kind: shape of the content, see `check_shape`; every content if left out.
      finite: refuse NaN and infinities, which JSON does not have but Python reads.
      error_type: error to raise.

    Returns:
      The content as the file has it, with fields that the shape does not mention.

    Raises:
      DataError: or `error_type`: the file cannot be read, is not JSON, or holds something else.
    """
    content = read_regular_file(path, expected, remedy, max_bytes=MAX_BYTES, error_type=error_type)
    try:
        return parse_json(content, kind=kind, finite=finite)
    except ValueError as error:
        raise error_type(f"{printable(path)}: expected {expected}, found: {first_line(error)}; {remedy}") from error


def parse_json(content: bytes | str, *, kind: Any = object, finite: bool = True) -> Any:
    """Parses JSON and checks its content.

    Args:
      content: the JSON; bytes are UTF-8.
      kind: as in `read_json`.
      finite: as in `read_json`.

    Raises:
      ValueError: it is not JSON, an object has a key twice, or it has another shape; one line with what was found.
    """
    try:
        parsed = json.loads(content, object_pairs_hook=_object)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"no JSON ({first_line(error)})") from error
    check_shape(parsed, kind, finite=finite)
    return parsed


def check_shape(value: Any, kind: Any = object, *, finite: bool = True) -> None:
    """Checks parsed JSON against a description of its shape.

    Args:
      value: the JSON.
      kind: a type such as `dict` or `list[str]`, or a `typing_extensions.TypedDict`, whose fields may have ranges
        (`Annotated[int, pydantic.Field(ge=1)]`) and checks of several together (`pydantic.AfterValidator`). Types are
        strict: True is no number, "1" neither. Fields that it does not mention are allowed.
      finite: refuse NaN and infinities.

    Raises:
      ValueError: one line with what was found.
    """
    _check_values(value, finite)
    if kind is object:
        return
    try:
        _adapter(kind).validate_python(value, strict=True)
    except pydantic.ValidationError as error:
        raise ValueError(_describe(error.errors(include_url=False)[0], value)) from error


@functools.cache
def _adapter(kind: Any) -> pydantic.TypeAdapter:
    return pydantic.TypeAdapter(kind)


def _describe(error: Any, value: Any) -> str:
    """Returns the first of pydantic's errors as text."""
    where = ".".join(map(str, error["loc"]))
    where = where if where.isprintable() and len(where) <= 200 else ascii(where)[:200]
    if error["type"] == "value_error":  # of a check of several fields together
        return f"{where}: {error['ctx']['error']}" if where else str(error["ctx"]["error"])
    if not where:
        return f"a JSON value of type {type(value).__name__}"
    if error["type"] == "missing":
        return f"no field {where}"
    message = str(error["msg"])
    return f"{where} = {ascii(error['input'])[:SHOWN_CHARACTERS]}: {message[:1].lower()}{message[1:]}"


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Returns a JSON object. Raises ValueError if it has a key twice: which of the values holds is a guess."""
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {ascii(max(keys, key=keys.count))[:SHOWN_CHARACTERS]} twice in one object")
    return found


def _check_values(value: Any, finite: bool) -> None:
    """Raises ValueError for JSON that is nested too deeply or has numbers that no computation can use."""
    level = [value]
    for _ in range(MAX_DEPTH):
        inner = []
        for each in level:
            if isinstance(each, dict):
                inner.extend(each.values())
            elif isinstance(each, list):
                inner.extend(each)
            elif isinstance(each, float) and finite and not math.isfinite(each):
                raise ValueError(f"{each}, which is not a finite number")
            elif isinstance(each, int) and not -MAX_INTEGER <= each < MAX_INTEGER:
                raise ValueError("an integer of more than 64 bits")
        if not inner:
            return
        level = inner
    raise ValueError(f"values nested more than {MAX_DEPTH} deep")


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
        field = _printable(field)
        parts.append(f"{field}: {_printable(before)} -> {_printable(after)}" if short else field)
    return "; ".join(parts[:SHOWN_DIFFERENCES] + ["..."] * (len(parts) > SHOWN_DIFFERENCES))


def _printable(value: Any) -> str:
    text = str(value)
    text = text if text.isprintable() else ascii(text)
    return text if len(text) <= 3 * SHOWN_CHARACTERS else f"{text[: 3 * SHOWN_CHARACTERS]}.."
