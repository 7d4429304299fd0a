"""Stands in for pydantic on hosts that lack it, so that checkpoints and rows of labels can be written and read.

The package checks the shape of JSON files with pydantic. Here the files are the program's own, and are taken as they
are.
"""

import importlib.util
import sys
import types
from typing import Any


class TypeAdapter:
    """Accepts every value."""

    def __init__(self, kind: Any):
        """The kind is not looked at."""

    def validate_python(self, value: Any, **_: Any) -> Any:
        """Returns the value."""
        return value


class ValidationError(ValueError):
    """Never raised."""


def stand_in_for_pydantic() -> None:
    """Puts this stand-in in the place of pydantic if that is not installed. Call it before importing `bcss_jax`."""
    if "pydantic" in sys.modules or _is_installed():
        return
    module = types.ModuleType("pydantic")
    for name, value in {
        "TypeAdapter": TypeAdapter,
        "ValidationError": ValidationError,
        "Field": lambda *_, **__: None,
        "AfterValidator": lambda check: check,
    }.items():
        setattr(module, name, value)
    sys.modules["pydantic"] = module


def _is_installed() -> bool:
    try:
        return importlib.util.find_spec("pydantic") is not None
    except ModuleNotFoundError:
        return False
