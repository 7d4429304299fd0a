"""Writes files completely or not at all, locks folders, and turns storage errors into one line."""

import contextlib
import errno
import fcntl
import hashlib
import io
import logging
import os
import re
import secrets
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image

from bcss_jax.common.interruption import safe_point
from bcss_jax.common.outputs import written_files
from bcss_jax.errors import ConfigError, InUseError, StorageError, UserError, first_line, printable

LOCKED_BY_ANOTHER = (errno.EWOULDBLOCK, errno.EAGAIN)  # other errors of flock do not mean that
_OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS)
LOCK_SECONDS = 0.1  # between two tries to get a lock that another process holds
log = logging.getLogger(__name__)


@contextlib.contextmanager
def locked(workdir: Path) -> Iterator[None]:
    """Locks a folder for this process. The folder is made if necessary, and the lock ends with the process.

    Raises:
      InUseError: another process has locked the folder.
      ConfigError: the lock file is a link, or a file of something else.
      StorageError: the folder cannot be made or written, or its file system does not support locks.
    """
    path = workdir / written_files.RECORD
    with storage_errors(workdir):
        workdir.mkdir(parents=True, exist_ok=True)
        file = written_files.open_own(path)
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in LOCKED_BY_ANOTHER:
                raise StorageError(
                    f"{workdir}: cannot be locked ({error.strerror}): its file system does not support locks, which "
                    "keep two processes from using one folder; choose a folder on another one, or mount it with locks "
                    "(Lustre: -o flock, NFS: with its lock service)"
                ) from error
            holder = written_files.holder(file) or "another process"
            raise InUseError(f"{workdir}: in use by {holder}; wait for it, or choose another folder") from error
        written_files.check_record(path, file)
        with storage_errors(path):
            written_files.set_holder(file, f"process {os.getpid()} on {socket.gethostname()}")
        yield
    finally:
        os.close(file)


