"""Finds the config files that come with the package by their names, `unet` is configs/unet.py, and reads them."""

import difflib
import runpy
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bcss_jax.common.regular_file import check_regular_file
from bcss_jax.errors import ConfigError, UserError, printable

if TYPE_CHECKING:
    from ml_collections import ConfigDict

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


def load_config(name: str, changes: Mapping[str, Any] | None = None) -> "ConfigDict":
    """Returns the settings of a training run, as `--config=NAME --config.FIELD=VALUE` on the command line.

    Args:
      name: of a config of the package (`shipped_configs`), or the path of a config file, each optionally followed by
        `:LAYOUT` as in "unet:kaggle224,few".
      changes: name of a setting with dots, such as "data.dir" or "model.width" -> value.

    Raises:
      ConfigError: there is no such config, setting or value.
    """
    from bcss_jax.config import unknown_field  # here, because it imports JAX, which finding a config does not need

    path, colon, argument = find_config_file(name).partition(":")
    check_regular_file(path, "a config file", "try configs/unet.py", error_type=ConfigError)
    try:
        config = runpy.run_path(path)["get_config"](*[argument] if colon else [])
    except UserError:
        raise
    except Exception as error:  # the file is a program, which may raise anything
        message = " ".join(str(error).split())
        raise ConfigError(f"{printable(path)}: cannot be used: {type(error).__name__}: {message}") from error
    for field, value in (changes or {}).items():
        *folders, last = field.split(".")
        place: Any = config
        try:
            for folder in folders:
                place = place[folder]
            place[last]
        except (KeyError, TypeError, AttributeError) as error:
            raise ConfigError(unknown_field(config, field)) from error
        try:
            place[last] = value
        except (TypeError, ValueError) as error:
            raise ConfigError(
                f"--config.{field}={printable(str(value))[:60]}: {' '.join(str(error).split())}"
            ) from error
    return config
