"""Where the tests find real data, and how they run JAX."""

import atexit
import ctypes
import os
import shutil
import tempfile
from pathlib import Path

# Eight virtual CPU devices in every test process; tests that want fewer take a slice of them.
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
# Most of the tests' time is compiling; networks this small need no optimized code.
os.environ["XLA_FLAGS"] += " --xla_backend_optimization_level=0"
# Eight devices on a busy core may wait for each other for longer than the 40 s after which XLA ends the process.
os.environ["XLA_FLAGS"] += " --xla_cpu_collective_call_terminate_timeout_seconds=120"
os.environ.setdefault("JAX_PLATFORMS", "cpu")  # also where there is a GPU: one GPU is not eight devices

# Compiled programs are kept for this session, also for the commands that the tests start.
if "PYTEST_XDIST_WORKER" not in os.environ:
    os.environ.setdefault(
        "MPLCONFIGDIR", str(Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "matplotlib")
    )
    os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="bcss_jax-tests-")
    atexit.register(shutil.rmtree, os.environ["XDG_CACHE_HOME"], ignore_errors=True)

import pytest
from helpers.paths import SHARED

from bcss_jax.common.startup import compilation_cache

compilation_cache.enable()


@pytest.fixture(autouse=True)
def freed_memory_is_returned():
    """Gives memory back to the system after each test: glibc keeps the gigabytes that compiling networks has freed."""
    yield
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(0)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of reference values and real data beside the repository; tests skip where it is missing."""
    if not SHARED.is_dir():
        pytest.skip(f"no folder of reference values and data at {SHARED.name}/ beside the repository")
    return SHARED


@pytest.fixture(scope="module")
def browser():
    """Chromium; only tests that import `helpers.chromium`, and are skipped without a browser, ask for it."""
    from helpers.chromium import chromium

    with chromium() as found:
        yield found
