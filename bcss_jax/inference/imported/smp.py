"""Weights of segmentation_models_pytorch's `Unet` with a ResNet-34, -50 or -101 or a DenseNet-121 encoder."""

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from bcss_jax.errors import ConfigError, DataError, printable
from bcss_jax.inference.imported.network import (
    DEFAULT_WINDOW,
    ImportedNetwork,
    check_number_of_classes,
    load_all,
    without_prefix,
    wrong_network,
)
from bcss_jax.labels import LabelScheme
from bcss_jax.models.image_normalization import IMAGENET
from bcss_jax.models.weights.files import read_weights

EXPECTED = "a U-Net of segmentation_models_pytorch"
_HEAD = "segmentation_head.0.weight"
# (Blocks of the four stages, whether they are bottlenecks) -> network.
_RESNETS: dict[tuple[tuple[int, ...], bool], str] = {
    ((3, 4, 6, 3), False): "unet_resnet34",
    ((3, 4, 6, 3), True): "unet_resnet50",
    ((3, 4, 23, 3), True): "unet_resnet101",
}
_DENSENETS: dict[tuple[int, ...], str] = {(6, 12, 24, 16): "dense_unet_121"}  # layers of the four blocks -> network


def read(path: Path, *, scheme: LabelScheme, mpp: float, window: int | None = None) -> ImportedNetwork:
    """Reads the weights; the encoder is recognized by the names of the tensors.

    Args:
      path: .pth, .safetensors or .npz with the state dict.
      scheme: what the outputs mean.
      mpp: um per pixel of the images that it was trained on.
      window: side of the windows in pixels; None: 512.

    Raises:
      DataError: the file cannot be read, or holds the weights of another network.
      ConfigError: the label scheme has another number of classes, or the network has one output.
    """
    file = read_weights(path)
    state = without_prefix(file.arrays, _HEAD)
    if _HEAD not in state or "decoder.blocks.0.conv1.0.weight" not in state:
        raise wrong_network(path, EXPECTED, file.arrays)
    num_classes = int(state[_HEAD].shape[0])
    if num_classes == 1:
        raise ConfigError(
            f"{printable(path)}: has one output (a sigmoid); expected one output for each class, as softmax needs"
        )
    check_number_of_classes(path, num_classes, scheme)
    name = _network_of(path, state)
    model, tensors, passed_over = load_all(path, name, {}, num_classes, state)
    return ImportedNetwork(
        format="smp",
        name=name,
        arguments={},
        model=model,
        scheme=scheme,
        statistics=IMAGENET,
        mpp=mpp,
        window=window or DEFAULT_WINDOW,
        file=Path(path).name,
        sha256=file.sha256,
        tensors=tensors,
        passed_over=passed_over,
    )


def _network_of(path: Path, state: Mapping[str, np.ndarray]) -> str:
    blocks = _counts(state, r"encoder\.layer(\d)\.(\d+)\.conv1\.weight")
    layers = _counts(state, r"encoder\.features\.denseblock(\d)\.denselayer(\d+)\.conv1\.weight")
    bottleneck = "encoder.layer1.0.conv3.weight" in state
    name = _RESNETS.get((blocks, bottleneck)) or _DENSENETS.get(layers)
    if name is None:
        found = f"blocks {blocks or layers}" if blocks or layers else "another one"
        raise DataError(
            f"{printable(path)}: expected an encoder ResNet-34, ResNet-50, ResNet-101 or DenseNet-121, found {found}; "
            "other encoders cannot be imported"
        )
    return name


def _counts(state: Mapping[str, np.ndarray], pattern: str) -> tuple[int, ...]:
    """Returns how many second numbers there are for each first number in the names that fit the pattern."""
    found = [match.groups() for name in state if (match := re.fullmatch(pattern, name))]
    return tuple(len({second for first, second in found if first == each}) for each in sorted({f for f, _ in found}))
