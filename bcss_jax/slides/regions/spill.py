"""Keeps arrays in a temporary file, so that they do not take memory."""

import errno
import os
import tempfile
from pathlib import Path

import numpy as np


class Spill:
    """A temporary file without a name, which the system deletes when the process ends in any way.

    On a file system that does not support unnamed files, the file has a name for a moment, which starts with `prefix`.
    """

    def __init__(self, folder: Path, prefix: str):
        """Opens the file in the folder; raises an OSError if the folder cannot be written."""
        self._file = tempfile.TemporaryFile(dir=folder, prefix=prefix, buffering=1 << 20)
        self._written = self._readable = 0

    def put(self, array: np.ndarray) -> int:
        """Appends an int32 array and returns its position in bytes; raises an OSError if the disk is full."""
        start = self._written
        self._written += self._file.write(np.ascontiguousarray(array, np.int32).view(np.uint8).ravel().data)
        return start

    def get(self, start: int, count: int) -> np.ndarray:
        """Returns the `count` numbers that start at a position in bytes: int32 [count]."""
        if self._readable < start + 4 * count:
            self._file.flush()
            self._readable = self._written
        content = os.pread(self._file.fileno(), 4 * count, start)
        if len(content) != 4 * count:
            raise OSError(errno.EIO, "a temporary file is shorter than what was written to it")
        return np.frombuffer(content, np.int32)

    def close(self) -> None:
        """Closes the file, which frees its space."""
        self._file.close()
