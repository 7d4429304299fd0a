"""Names the cache of prepared data after the files and options that it is made from, and marks who decoded them.

The name depends on files and options alone, so that a run's record of its data stays comparable. What is derived from
files with a palette, an orientation, inverted gray or the like may have been decoded by a version with other rules; a
mark in the folder tells whether it was.
"""

import contextlib
import hashlib
import json
import logging
import os
from collections.abc import Iterable
from pathlib import Path

from bcss_jax.common.interruption import safe_point
from bcss_jax.data.decoding.open_image import open_image
from bcss_jax.data.mask_codes import needs_table
from bcss_jax.errors import DataError, printable

DECODER = "2"  # raise it if image files are decoded by other rules, and say in `_is_plain` which ones are not
_MARK = ".decoder"
log = logging.getLogger(__name__)


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


def is_decoded_as_today(folder: Path, files: Iterable[Path]) -> bool:
    """Returns whether prepared data hold what their files are decoded to today; if so, the folder is marked.

    Args:
      folder: of the prepared data.
      files: images and masks that they were made from. If the folder has no such mark, their headers are read.
    """
    mark = folder / _MARK
    if mark.is_file() and mark.read_bytes() == DECODER.encode():
        return True
    if not all(_is_plain(path) for path in sorted(set(files))):
        log.warning(
            "%s: prepared by another version, which may have read palettes, orientations or inverted gray by other "
            "rules; prepared anew",
            printable(folder),
        )
        return False
    with contextlib.suppress(OSError):  # a folder that may only be read
        mark_decoder(folder)
    return True


def mark_decoder(folder: Path) -> None:
    """Notes in a folder of prepared data that today's rules of decoding made them. Raises OSError."""
    (folder / _MARK).write_text(DECODER)


def _is_plain(path: Path) -> bool:
    """Returns whether all versions decode a file alike."""
    safe_point()
    try:
        stored = open_image(path)
    except DataError:
        return False
    return stored.orientation == 1 and not needs_table(stored)
