"""Arrays put aside in a temporary file, so that memory does not grow with them."""

import errno
import os
import tempfile
from pathlib import Path

import numpy as np


class Spill:
    """A file without a name, which the system takes away with the process, however that ends.

    Where a file system knows no such files it has one for a moment, which begins with `prefix`.
    """

    def __init__(self, folder: Path, prefix: str):
        """Opens it in the folder; OSError if that cannot be written."""
        self._file = tempfile.TemporaryFile(dir=folder, prefix=prefix, buffering=1 << 20)
        self._written = self._readable = 0

    def put(self, array: np.ndarray) -> int:
        """Puts an int32 array at the end; returns where it begins, in bytes. OSError if the disk is full."""
        start = self._written
        self._written += self._file.write(np.ascontiguousarray(array, np.int32).view(np.uint8).ravel().data)
        return start

    def get(self, start: int, count: int) -> np.ndarray:
        """int32 [count], those from there on."""
        if self._readable < start + 4 * count:
            self._file.flush()
            self._readable = self._written
        content = os.pread(self._file.fileno(), 4 * count, start)
        if len(content) != 4 * count:
            raise OSError(errno.EIO, "a temporary file is shorter than what was written to it")
        return np.frombuffer(content, np.int32)

    def close(self) -> None:
        """Gives the space back."""
        self._file.close()
