"""Weights of TIAToolbox's U-Net: `fcn_resnet50_unet-bcss` and others of the same class.

Source: TIAToolbox, docs/pretrained.rst and tiatoolbox/data/pretrained_model.yaml at 6fc8a2e: windows of 1024 pixels of
which the central 512 are used.
"""

import re
from pathlib import Path

import numpy as np

from bcss_jax.errors import ConfigError, DataError, printable
from bcss_jax.inference.imported.network import (
    ImportedNetwork,
    Origin,
    check_number_of_classes,
    load_all,
    without_prefix,
    wrong_network,
)
from bcss_jax.labels import SCHEMES, LabelScheme
from bcss_jax.models.tiatoolbox_unet import TIAToolboxUNet
from bcss_jax.models.weights.files import read_weights

EXPECTED = "TIAToolbox's U-Net with a ResNet-50 encoder"
WINDOW, OVERLAP, BLEND = 1024, 0.5, "centre"  # the central 512 pixels of each window count
BCSS = ("tiatoolbox_bcss", 0.25)  # label scheme and um per pixel of fcn_resnet50_unet-bcss
BCSS_ORIGIN = Origin(
    source=(
        "fcn_resnet50_unet-bcss of TIAToolbox (github.com/TissueImageAnalytics/tiatoolbox; the weights are in the "
        "repository TIACentre/TIAToolbox_pretrained_weights on Hugging Face)"
    ),
    license="CC0 1.0, as TIAToolbox states for its models in docs/pretrained.rst",
    trained_on="BCSS",
)
_KERNEL = re.compile(r"uplist\.0\.(\d+)\.weight")


def read(
    path: Path, *, scheme: LabelScheme | None = None, mpp: float | None = None, window: int | None = None
) -> ImportedNetwork:
    """Reads the weights.

    Args:
      path: .pth, .safetensors or .npz.
      scheme: what the outputs mean; None: the five classes of the published network, if the file has them.
      mpp: um per pixel; None: that of the published network.
      window: side of the windows in pixels; None: 1024.

    Raises:
      DataError: the file cannot be read, or holds the weights of another network.
      ConfigError: the network is not the published one, and scheme or mpp are missing.
    """
    file = read_weights(path)
    state = without_prefix(file.arrays, "uplist.0.0.weight")
    if not any(map(_KERNEL.fullmatch, state)):
        raise wrong_network(path, EXPECTED, file.arrays)
    for needed in ("clf.weight", "conv1x1.weight"):
        if needed not in state:
            raise DataError(f"{printable(path)}: expected the weights of {EXPECTED}, found no {needed}; get it again")
    kernels, num_classes = _decoder_kernels(path, state), _outputs(path, state)
    is_published = kernels == (3, 3) and num_classes == 5
    if not is_published and (scheme is None or mpp is None):
        missing = "--labels" if scheme is None else "--mpp"
        raise ConfigError(
            f"{printable(path)}: has {num_classes} outputs and {len(kernels)} convolution(s) at each resolution of the "
            "decoder, fcn_resnet50_unet-bcss has 5 and 2; for another network of the same class, say what its outputs "
            f"mean and the um per pixel of its images: {missing} is missing"
        )
    is_published = is_published and scheme in (None, SCHEMES[BCSS[0]]) and mpp in (None, BCSS[1])
    scheme = scheme or SCHEMES[BCSS[0]]
    check_number_of_classes(path, num_classes, scheme)
    arguments = {"decoder_kernels": kernels}
    model, tensors, passed_over = load_all(path, "tiatoolbox_unet", arguments, num_classes, state)
    return ImportedNetwork(
        format="tiatoolbox",
        name="tiatoolbox_unet",
        arguments=arguments,
        model=model,
        scheme=scheme,
        statistics=TIAToolboxUNet.image_statistics,
        mpp=mpp or BCSS[1],
        window=window or WINDOW,
        file=Path(path).name,
        sha256=file.sha256,
        tensors=tensors,
        passed_over=passed_over,
        origin=BCSS_ORIGIN if is_published else Origin(),
        overlap=OVERLAP,
        blend=BLEND,
    )


def _decoder_kernels(path: Path, state: dict[str, np.ndarray]) -> tuple[int, ...]:
    """Returns the sides of the convolutions at the lowest resolution of the decoder."""
    numbers = sorted(int(found[1]) for name in state if (found := _KERNEL.fullmatch(name)))
    arrays = [state[f"uplist.0.{number}.weight"] for number in numbers]
    kernels = tuple(int(array.shape[-1]) for array in arrays if array.ndim == 4)
    if not kernels:
        raise DataError(f"{printable(path)}: uplist.0 has no convolution; expected the weights of {EXPECTED}")
    return kernels


def _outputs(path: Path, state: dict[str, np.ndarray]) -> int:
    shape = state["clf.weight"].shape
    if len(shape) != 4 or not shape[0]:
        raise DataError(f"{printable(path)}: clf.weight is {shape}; expected the weights of {EXPECTED}")
    return int(shape[0])
