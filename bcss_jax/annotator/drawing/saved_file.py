"""Saves a file again and again, whole each time, and never over what another program has written meanwhile."""

import contextlib
import errno
import fcntl
import hashlib
import os
from pathlib import Path

from bcss_jax.common import files
from bcss_jax.common.outputs import written_files
from bcss_jax.errors import ConfigError, InUseError, StorageError, printable

_CHECKED_BYTES = 1 << 30  # a larger file is not the one that was saved


class ChangedByAnother(Exception):
    """Raised when the file is not the one that was saved last."""


class SavedFile:
    """A file that belongs to this process as long as it is open: a hidden file beside it holds the lock."""

    def __init__(self, path: Path):
        """Locks the file, which need not exist.

        Raises:
          ConfigError: a link or a folder stands there.
          InUseError: another process annotates the same file.
          StorageError: the folder cannot be written.
        """
        self.path = path
        if path.is_symlink() or (path.exists() and not path.is_file()):
            raise written_files.foreign(path, "a link" if path.is_symlink() else "a folder or a special file")
        self._lock_path = path.with_name(f".{path.name}.lock")
        self._lock = self._locked()
        self._known = self._digest()

    def close(self) -> None:
        """Gives the file free."""
        with contextlib.suppress(OSError):
            os.unlink(self._lock_path)
        os.close(self._lock)

    @property
    def exists(self) -> bool:
        """Whether there was a file when it was opened, saved or adopted last."""
        return self._known is not None

    def save(self, content: bytes) -> None:
        """Replaces the file: a killed process leaves the old or the new one whole.

        Raises:
          ChangedByAnother: another program has written it since it was opened, saved or adopted last.
          StorageError: it cannot be written; what is there stays.
        """
        found = self._digest()
        if found not in (self._known, None):
            raise ChangedByAnother
        files.write_bytes(self.path, content, private=True)
        self._known = hashlib.sha256(content).digest()

    def adopt(self) -> Path:
        """Copies the file as it is now, so that `save` may replace it, and returns the path of the copy.

        Raises:
          StorageError: it cannot be copied; `save` does not replace it.
        """
        with files.storage_errors(self.path):
            content = self.path.read_bytes()
        kept = self._kept()
        files.write_bytes(kept, content, private=True)
        self._known = hashlib.sha256(content[:_CHECKED_BYTES]).digest()
        return kept

    def set_aside(self) -> Path:
        """Renames the file that another program has written, and returns its new path.

        Raises:
          StorageError: it cannot be renamed.
        """
        kept = self._kept()
        with files.storage_errors(self.path):
            os.rename(self.path, kept)
        self._known = None
        return kept

    def _kept(self) -> Path:
        """Returns a path beside the file that is free."""
        number = 1
        while os.path.lexists(kept := self.path.with_name(f"{self.path.name}.kept-{number}")):
            number += 1
        return kept

    def _digest(self) -> bytes | None:
        """Returns the digest of the file, None if there is none."""
        with files.storage_errors(self.path):
            try:
                with open(self.path, "rb") as file:
                    return hashlib.sha256(file.read(_CHECKED_BYTES)).digest()
            except FileNotFoundError:
                return None

    def _locked(self) -> int:
        while True:
            with files.storage_errors(self.path):
                try:
                    lock = written_files.open_own(self._lock_path)
                except OSError as error:
                    if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM, errno.ENOENT, errno.ENOTDIR):
                        raise self._unwritable(error) from error
                    raise
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                os.close(lock)
                if error.errno not in files.LOCKED_BY_ANOTHER:
                    raise StorageError(
                        f"{printable(self.path)}: cannot be locked ({error.strerror}): its file system does not "
                        "support locks; save to another one with --output"
                    ) from error
                raise InUseError(
                    f"{printable(self.path)}: in use by another process that annotates this slide; open its page in a "
                    "second browser instead, or give another --output"
                ) from error
            with contextlib.suppress(OSError):
                if os.path.samestat(os.stat(self._lock_path), os.fstat(lock)):
                    return lock
            os.close(lock)  # the process that held it has just removed it

    def _unwritable(self, error: OSError) -> StorageError | ConfigError:
        folder = self.path.parent
        if error.errno in (errno.ENOENT, errno.ENOTDIR) and not folder.is_dir():
            return ConfigError(f"{printable(self.path)}: expected a place in a folder that exists, found none; make it")
        return StorageError(
            f"{printable(folder)}: annotations cannot be written there ({error.strerror}); give a file in another "
            "folder with --output=FILE.geojson"
        )
