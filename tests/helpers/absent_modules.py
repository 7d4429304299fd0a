"""Code for the start of a script that makes it run as if some packages were not installed."""

from collections.abc import Sequence


def without_modules(names: Sequence[str]) -> str:
    """Returns Python code after which the packages are neither found nor imported, as where they are not installed."""
    return f"""
import sys
from importlib.machinery import PathFinder

_find_spec = PathFinder.find_spec

def _find_other_spec(name, path=None, target=None):
    return None if name.split(".")[0] in {tuple(names)} else _find_spec(name, path, target)

PathFinder.find_spec = _find_other_spec
"""
