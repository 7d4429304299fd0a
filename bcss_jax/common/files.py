"""Writes files completely or not at all, locks folders, and turns storage errors into one line."""

import contextlib
import errno
import fcntl
import io
import logging
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image

from bcss_jax.common.interruption import safe_point
from bcss_jax.errors import InUseError, StorageError

LOCKED_BY_ANOTHER = (errno.EWOULDBLOCK, errno.EAGAIN)  # other errors of flock do not mean that
LOCK_SECONDS = 0.1  # between two tries to get a lock that another process holds
log = logging.getLogger(__name__)


@contextlib.contextmanager
def locked(workdir: Path) -> Iterator[None]:
    """Locks a folder for this process. The folder is made if necessary, and the lock ends with the process.

    Raises:
      InUseError: another process has locked the folder.
      StorageError: the folder cannot be made or written, or its file system does not support locks.
    """
    path = workdir / ".lock"
    with storage_errors(workdir):
        workdir.mkdir(parents=True, exist_ok=True)
        file = open(path, "a+b", buffering=0)  # unbuffered, so that closing it on a full disk cannot fail
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in LOCKED_BY_ANOTHER:
                raise StorageError(
                    f"{workdir}: cannot be locked ({error.strerror}): its file system does not support locks, which "
                    "keep two processes from using one folder; choose a folder on another one, or mount it with locks "
                    "(Lustre: -o flock, NFS: with its lock service)"
                ) from error
            file.seek(0)
            holder = file.read().decode(errors="replace").strip() or "another process"
            raise InUseError(f"{workdir}: in use by {holder}; wait for it, or choose another folder") from error
        with storage_errors(path):
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}".encode())
        yield


@contextlib.contextmanager
def wait_for_lock(path: Path, *, required: bool = True) -> Iterator[None]:
    """Holds a lock for this process, and waits while another process holds it. The lock ends with the process.

    Args:
      path: what the lock protects. The lock file is `PATH.lock` next to it; its folder is made if necessary.
      required: False to wait without a log line, and to continue without a lock if the file system has no locks.

    Raises:
      OSError: the lock file cannot be written, or the file system has no locks (only if `required`).
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path.with_name(path.name + ".lock"), "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if required:
                log.info("%s: another process is preparing it; waiting", path)
            _wait_for_flock(file)
        except OSError:
            if required:
                raise
        yield


def _wait_for_flock(file: IO) -> None:
    """Locks a file as soon as no other process does. A blocking call would hide a request to stop."""
    while True:
        safe_point("stopped while another process held a lock; run the same command again")
        time.sleep(LOCK_SECONDS)
        with contextlib.suppress(BlockingIOError):
            return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def write_text(path: Path, text: str) -> None:
    """Writes text as UTF-8, completely or not at all. Raises errors as `whole_file`."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a file completely or not at all. Raises errors as `whole_file`."""
    with whole_file(path) as unfinished:
        unfinished.write_bytes(content)


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yields the path of a temporary file, which replaces the file at the end of the block.

    The content is flushed to the disk first. If the block raises an error, the temporary file is deleted and the file
    stays as it was.

    Raises:
      StorageError: an OSError was raised in the block or while the file was replaced.
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


def write_png(path: Path, pixels: np.ndarray) -> None:
    """Writes an image, or labels as one channel, as PNG, completely or not at all. Raises errors as `whole_file`."""
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, format="PNG")
    write_bytes(path, content.getvalue())


@contextlib.contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turns an OSError in the block into a StorageError of one line that names the file."""
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"{error.filename or path}: cannot be written ({error.strerror}); check space and permissions"
        ) from error


def portable_stem(path: Path) -> str:
    """Returns a file's name without its suffix, as a portable name: the name of a slide's folder of results."""
    return portable_name(path.name.removesuffix(path.suffix))


def portable_name(name: str) -> str:
    """Returns the name with every character replaced that some file system does not allow."""
    name = "".join(
        c if c.isprintable() and c not in '/\\:*?"<>|' else "_" for c in name.encode(errors="replace").decode()
    )
    return name.strip(". ")[:120] or "slide"
