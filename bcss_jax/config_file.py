"""Finds the config files that come with the package by their names: `unet` is configs/unet.py."""

import difflib
from pathlib import Path

from bcss_jax.errors import ConfigError, printable

_PACKAGE = Path(__file__).parent
# An installed package has them inside, a checkout beside it.
FOLDER = _PACKAGE / "configs" if (_PACKAGE / "configs").is_dir() else _PACKAGE.parent / "configs"


def shipped_configs() -> list[str]:
    """Returns the names of the config files that come with the package, sorted."""
    return sorted(path.stem for path in FOLDER.glob("*.py"))


def find_config_file(given: str) -> str:
    """Returns a value of --config with the name of a config file replaced by its path.

    Args:
      given: NAME, PATH.py, or one of them followed by `:ARGUMENT`. A file of that name comes before a config of the
        package, and what looks like a path (with a slash or `.py`) is returned as it is.

    Raises:
      ConfigError: neither a file nor a config of the package has the name.
    """
    path, colon, argument = given.partition(":")
    if not path or "/" in path or path.endswith(".py") or Path(path).is_file():
        return given
    names = shipped_configs()
    if path not in names:
        near = difflib.get_close_matches(path, names, 1)
        meant = f"did you mean {near[0]}? The others are" if near else "choose one of"
        others = ", ".join(name for name in names if name not in near)
        raise ConfigError(
            f"--config={printable(path)}: expected a config file or the name of one of the package, found neither; "
            f"{meant} {others}"
        )
    return f"{FOLDER / path}.py{colon}{argument}"
