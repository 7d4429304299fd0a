"""Code for the start of a script that makes it run as if some packages were not installed."""

from collections.abc import Sequence


def without_modules(names: Sequence[str]) -> str:
    """Returns Python code after which importing the packages raises ModuleNotFoundError."""
    return f"""
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {tuple(names)}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Absent())
"""
