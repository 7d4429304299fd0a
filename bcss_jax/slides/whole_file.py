"""Files that are too large to be held in memory, and yet written whole or not at all."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from bcss_jax.workdir import storage_errors


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Gives a temporary name beside the file to write to; what is there at the end gets to the disk and is renamed.

    If the block raises, the temporary file is deleted and the file stays as it was.

    Raises:
      StorageError: for an OSError in the block, or in what comes after it.
    """
    unfinished = path.with_name(f".{path.name}.tmp")
    with storage_errors(path):
        try:
            yield unfinished
            with open(unfinished, "rb") as file:
                os.fsync(file.fileno())
            os.replace(unfinished, path)
        except BaseException:
            with contextlib.suppress(OSError):
                unfinished.unlink()
            raise
