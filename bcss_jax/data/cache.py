"""Names the cache of prepared data after the files and options that it is made from."""

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path

from bcss_jax.common.interruption import safe_point
from bcss_jax.errors import DataError, printable


def digest_of_files(options: dict, files: Iterable[Path], root: str | os.PathLike | None) -> str:
    """Returns the SHA-256 of the options and of the name, size and modification time of every file.

    Args:
      options: JSON object.
      files: in any order. A missing file counts as missing.
      root: folder that the names are relative to, so that the data may be mounted elsewhere.

    Raises:
      DataError: the size and time of a file cannot be read.
    """
    digest = hashlib.sha256(json.dumps(options, sort_keys=True).encode())
    for path in sorted(set(files)):
        safe_point()
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
