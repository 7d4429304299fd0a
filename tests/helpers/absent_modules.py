"""Code for the start of a script that makes it run as if some packages were not installed."""

from collections.abc import Sequence


def without_modules(names: Sequence[str]) -> str:
    """Returns Python code after which the packages are neither found nor imported, as where they are not installed."""
    return f"""
import sys

class _Without:
    # Every finder, because packages that are installed from a checkout have one of their own.
    def __init__(self, finder):
        self._finder = finder

    def find_spec(self, name, path=None, target=None):
        return None if name.split(".")[0] in {tuple(names)} else self._finder.find_spec(name, path, target)

    def __getattr__(self, name):
        return getattr(self._finder, name)

sys.meta_path[:] = map(_Without, sys.meta_path)
"""
