"""Refuses outputs that are inputs, before anything is computed."""

import os
from collections.abc import Iterable
from pathlib import Path

from bcss_jax.common.regular_file import real_path
from bcss_jax.errors import ConfigError, printable

Keys = set[str | tuple[int, int]]


def refuse_inputs(
    option: str,
    root: Path,
    inputs: Iterable[tuple[str, Path]],
    *,
    parts: Iterable[Path] = (),
    data_folders: Iterable[tuple[str, Path]] = (),
) -> None:
    """Checks that a command writes nothing where it reads. Links, `..` and other names of one file are seen through.

    Args:
      option: that names the output, for the message, for example "--out".
      root: the file or folder of the output.
      inputs: option and path of every file and folder that is read.
      parts: files and folders that the command writes or deletes inside `root`.
      data_folders: option and path of folders of images, in which no output may lie either.

    Raises:
      ConfigError: an output is an input, or an input lies in a part of the output, or the output in a data folder.
    """
    parts, data_folders = list(parts), list(data_folders)
    inner = {key: path for path in parts for key in _keys(path)}
    written = inner | dict.fromkeys(_keys(root), root)
    for name, path in (*inputs, *data_folders):
        above = (key for parent in real_path(path).parents for key in _keys(parent))
        key = next((key for key in _keys(path) if key in written), None) or next((k for k in above if k in inner), None)
        if key is not None:
            what = "is" if written[key] is root else f"would replace {printable(written[key])}, which is"
            raise ConfigError(f"{option}={printable(root)}: {what} {name}, an input of this command; {_REMEDY}")
    around = {key for parent in real_path(root).parents for key in _keys(parent)}
    for name, folder in data_folders:
        if around & _keys(folder):
            raise ConfigError(f"{option}={printable(root)}: lies in {name}, whose files are read; {_REMEDY}")


_REMEDY = "choose another place for the results"


def _keys(path: Path) -> Keys:
    """Returns what a file or folder is recognized by: its path without links, and, if it exists, its number."""
    keys: Keys = {os.fspath(real_path(path))}
    try:
        status = os.stat(path)
    except OSError:
        return keys
    return keys | {(status.st_dev, status.st_ino)}
