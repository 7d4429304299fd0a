"""Compiled programs are kept: with the same results, for this CPU alone, and never at the price of an error."""

import os
import sys
import tempfile

import jax
import numpy as np
import pytest
from jax import monitoring
from jax.experimental.compilation_cache import compilation_cache as public_cache

from bcss_jax.common.startup import compilation_cache
from bcss_jax.common.startup.compilation_cache import CheckedFolder

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the cache is used on Linux only")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """The folder of the cache, which is on; afterwards everything is as before."""
    names = (
        "jax_compilation_cache_dir",
        "jax_enable_compilation_cache",
        "jax_persistent_cache_min_compile_time_secs",
        "jax_persistent_cache_enable_xla_caches",
    )
    before = {name: getattr(jax.config, name) for name in names}
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    jax.config.update("jax_compilation_cache_dir", None)
    jax.config.update("jax_enable_compilation_cache", True)
    public_cache.reset_cache()  # that of the tests
    yield compilation_cache.root()
    for name, value in before.items():
        jax.config.update(name, value)
    public_cache.reset_cache()
    jax.clear_caches()


@pytest.fixture
def loaded():
    """The number of programs that JAX took from its cache."""
    counts = []
    listener = lambda event, **_: counts.append(event) if event.endswith("/cache_hits") else None  # noqa: E731
    monitoring.register_event_listener(listener)
    yield counts
    monitoring.unregister_event_listener(listener)


def gradient():
    """A result with convolutions, sums and random numbers, computed by newly compiled or loaded programs."""
    jax.clear_caches()

    def loss(kernel, images):
        for _ in range(3):
            images = jax.nn.relu(jax.lax.conv(images, kernel, (1, 1), "SAME"))
        return (images**2).mean()

    kernel = jax.random.normal(jax.random.key(0), (4, 4, 3, 3))
    return np.asarray(jax.jit(jax.grad(loss))(kernel, jax.random.normal(jax.random.key(1), (2, 4, 16, 16))))


def programs(folder):
    return [path for path in folder.glob("*/*") if path.is_file()]


def test_loaded_programs_compute_the_same_bits(cache, loaded):
    without = gradient()
    compilation_cache.enable()
    compiled = gradient()
    assert not loaded and len(programs(cache)) > 1
    again = gradient()
    assert len(loaded) >= len(programs(cache))
    assert without.tobytes() == compiled.tobytes() == again.tobytes()


@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b[:-9] + bytes(9), lambda b: b""])
def test_a_damaged_program_is_compiled_again(cache, loaded, recwarn, damage):
    compilation_cache.enable()
    expected = gradient()
    sound = {path: path.read_bytes() for path in programs(cache)}
    for path, content in sound.items():
        path.write_bytes(damage(content))
    assert gradient().tobytes() == expected.tobytes()
    assert not loaded and not recwarn.list
    assert {path: len(path.read_bytes()) for path in programs(cache)}.keys() == sound.keys()
    gradient()
    assert len(loaded) >= len(sound)


def test_a_folder_that_cannot_be_written_is_as_no_cache(cache, monkeypatch, recwarn):
    cache.parent.mkdir(parents=True)
    cache.write_text("a file where the folder should be")
    compilation_cache.enable()
    assert jax.config.jax_compilation_cache_dir is None
    gradient()
    assert not recwarn.list


def test_a_full_disk_is_no_error(cache, monkeypatch, recwarn):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    compilation_cache.enable()
    monkeypatch.setattr(compilation_cache.tempfile, "mkstemp", full)
    gradient()
    assert programs(cache) == [] and not recwarn.list


def test_a_folder_that_others_can_write_is_not_used(cache):
    (cache / compilation_cache._cpu()).mkdir(parents=True)
    (cache / compilation_cache._cpu()).chmod(0o777)
    compilation_cache.enable()
    assert jax.config.jax_compilation_cache_dir is None


def test_the_users_own_cache_is_left_alone(cache, tmp_path):
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "mine"))
    compilation_cache.enable()
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "mine")
    gradient()
    assert list((tmp_path / "mine").glob("*-cache"))


def test_it_can_be_turned_off(cache):
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.enable()
    gradient()
    assert not cache.exists()


def test_a_job_of_several_processes_has_no_cache(cache, monkeypatch):
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
    compilation_cache.enable()
    assert jax.config.jax_compilation_cache_dir is None


def test_another_cpu_has_another_folder(monkeypatch, tmp_path):
    names = set()
    for lines in ("flags : avx avx2\ncpu MHz : 1\n", "flags : avx avx2\ncpu MHz : 2\n", "flags : avx avx2 avx512f\n"):
        (tmp_path / "cpuinfo").write_text(lines)
        monkeypatch.setattr(compilation_cache, "CPU_FILE", tmp_path / "cpuinfo")
        compilation_cache._cpu.cache_clear()
        names.add(compilation_cache._cpu())
    compilation_cache._cpu.cache_clear()
    assert len(names) == 2


def test_the_least_recently_used_programs_are_deleted(tmp_path, monkeypatch):
    monkeypatch.setattr(compilation_cache, "MAX_BYTES", 8000)
    monkeypatch.setattr(compilation_cache, "CHECKED_AFTER_BYTES", 1000)
    folder = CheckedFolder(tmp_path / "cpu")
    (tmp_path / "cpu").mkdir()
    for number in range(30):
        folder.put(f"program {number}", bytes(900))
        for age, path in enumerate(sorted(programs(tmp_path), key=lambda path: path.stat().st_mtime_ns)):
            os.utime(path, (age, age))
        assert folder.get("program 0") == bytes(900)  # used again and again
    assert sum(path.stat().st_size for path in programs(tmp_path)) <= 8000 + 1000
    assert folder.get("program 29") is not None and folder.get("program 5") is None


def test_the_tests_have_a_cache_of_their_own():
    assert compilation_cache.root().is_relative_to(tempfile.gettempdir())
