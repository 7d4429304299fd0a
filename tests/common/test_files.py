"""Locks of folders: who holds one, how others wait, and what a file system without locks looks like."""

import errno
import fcntl
import os
import resource
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from helpers.paths import ROOT

from bcss_jax.common import files
from bcss_jax.errors import ConfigError, InUseError, StorageError

HOLDER = """
import sys
from pathlib import Path
from bcss_jax.common import files
with files.locked(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def fails_with(number):
    def flock(*_):
        raise OSError(number, os.strerror(number))

    return flock


def test_a_folder_is_held_by_one_process_and_free_after_it(tmp_path):
    folder = tmp_path / "runs" / "a"
    command = [sys.executable, "-c", HOLDER, str(folder)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(InUseError, match=rf"a: in use by process {other.pid} on .*; wait for it"):
            with files.locked(folder):
                pass
        other.stdin.close()
    for _ in range(2):
        with files.locked(folder):
            assert (folder / ".lock").read_text().startswith(f"process {os.getpid()} on ")


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EIO])
def test_a_file_system_without_locks_is_not_taken_for_a_folder_in_use(tmp_path, monkeypatch, number):
    """Exit code 75 would make a scheduler queue the command again forever."""
    monkeypatch.setattr(fcntl, "flock", fails_with(number))
    with pytest.raises(StorageError) as error:
        with files.locked(tmp_path):
            raise AssertionError("the folder is not locked")
    assert not isinstance(error.value, InUseError) and error.value.exit_code == 5
    assert str(error.value).startswith(f"{tmp_path}: cannot be locked ({os.strerror(number)})")
    assert "-o flock" in str(error.value) and "choose a folder on another one" in str(error.value)


def test_a_lock_that_another_has_is_in_use_without_a_name_too(tmp_path, monkeypatch):
    monkeypatch.setattr(fcntl, "flock", fails_with(errno.EWOULDBLOCK))
    with pytest.raises(InUseError, match="in use by another process"):
        with files.locked(tmp_path):
            pass


def test_a_disk_that_takes_nothing_is_one_line(tmp_path):
    """A full disk behaves like this: the first bytes that are written are those of the lock."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        with pytest.raises(StorageError, match=r"\.lock: cannot be written \(File too large\)"):
            with files.locked(tmp_path):
                raise AssertionError("the folder is not locked")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_lock_is_waited_for_and_the_wait_is_noted(tmp_path, caplog):
    caplog.set_level("INFO", "bcss_jax")
    with open(tmp_path / "cache.lock", "w") as held, ThreadPoolExecutor(1) as thread:
        fcntl.flock(held, fcntl.LOCK_EX)

        def wait():
            with files.wait_for_lock(tmp_path / "cache"):
                return True

        waiting = thread.submit(wait)
        with pytest.raises(TimeoutError):
            waiting.result(0.3)
        fcntl.flock(held, fcntl.LOCK_UN)
        assert waiting.result(10)
    assert "cache: another process is preparing it; waiting" in caplog.text


def test_a_lock_that_is_not_required_is_left_out_where_there_is_none(tmp_path, monkeypatch):
    monkeypatch.setattr(fcntl, "flock", fails_with(errno.ENOLCK))
    with files.wait_for_lock(tmp_path / "new" / "table", required=False):
        assert (tmp_path / "new" / "table.lock").exists()
    with pytest.raises(OSError, match=os.strerror(errno.ENOLCK)):
        with files.wait_for_lock(tmp_path / "table"):
            raise AssertionError("there is no lock")


def test_an_error_of_a_library_that_found_the_disk_full_is_a_storage_error(tmp_path):
    """Matplotlib and PyTorch raise other errors while they close a file that they cannot write."""
    path = tmp_path / "a.pdf"

    def library(number):
        try:
            raise OSError(number, os.strerror(number))
        except OSError:
            raise AttributeError("no attribute pos")  # noqa: B904

    with pytest.raises(StorageError, match="a.pdf: cannot be written .No space left on device"):
        with files.whole_file(path):
            library(errno.ENOSPC)
    with pytest.raises(AttributeError), files.whole_file(path):
        library(errno.ENOENT)
    with pytest.raises(StorageError, match="cannot be written .9 requested and 3 written"), files.whole_file(path):
        raise OSError("9 requested and 3 written")
    assert not list(tmp_path.iterdir())


def test_a_file_in_the_place_of_a_folder_is_an_error_of_the_user(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("nowhere")
    for folder, found in (("file", "a file"), ("file/below/it", "a file"), ("link", "a link that leads nowhere")):
        with pytest.raises(ConfigError, match=f"{folder.split('/')[0]}: expected a folder .*, found {found}; choose"):
            with files.storage_errors(tmp_path):
                (tmp_path / folder).mkdir(parents=True, exist_ok=True)
    with pytest.raises(ConfigError, match="expected a file, found a folder"):
        with files.storage_errors(tmp_path / "a"):
            tmp_path.read_bytes()
    with pytest.raises(StorageError, match="cannot be written"):
        with files.storage_errors(tmp_path / "a"):
            (tmp_path / "none" / "a").write_text("")
