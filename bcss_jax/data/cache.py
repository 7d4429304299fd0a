"""Names the cache of prepared data after the files and options that it is made from."""

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path

from bcss_jax.errors import DataError, printable


def digest_of_files(options: dict, files: Iterable[Path], root: str | os.PathLike | None) -> str:
    """SHA-256 over the options and over name, size and modification time of every file.

    Args:
      options: JSON.
      files: in any order; one that does not exist counts as such.
      root: folder that their names are taken relative to, so that it may be mounted elsewhere.

    Raises:
      DataError: the state of a file cannot be read.
    """
    digest = hashlib.sha256(json.dumps(options, sort_keys=True).encode())
    for path in sorted(set(files)):
        try:
            status = path.stat()
            state = [status.st_size, status.st_mtime_ns]
        except FileNotFoundError:
            state = None
        except OSError as error:
            raise DataError(
                f"{printable(path)}: expected a readable file, found: {error.strerror}; check it"
            ) from error
        digest.update(json.dumps([os.path.relpath(path, root), state]).encode())
    return digest.hexdigest()
