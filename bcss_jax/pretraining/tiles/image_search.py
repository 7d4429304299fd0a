"""Finds the images below some folders, without those that the user excludes."""

import fnmatch
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from bcss_jax.data.image_files import SUFFIXES
from bcss_jax.data.image_folder import is_hidden
from bcss_jax.errors import ConfigError, DataError, printable

T = TypeVar("T")


def find_images(
    folders: Sequence[Path], exclude: Sequence[str] = (), suffixes: Sequence[str] = SUFFIXES
) -> tuple[list[tuple[str, Path]], int]:
    """Lists the images below some folders.

    Args:
      folders: searched to any depth; links to folders are followed.
      exclude: patterns as of a shell (`*`, `?`). An image is left out if a pattern occurs in its path below the folder,
        such as TCGA-A2-A3XX for all images of a patient.
      suffixes: endings of images, in lower case.

    Returns:
      Name (the path below its folder, with slashes) and path of each image, sorted in each folder; and how many images
      were excluded.

    Raises:
      DataError: a folder does not exist or cannot be read, or no image is found or left.
      ConfigError: a pattern excludes nothing, so that it may be misspelled.
    """
    found = [pair for folder in folders for pair in _below(folder, suffixes)]
    where = ", ".join(printable(folder) for folder in folders)
    if not found:
        raise DataError(
            f"{where}: expected images ({', '.join(suffix[1:] for suffix in suffixes)}) in this folder or below it, "
            "found none; correct the path"
        )
    left = without_excluded(found, exclude, where)
    return left, len(found) - len(left)


def without_excluded(found: list[tuple[str, T]], exclude: Sequence[str], where: str) -> list[tuple[str, T]]:
    """Returns the pairs of a name and something else whose names match none of the patterns; see `find_images`.

    Raises:
      DataError: nothing is left.
      ConfigError: a pattern excludes nothing.
    """
    excluded: set[str] = set()
    for pattern in exclude:
        matching = {name for name, _ in found if fnmatch.fnmatchcase(name, f"*{pattern}*")}
        if not matching:
            raise ConfigError(
                f"exclude: expected a part of the path of at least one file of {where}, found {pattern!r}, which is in "
                "none; correct it, or leave it out"
            )
        excluded |= matching
    left = [(name, what) for name, what in found if name not in excluded]
    if not left:
        raise DataError(f"{where}: expected files to be left, found {len(found)}, all excluded; exclude less")
    return left


def _below(folder: Path, suffixes: Sequence[str]) -> Iterator[tuple[str, Path]]:
    def refuse(error: OSError) -> None:
        reason = "no such folder" if isinstance(error, FileNotFoundError) else error.strerror or str(error)
        raise DataError(
            f"{printable(error.filename or folder)}: expected a readable folder of images, found: {reason}; correct "
            "the path"
        ) from error

    seen = set()
    for here, below, files in os.walk(folder, onerror=refuse, followlinks=True):
        real = os.path.realpath(here)
        if real in seen:  # links in a circle, or to a folder that was searched already
            below.clear()
            continue
        seen.add(real)
        below[:] = sorted(name for name in below if not is_hidden(name))
        for name in sorted(files):
            path = Path(here, name)
            if not is_hidden(name) and path.suffix.lower() in suffixes:
                yield path.relative_to(folder).as_posix(), path
