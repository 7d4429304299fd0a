"""Reads npz files after a check of what they unpack to, so that a small file cannot fill the memory."""

import math
import os
import zipfile

import numpy as np

from bcss_jax.common.regular_file import check_regular_file
from bcss_jax.errors import DataError, UserError, first_line, printable

SMALL = 1 << 28  # bytes; what unpacks to no more than this is not refused for its size
MAX_RATIO = 20  # of the unpacked size to the size of the file; weights lose about a tenth when they are compressed
_HEADER_READERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


def read_npz(
    path: str | os.PathLike, expected: str, remedy: str, *, error_type: type[UserError] = DataError
) -> dict[str, np.ndarray]:
    """Reads all arrays of an npz file. Objects are never unpickled.

    Args:
      path: of the file.
      expected: what the file should be, for the message.
      remedy: what the user can do about it, for the message.
      error_type: error to raise.

    Raises:
      DataError: or `error_type`: the file cannot be read, is damaged, names an array twice, or unpacks to far more
        than its own size.
    """
    check_regular_file(path, expected, remedy, error_type=error_type)
    try:
        return unpack(path)
    except UserError:  # a request to stop is one
        raise
    except Exception as error:  # NumPy, zipfile and zlib raise many types for a damaged file
        raise error_type(f"{printable(path)}: expected {expected}, found: {first_line(error)}; {remedy}") from error


def unpack(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Returns all arrays of an npz file after the same checks; NumPy's and zipfile's errors stay as they are."""
    check_archive(path)
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            with archive.open(entry) as file:
                _check_header(file, entry)
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def check_archive(path: str | os.PathLike) -> None:
    """Checks the directory of a ZIP archive, without unpacking anything.

    Raises:
      ValueError: an entry occurs twice, or the entries are far larger than the file.
      zipfile.BadZipFile: it is no ZIP archive.
    """
    size = os.stat(path).st_size
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
    names = [entry.filename for entry in entries]
    if len(set(names)) < len(names):
        raise ValueError(f"an archive with two entries {ascii(max(names, key=names.count))[:80]}")
    unpacked = sum(entry.file_size for entry in entries)
    if unpacked > max(SMALL, MAX_RATIO * size):
        raise ValueError(f"an archive of {size} bytes that unpacks to {unpacked}")


def _check_header(file, entry: zipfile.ZipInfo) -> None:
    """Raises ValueError unless the array that a header describes has the size of its entry."""
    name = ascii(entry.filename)[:80]
    if not entry.filename.endswith(".npy"):
        raise ValueError(f"an archive with the entry {name}")
    version = np.lib.format.read_magic(file)
    if version not in _HEADER_READERS:
        raise ValueError(f"{name} in version {version} of NumPy's format")
    shape, _, dtype = _HEADER_READERS[version](file)
    if dtype.hasobject:
        raise ValueError(f"{name} with objects, which are never unpickled")
    if min(shape, default=0) < 0 or file.tell() + math.prod(shape) * dtype.itemsize != entry.file_size:
        raise ValueError(f"{name} of another size than its header states")
