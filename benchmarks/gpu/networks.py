"""The networks that are measured, and their twins in PyTorch."""

import sys
from typing import Any

import jax

from benchmarks.gpu.scheduler import ROOT

sys.path[:0] = [str(ROOT / "benchmarks"), str(ROOT / "tests")]

from helpers.small_networks import SMALL  # noqa: E402

from bcss_jax import models  # noqa: E402

NUM_CLASSES = 3
_TWINS_WITH_ARGUMENTS = ("unet", "transunet", "dense_unet")  # the others exist at full size only


def create(network: str, dtype: str, *, small: bool) -> Any:
    """Returns a network with random weights in the memory of the host.

    Args:
      network: a key of `bcss_jax.models.MODELS`.
      dtype: type of the computation.
      small: few channels and layers; TransUNet then takes images of 32 pixels.
    """
    with jax.default_device(jax.local_devices(backend="cpu")[0]):  # not as many small programs on the GPU
        if small:
            return _small(network)(num_classes=NUM_CLASSES, dtype=dtype)
        return models.create(network, num_classes=NUM_CLASSES, dtype=dtype)


def create_twin(network: str, *, small: bool) -> tuple[Any, str]:
    """Returns (the same network in PyTorch, ""), or (None, why there is none)."""
    if network.startswith("report_"):
        return None, "there is no twin"
    if small and network not in _TWINS_WITH_ARGUMENTS:
        return None, "the twin exists at full size only"
    try:
        import torch
        import torch_twins

        torch.manual_seed(0)
        return torch_twins.build(network, NUM_CLASSES, **(_small(network).keywords if small else {})), ""
    except ModuleNotFoundError as error:
        return None, f"{error.name} is not installed"


def _small(network: str) -> Any:
    return SMALL.get(network) or SMALL["unet_resnet101"]  # of ResNet-50's blocks
