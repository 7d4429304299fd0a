"""SHA-256 of the files of a folder, written beside them, so that damage shows before they are used."""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from typing_extensions import TypedDict

from bcss_jax.common.files import write_text
from bcss_jax.common.json_files import read_json
from bcss_jax.common.regular_file import check_regular_file
from bcss_jax.errors import printable

NAME = "digests.json"
_REMEDY = "the folder is damaged"
_PART = 1 << 24  # bytes that are read at once


class _Digests(TypedDict):
    """Content of `NAME`: relative name -> SHA-256."""

    sha256: dict[str, str]


def sha256_of(content: bytes) -> str:
    """Returns the SHA-256 of bytes, in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def sha256_of_json(content: object) -> str:
    """Returns the SHA-256 of JSON, whatever the order of its keys and its white space."""
    return sha256_of(json.dumps(content, sort_keys=True).encode())


def sha256_of_file(path: str | os.PathLike) -> str:
    """Returns the SHA-256 of the content of a file, in hexadecimal.

    Raises:
      DataError: it is no regular file.
      OSError: it cannot be read.
    """
    check_regular_file(path, "a file with digests", _REMEDY)
    digest = hashlib.sha256()
    with open(path, "rb", buffering=0) as file:
        # Large parts, because after each one a thread waits for the interpreter's lock, which others may hold.
        part = memoryview(bytearray(max(1, min(os.fstat(file.fileno()).st_size, _PART))))
        while count := file.readinto(part):
            digest.update(part[:count])
    return digest.hexdigest()


def sha256_of_files(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """Returns the SHA-256 of files by their name in the folder. Threads share the work. Raises as `sha256_of_file`."""
    names = list(names)  # hashing does not hold the interpreter's lock
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
    write_text(folder / NAME, json.dumps({"sha256": dict(sorted(sha256.items()))}, indent=1) + "\n", private=True)


def read_digests(folder: Path) -> dict[str, str] | None:
    """Returns the digests of a folder, relative name -> SHA-256; None if it has none.

    Raises:
      DataError: the file of digests is damaged.
    """
    path = folder / NAME
    if not os.path.lexists(path):
        return None
    return read_json(path, "the SHA-256 of each file", _REMEDY, kind=_Digests)["sha256"]


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


def write_text_with_digest(path: Path, text: str) -> None:
    """Writes a file and, before it, its SHA-256 in the form of sha256sum as `PATH.sha256`. Errors as `write_text`."""
    write_text(_beside(path), f"{sha256_of(text.encode())}  {path.name}\n", private=True)
    write_text(path, text, private=True)


def is_as_written(path: Path) -> bool:
    """Returns whether a file is as `write_text_with_digest` wrote it; True if it has no digest, as earlier ones."""
    beside = _beside(path)
    if not os.path.lexists(beside):
        return True
    check_regular_file(beside, "a SHA-256", "delete it")
    return beside.read_bytes() == f"{sha256_of_file(path)}  {path.name}\n".encode()


def _beside(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")
