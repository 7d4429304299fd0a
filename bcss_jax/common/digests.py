"""SHA-256 of the files of a folder, written beside them, so that damage shows before they are used."""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from bcss_jax.common.files import write_text
from bcss_jax.common.json_files import read_json
from bcss_jax.errors import DataError, printable

NAME = "digests.json"
_REMEDY = "the folder is damaged"


def sha256_of(content: bytes) -> str:
    """Returns the SHA-256 of bytes, in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def sha256_of_file(path: str | os.PathLike) -> str:
    """Returns the SHA-256 of the content of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of_files(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """Returns the SHA-256 of files by their name in the folder. Threads share the work, because hashing is free of
    the interpreter's lock.
    """  # noqa: D205
    names = list(names)
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        return dict(zip(names, pool.map(lambda name: sha256_of_file(folder / name), names), strict=True))


def files_in(folder: Path) -> list[str]:
    """Returns the sorted relative names of all files in a folder, also of links, without hidden files.

    File systems and desktops leave hidden files in folders that they copy or show.
    """
    found = []
    for parent, _, names in os.walk(folder):
        found += [Path(parent, name).relative_to(folder).as_posix() for name in names if not name.startswith(".")]
    return sorted(found)


def write_digests(folder: Path, sha256: Mapping[str, str]) -> None:
    """Writes the digests of a folder.

    Args:
      folder: gets `NAME`.
      sha256: relative name of a file -> its SHA-256.

    Raises:
      StorageError: they cannot be written.
    """
    write_text(folder / NAME, json.dumps({"sha256": dict(sorted(sha256.items()))}, indent=1) + "\n")


def read_digests(folder: Path) -> dict[str, str] | None:
    """Returns the digests of a folder, relative name -> SHA-256; None if it has none.

    Raises:
      DataError: the file of digests is damaged.
    """
    path = folder / NAME
    if not os.path.lexists(path):
        return None
    found = read_json(path, "the digests of a folder", _REMEDY, kind=dict).get("sha256")
    if not isinstance(found, dict) or not all(isinstance(value, str) for value in found.values()):
        raise DataError(f"{printable(path)}: expected a SHA-256 for each file, found something else; {_REMEDY}")
    return found


def differing(expected: Mapping[str, str], found: Mapping[str, str]) -> str | None:
    """Compares digests. Returns the first difference as text, or None.

    Args:
      expected: name -> SHA-256, as they were written.
      found: those of today's files.
    """
    for name in sorted(expected.keys() | found.keys()):
        if name not in found:
            return f"{name} is missing"
        if name not in expected:
            return f"{printable(name)} was added"
        if expected[name] != found[name]:
            return f"{name} has another content than was written (SHA-256)"
    return None