@contextlib.contextmanager
def wait_for_lock(path: Path, *, required: bool = True) -> Iterator[None]:
    """Holds a lock for this process, and waits while another process holds it. The lock ends with the process.

    Args:
      path: what the lock protects. The lock file is `PATH.lock` next to it; its folder is made if necessary.
      required: False to wait without a log line, and to continue without a lock if the file system has no locks.

    Raises:
      ConfigError: the lock file is a link.
      OSError: the lock file cannot be written, or the file system has no locks (only if `required`).
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with os.fdopen(written_files.open_own(path.with_name(path.name + ".lock")), "rb") as file:
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


def write_text(path: Path, text: str, *, private: bool = False) -> None:
    """Writes text as UTF-8, completely or not at all. Raises errors as `whole_file`."""
    write_bytes(path, text.encode(), private=private)


def write_bytes(path: Path, content: bytes, *, private: bool = False) -> None:
    """Writes a file completely or not at all. Raises errors as `whole_file`."""
    with whole_file(path, private=private) as unfinished:
        unfinished.write_bytes(content)


@contextlib.contextmanager
def whole_file(path: Path, *, private: bool = False) -> Iterator[Path]:
    """Yields the path of a temporary file, which replaces the file at the end of the block.

    Content, folder and the record of `written_files` are flushed to the disk. If the block raises an error, the
    temporary file is deleted and the file stays as it was. Temporary files of killed processes are deleted.

    Args:
      path: of the file. What stands there is replaced only if this program wrote it; see `written_files`.
      private: the folder is one that only this program knows (a cache, or work in progress): nothing is recorded, and
        a file is replaced.

    Raises:
      ConfigError: a file that this program did not write stands there, or a link.
      StorageError: an OSError was raised in the block or while the file was replaced.
    """
    path = Path(path)
    with storage_errors(path):
        if not private:
            written_files.check([path])
        _delete_unfinished(path)
        unfinished = path.with_name(f"{_unfinished_prefix(path)}{secrets.token_hex(8)}.tmp")
        held = os.open(unfinished, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        try:
            with contextlib.suppress(OSError):  # without locks, temporary files of killed processes stay
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield unfinished
            sync(unfinished)
            if not private:
                written_files.keep_if_changed(path)
                written_files.add(path, written_files.content_of(unfinished))
            os.replace(unfinished, path)
            sync(path.parent)
        except BaseException:
            with contextlib.suppress(OSError):
                unfinished.unlink()
            raise
        finally:
            os.close(held)


def _unfinished_prefix(path: Path) -> str:
    name = path.name
    if len(os.fsencode(name)) > 200:  # file systems allow 255 bytes
        name = hashlib.sha256(os.fsencode(name)).hexdigest()
    return f".{name}."


def _delete_unfinished(path: Path) -> None:
    """Deletes the temporary files of `path` whose process has ended: nobody holds the lock on them."""
    prefix = _unfinished_prefix(path)
    with os.scandir(path.parent) as entries:
        names = [each.name for each in entries if each.name.startswith(prefix)]
    for name in names:
        if re.fullmatch(r"[0-9a-f]{16}\.tmp", name.removeprefix(prefix)):
            with contextlib.suppress(OSError):
                file = os.open(path.with_name(name), os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    os.unlink(path.with_name(name))
                finally:
                    os.close(file)


def sync(path: Path) -> None:
    """Flushes a file, or the names in a folder, to the disk; raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # a file system that cannot flush folders
            raise
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Flushes all files of a folder and its subfolders to the disk, for a folder that is renamed when it is complete.

    Raises:
      OSError: they cannot be flushed.
    """
    for parent, _, names in os.walk(folder, topdown=False):
        for name in names:
            sync(Path(parent, name))
        sync(Path(parent))


def write_png(path: Path, pixels: np.ndarray) -> None:
    """Writes an image, or labels as one channel, as PNG, completely or not at all. Raises errors as `whole_file`."""
    write_bytes(path, png_of(pixels))


def png_of(pixels: np.ndarray) -> bytes:
    """Returns an image, or labels as one channel, as PNG."""
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, format="PNG")
    return content.getvalue()


@contextlib.contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turns an OSError in the block into an error of one line that names the file.

    Libraries that find the disk full may raise errors of any type while they handle that.

    Raises:
      ConfigError: a file stands where a folder would be made, or a folder where a file would be written.
      StorageError: any other OSError was raised.
    """
    try:
        yield
    except Exception as error:
        found = error if isinstance(error, OSError) else _disk_error_behind(error)
        if found is None:
            raise
        refuse_wrong_kind(Path(found.filename) if isinstance(found.filename, str) else path, found)
        reason = found.strerror or first_line(found)
        raise StorageError(
            f"{found.filename or path}: cannot be written ({reason}); check space and permissions"
        ) from error


def _disk_error_behind(error: BaseException) -> OSError | None:
    """Returns the OSError of a full or broken disk that was being handled when another error was raised, or None."""
    if isinstance(error, UserError):
        return None
    while error.__context__ is not None:
        error = error.__context__
        if isinstance(error, OSError) and error.errno in _OF_THE_DISK:
            return error
    return None


def refuse_wrong_kind(path: Path, error: OSError) -> None:
    """Raises ConfigError if an error means that a file stands in the place of a folder, or a folder in that of a file.

    Args:
      path: that the error is about.
      error: raised by the operating system.
    """
    if error.errno == errno.EISDIR:
        raise ConfigError(f"{printable(path)}: expected a file, found a folder; choose another name") from error
    if error.errno in (errno.ENOTDIR, errno.EEXIST):
        found = next((each for each in (path, *path.parents) if os.path.lexists(each)), path)
        what = "a link that leads nowhere" if found.is_symlink() and not found.exists() else "a file"
        if not found.is_dir() and not written_files.is_hidden_own(found.name):
            raise ConfigError(
                f"{printable(found)}: expected a folder for what is written, found {what}; choose another name"
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
