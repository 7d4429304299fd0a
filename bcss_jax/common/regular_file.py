"""Paths of files that a user gives: what is not a regular file is refused before it is opened as one.

Opening a FIFO waits until something writes to it, and a device may be read without end.
"""

import os
import stat
from pathlib import Path

from bcss_jax.errors import DataError, UserError, printable

_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def check_regular_file(
    path: str | os.PathLike, expected: str, remedy: str, *, error_type: type[UserError] = DataError
) -> None:
    """Checks that an input file exists and is a regular file, or a link to one, without opening it.

    Args:
      path: of the file.
      expected: what the file should be, for the message, for example "a PNG, JPEG or TIFF file".
      remedy: what the user can do about it, for the message.
      error_type: error to raise.

    Raises:
      DataError: or `error_type`: there is no such file, it cannot be reached, or it is a folder, FIFO, socket or
        device.
    """
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        found = "no such file"
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        found = getattr(error, "strerror", None) or str(error)
    else:
        if stat.S_ISREG(mode):
            return
        found = next((name for is_kind, name in _KINDS if is_kind(mode)), "a special file")
    raise error_type(f"{printable(path)}: expected {expected}, found {found}; {remedy}")


def read_regular_file(
    path: str | os.PathLike,
    expected: str,
    remedy: str,
    *,
    max_bytes: int = 1 << 30,
    error_type: type[UserError] = DataError,
) -> bytes:
    """Returns the content of an input file after `check_regular_file`.

    Args:
      path: as the others, of `check_regular_file`.
      expected: what the file should be.
      remedy: what the user can do about it.
      max_bytes: larger files are refused before they are read.
      error_type: error to raise.

    Raises:
      DataError: or `error_type`: as `check_regular_file`, or the file cannot be read or is too large.
    """
    check_regular_file(path, expected, remedy, error_type=error_type)
    try:
        size = os.stat(path).st_size
        if size <= max_bytes:
            return Path(path).read_bytes()
        found = f"a file of {size} bytes (at most {max_bytes} are read)"
    except OSError as error:
        raise error_type(f"{printable(path)}: expected {expected}, found: {error.strerror}; {remedy}") from error
    raise error_type(f"{printable(path)}: expected {expected}, found {found}; {remedy}")


def real_path(path: str | os.PathLike, *, strict: bool = False) -> Path:
    """Returns the absolute path without links and `..`; a link that leads to itself stays as it is.

    `Path.resolve` raises a RuntimeError for such a link, which is not the OSError that callers expect.

    Args:
      path: of a file or folder.
      strict: raise OSError unless it exists.
    """
    return Path(os.path.realpath(path, strict=strict))
