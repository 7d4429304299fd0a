"""What the machine has: devices, versions, and programs that use the GPU already."""

import importlib.metadata
import os
import shutil
import subprocess

from benchmarks.gpu.child import Report, Skipped

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "torch", "timm", "transformers")
INSTALL = "pip install -U 'jax[cuda13]', in an environment of its own"
USED = "memory.used,memory.total,name,driver_version"


def run(report: Report, *, dry: bool) -> None:
    """Reports the machine.

    Raises:
      Skipped: JAX has no GPU, and this is not a dry run.
    """
    used = _nvidia_smi()  # before JAX takes memory
    import jax

    try:
        device = jax.devices()[0]
    except RuntimeError as error:
        raise Skipped(f"jax {jax.__version__} cannot start: {str(error).splitlines()[0]}") from error
    if device.platform != "gpu" and not dry:
        there = "nvidia-smi finds a GPU" if used else "nvidia-smi finds none either"
        raise Skipped(
            f"jax {jax.__version__} finds no GPU (its device is {device.device_kind!r}, {there}); {INSTALL}, or try "
            "every part on the CPU with --dry"
        )
    report.add(what="device", value=f"{jax.local_device_count()} x {device.device_kind}")
    report.add(what="CPU cores", value=len(os.sched_getaffinity(0)))
    report.add(what="GPU memory used before, of, name, driver", value=used or "no nvidia-smi")
    for package in PACKAGES:
        report.add(what=package, value=_version(package))
    report.add(what="PyTorch's device", value=_torch_device())


def _nvidia_smi() -> str:
    if not shutil.which("nvidia-smi"):
        return ""
    command = ["nvidia-smi", f"--query-gpu={USED}", "--format=csv,noheader"]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False).stdout.strip()


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "missing"


def _torch_device() -> str:
    try:
        import torch
    except ImportError as error:
        return f"none: {error}"
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
