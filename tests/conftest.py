"""Where the tests find real data, and how they run JAX."""

import os
from pathlib import Path

# Eight virtual CPU devices in every test process; tests that want fewer take a slice of them.
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
# Most of the tests' time is compiling; networks this small need no optimized code.
os.environ["XLA_FLAGS"] += " --xla_backend_optimization_level=0"
# Eight devices on a busy core may wait for each other for longer than the 40 s after which XLA ends the process.
os.environ["XLA_FLAGS"] += " --xla_cpu_collective_call_terminate_timeout_seconds=120"
os.environ.setdefault("JAX_PLATFORMS", "cpu")  # also where there is a GPU: one GPU is not eight devices
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import pytest
from helpers.paths import SHARED


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
