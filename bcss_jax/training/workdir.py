"""The folder of one run: one process at a time, one config for its whole life, no half-written files."""

import contextlib
import errno
import fcntl
import io
import json
import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from bcss_jax.errors import ConfigError, InUseError, StorageError

# All that a run writes into its folder, and so all that `--fresh` takes away.
OUTPUTS = (
    "checkpoints", "tensorboard", "config.json", "history.csv", "summary.json", "curves.png", "samples.png",
    "plans.json", "dataset.json", "dataset_fingerprint.json", "splits_final.json", "cross_validation.json",
    "postprocessing.json", "test", "fold_*",
)  # fmt: skip

HELD = (errno.EWOULDBLOCK, errno.EAGAIN)  # what flock says of a lock that another process has; all else is no such news


@contextlib.contextmanager
def locked(workdir: Path) -> Iterator[None]:
    """Holds the folder (made if need be) for this process; the lock goes with the process, however it ends.

    Raises:
      InUseError: another process is at work in it.
      StorageError: the folder cannot be made or written, or its file system knows no locks.
    """
    path = workdir / ".lock"
    with storage_errors(workdir):
        workdir.mkdir(parents=True, exist_ok=True)
        file = open(path, "a+b", buffering=0)  # nothing may be left to be written when a full disk closes it
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in HELD:
                raise StorageError(
                    f"{workdir}: cannot be locked ({error.strerror}): its file system offers no locks, which keep two "
                    "processes out of one folder; choose a folder on another one, or have it mounted with them (Lustre: "
                    "-o flock, NFS: with its lock service)"
                ) from error
            file.seek(0)
            holder = file.read().decode(errors="replace").strip() or "another process"
            raise InUseError(f"{workdir}: in use by {holder}; wait for it, or choose another folder") from error
        with storage_errors(path):
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}".encode())
        yield


def claim(workdir: Path, config: dict, fresh: bool) -> None:
    """Ties the folder to a config. A folder tied to an equal one is resumed, `fresh` empties it first.

    A run that has saved nothing yet has no claim: its settings may be mended.

    Raises:
      ConfigError: the folder is that of another config; the message says what differs. With `fresh`: what is there was
        not written by a run.
      StorageError: it cannot be written.
    """
    with storage_errors(workdir):
        if fresh:
            found = sorted(path.name for name in OUTPUTS for path in workdir.glob(name))
            if found and "config.json" not in found:
                raise ConfigError(
                    f"{workdir} holds {', '.join(found)} but no config.json, so no run; --fresh will not delete that"
                )
            for path in (workdir / name for name in found):
                shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    from bcss_jax.config import differences  # here, because it imports JAX, which the viewer does without

    path = workdir / "config.json"
    saved = any(any(workdir.glob(folder)) for folder in ("checkpoints/*[0-9]", "fold_*/checkpoints/*[0-9]"))
    begun = saved or (workdir / "history.csv").exists()
    if path.exists() and begun:
        try:
            old = json.loads(path.read_text())
        except ValueError as error:
            raise ConfigError(f"{path}: not readable as JSON ({error}); start over with --fresh") from error
        changed = differences(old, config)
        if changed:
            raise ConfigError(
                f"{workdir} holds a run of another config ({'; '.join(changed)}); "
                "use another --workdir, the same settings, or --fresh to delete that run"
            )
    write_text(path, json.dumps(config, indent=2, sort_keys=True) + "\n")


def write_text(path: Path, text: str) -> None:
    """Writes a file as UTF-8; whole or not at all, and errors, as `write_bytes`."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a file whole or not at all, and errors, as `whole_file`."""
    with whole_file(path) as unfinished:
        unfinished.write_bytes(content)


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


def write_png(path: Path, pixels: np.ndarray) -> None:
    """Writes an image, or labels as one channel, as PNG; whole or not at all, and errors, as `write_bytes`."""
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, format="PNG")
    write_bytes(path, content.getvalue())


@contextlib.contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turns the file system's errors into one line that names the file."""
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"{error.filename or path}: cannot be written ({error.strerror}); check space and permissions"
        ) from error
