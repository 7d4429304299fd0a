"""Keeps compiled programs in the user's cache folder, so that the second start of a command does not compile.

JAX's compilation cache decides what is the same program: its key holds the program, the options of the compiler, the
versions of jax and jaxlib, XLA_FLAGS and the accelerators. This file decides where the programs are kept, because
JAX's own folder of files has four gaps:

* Its key does not hold the features of the CPU, and XLA runs a program that was compiled for another CPU after a
  warning; instructions that the CPU lacks then end the process. Here each kind of CPU has a folder of its own.
* A file that was cut off or changed is noticed by its compression only. Here each file begins with its SHA-256.
* Without a further library it grows without a limit. Here the programs that were used least recently are deleted.
* A folder that cannot be written gives a warning for each program. Here it is as if there were no cache.

`JAX_COMPILATION_CACHE_DIR` chooses JAX's own cache in another folder instead, and `JAX_ENABLE_COMPILATION_CACHE=false`
turns both off.
"""

import contextlib
import functools
import hashlib
import os
import platform
import sys
import tempfile
from pathlib import Path
from typing import Any

import jax
import jaxlib.version
from jax.experimental.compilation_cache import compilation_cache as public_cache

MAX_BYTES = 2 * 1024**3  # of all programs together
CHECKED_AFTER_BYTES = MAX_BYTES // 8  # written by a process, before it looks for old programs again
CPU_FILE = Path("/proc/cpuinfo")
_DIGEST = hashlib.sha256().digest_size
# What says which instructions a CPU has, in /proc/cpuinfo of x86-64 and of ARM.
_CPU_LINES = ("vendor_id", "cpu family", "model", "model name", "stepping", "flags", "Features")
_CPU_LINES += ("CPU implementer", "CPU architecture", "CPU variant", "CPU part")


def enable() -> str | None:
    """Turns the cache on and returns its folder, unless the user chose another one or none, or it cannot be used here.

    Call it before anything is compiled, and after `jax.distributed.initialize`: in a job of several processes there is
    no cache, because processes with and without a program in it would not start together.

    Returns:
      The folder where programs are kept, JAX's own if the user chose it; None if they are not kept.
    """
    settings: Any = jax.config  # its attributes are made at run time
    if not settings.jax_enable_compilation_cache:
        return None
    if settings.jax_compilation_cache_dir:
        return settings.jax_compilation_cache_dir
    if sys.platform != "linux" or jax.distributed.is_initialized():
        return None  # programs that were loaded have not been tested on other systems
    folder = _private_folder()
    if folder is None or not _connect():
        return None
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    # XLA would write its own files beside the programs, and fail where it cannot.
    jax.config.update("jax_persistent_cache_enable_xla_caches", "none")
    public_cache.reset_cache()  # whatever was compiled before has decided that there is none
    return str(folder)


def root() -> Path:
    """Returns the folder of the programs of all CPUs; it need not exist."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bcss_jax" / "compiled"


def _private_folder() -> Path | None:
    """Returns the folder for this CPU, which this user alone can write; None if there cannot be one.

    Whoever can write a compiled program can have it run.
    """
    try:
        folder = root() / _cpu()
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        stat = folder.stat()
        if stat.st_uid != os.getuid() or stat.st_mode & 0o022 or not os.access(folder, os.W_OK | os.X_OK):
            return None
    except (OSError, RuntimeError):  # RuntimeError: the user has no home
        return None
    return folder


@functools.cache
def _cpu() -> str:
    """Returns a name for all CPUs with the same instructions, as this jaxlib sees them."""
    lines = CPU_FILE.read_text(errors="replace").splitlines()
    features = sorted({line for line in lines if line.partition(":")[0].strip() in _CPU_LINES})
    described = "\n".join([platform.machine(), jaxlib.version.__version__, *features])
    return f"{platform.machine()}-{hashlib.sha256(described.encode()).hexdigest()[:16]}"


def _connect() -> bool:
    """Makes JAX keep its programs in a `CheckedFolder`. Returns whether this version of JAX can do that.

    JAX has no public way to do so. Where its modules are not as they were in 0.10 to 0.12, nothing is cached.
    """
    try:
        from jax._src import compilation_cache
        from jax._src.compilation_cache_interface import CacheInterface

        open_folder = compilation_cache.get_file_cache
    except (ImportError, AttributeError):
        return False
    if hasattr(open_folder, "of_bcss_jax"):
        return True

    class Folder(CheckedFolder, CacheInterface):
        """A `CheckedFolder` for JAX."""

    def get_file_cache(path):
        own = Path(path).is_relative_to(root())
        return (Folder(Path(path)), path) if own else open_folder(path)

    get_file_cache.of_bcss_jax = True  # pyright: ignore[reportFunctionMemberAccess]
    compilation_cache.get_file_cache = get_file_cache
    return True


class CheckedFolder:
    """Files with a digest, of which those that were used least recently are deleted. No method raises OSError."""

    def __init__(self, path: Path):
        """Stores the folder, which need not exist any more."""
        self._path, self._unchecked = path, CHECKED_AFTER_BYTES

    def get(self, key: str) -> bytes | None:
        """Returns what was put under the key; None if nothing was, or if it is damaged."""
        file = self._file(key)
        try:
            content = file.read_bytes()
            value = content[_DIGEST:]
            if content[:_DIGEST] != hashlib.sha256(value).digest():
                file.unlink()
                return None
            os.utime(file)
        except OSError:
            return None
        return value

    def put(self, key: str, value: bytes) -> None:
        """Keeps the value; does nothing if it cannot be written."""
        if len(value) > CHECKED_AFTER_BYTES:
            return
        with contextlib.suppress(OSError):
            self._unchecked += len(value)
            if self._unchecked > CHECKED_AFTER_BYTES:
                self._unchecked = 0
                _delete_oldest(self._path.parent, MAX_BYTES - CHECKED_AFTER_BYTES)
            handle, name = tempfile.mkstemp(dir=self._path, suffix=".new")
            try:
                with os.fdopen(handle, "wb") as file:
                    file.write(hashlib.sha256(value).digest() + value)
                os.replace(name, self._file(key))
            except BaseException:
                os.unlink(name)
                raise

    def _file(self, key: str) -> Path:
        return self._path / hashlib.sha256(key.encode()).hexdigest()[:40]


def _delete_oldest(folder: Path, max_bytes: int) -> None:
    """Deletes the least recently used files in the subfolders until the others have at most `max_bytes`."""
    files = []
    for path in folder.glob("*/*"):
        with contextlib.suppress(OSError):  # another process deleted it
            stat = path.stat()
            files.append((stat.st_mtime, stat.st_size, path))
    kept = 0
    for _, size, path in sorted(files, reverse=True):
        kept += size
        if kept > max_bytes:
            with contextlib.suppress(OSError):
                path.unlink()
