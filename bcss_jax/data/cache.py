"""A folder of prepared data: named after what it was made from, and made by one process while others wait."""

import contextlib
import fcntl
import hashlib
import json
import logging
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from bcss_jax.errors import DataError, printable

log = logging.getLogger(__name__)


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


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """Holds the lock on a prepared folder; the system frees it when the process ends, however it ends."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(folder.with_name(folder.name + ".lock"), "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.info("%s: another process is preparing it; waiting", folder)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
