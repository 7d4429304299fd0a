"""Advice on the type of the computation for the devices at hand."""

from collections.abc import Sequence
from typing import Any

# Compute capabilities of GPUs whose tensor cores have float16 alone: Volta (V100) and Turing (T4).
FIRST, AFTER = 7.0, 8.0


def half_type(devices: Sequence[Any]) -> str:
    """Returns the type of two bytes to compute in: bfloat16, or float16 if a GPU has no bfloat16."""
    capabilities = [capability for device in devices if (capability := _compute_capability(device)) is not None]
    return "float16" if any(capability < AFTER for capability in capabilities) else "bfloat16"


def advice_on_dtype(dtype: str, devices: Sequence[Any]) -> str | None:
    """Returns a line that advises float16 if a device is fast in nothing else; None if there is no such device.

    Args:
      dtype: type of the computation.
      devices: of JAX; those of other makers have no number as their `compute_capability`.
    """
    if dtype == "float16":
        return None
    for device in devices:
        capability = _compute_capability(device)
        if capability is not None and FIRST <= capability < AFTER:
            return (
                f"{device.device_kind} has tensor cores for float16 alone, neither bfloat16 nor TF32: "
                "--config.dtype=float16 is faster there (in a new run)"
            )
    return None


def _compute_capability(device: Any) -> float | None:
    try:
        return float(getattr(device, "compute_capability", "none"))
    except ValueError:
        return None
