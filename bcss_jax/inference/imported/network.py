"""A network with weights of another program, and what a run must know of it."""

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx

from bcss_jax import models
from bcss_jax.errors import ConfigError, DataError, printable
from bcss_jax.labels import LabelScheme
from bcss_jax.models.image_normalization import ImageStatistics
from bcss_jax.models.weights.pretrained import load_with_skipped_names
from bcss_jax.slides.windows import BLEND, OVERLAP

DEFAULT_WINDOW = 512  # side of the windows of slides in pixels, where nothing else is known
# What a tensor of each kind of file is called, in the order in which they are looked for.
_KINDS = (
    ("uplist.0.0.weight", "TIAToolbox's U-Net", "--format=tiatoolbox"),
    ("decoder.blocks.0.conv1.0.weight", "a U-Net of segmentation_models_pytorch", "--format=smp"),
    ("decoder.stages.0.convs.0.conv.weight", "a network of nnU-Net", "--format=nnunet and its result folder"),
    ("inc.double_conv.0.weight", "this project's unet", "--format=torch --model=unet"),
    ("layer1.0.conv1.weight", "a ResNet without a decoder", "--config.pretrained of python -m bcss_jax.main"),
    ("features.denseblock1.denselayer1.conv1.weight", "a DenseNet without a decoder",
     "--config.pretrained of python -m bcss_jax.main"),
    ("Transformer/encoder_norm/scale", "Google's vision transformer", "--config.pretrained of python -m bcss_jax.main"),
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Origin:
    """Where weights come from, as far as it is known.

    Attributes:
      source: who published them and where; "": not known.
      license: under which they are published, and who says so; "": not known.
      trained_on: data that their publisher trained them on; "": not known.
    """

    source: str = ""
    license: str = ""
    trained_on: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImportedNetwork:
    """A network with weights of another program.

    Attributes:
      format: of the file, an argument of `--format`.
      name: of the network, a key of `models.MODELS`.
      arguments: of the network, other than `num_classes`, `dtype` and `seed`.
      model: the network with its weights.
      scheme: what its outputs mean.
      statistics: what images are normalized with.
      mpp: um per pixel of the images that it was trained on.
      window: side of the windows that slides are cut into, pixels.
      file: name of the file or folder.
      sha256: of the file.
      tensors: number of tensors that were loaded.
      passed_over: names of tensors that are not needed.
      origin: where the weights come from.
      overlap: of neighboring windows, as a share of their side.
      blend: how windows are blended.
    """

    format: str
    name: str
    arguments: dict[str, Any]
    model: nnx.Module
    scheme: LabelScheme
    statistics: ImageStatistics
    mpp: float
    window: int
    file: str
    sha256: str
    tensors: int
    passed_over: tuple[str, ...]
    origin: Origin = Origin()
    overlap: float = OVERLAP
    blend: str = BLEND


def without_prefix(state: Mapping[str, np.ndarray], key: str) -> dict[str, np.ndarray]:
    """Returns the weights without the prefix that a wrapper has put before all names, recognized by one of them."""
    ends = [name for name in state if name == key or name.endswith(f".{key}")]
    prefix = min(ends, key=len).removesuffix(key) if ends else ""
    return {name.removeprefix(prefix): array for name, array in state.items()}


def wrong_network(path: Path, expected: str, names: Iterable[str]) -> DataError:
    """Returns the error for a file with the weights of another network.

    Args:
      path: of the file.
      expected: the network that was expected.
      names: of the tensors in the file.
    """
    names = list(names)
    found = next((each for each in _KINDS if any(name.endswith(each[0]) for name in names)), None)
    if found is None:
        shown = ", ".join(sorted(names)[:3]) or "no tensors"
        what, remedy = f"{shown} and so on ({len(names)} names)", "name another file or --format"
    else:
        what, remedy = f"those of {found[1]}", f"use {found[2]}"
    return DataError(f"{printable(path)}: expected the weights of {expected}, found {what}; {remedy}")


def load_all(
    path: Path, name: str, arguments: Mapping[str, Any], num_classes: int, state: Mapping[str, np.ndarray]
) -> tuple[nnx.Module, int, tuple[str, ...]]:
    """Builds a network and loads all weights of a file into it.

    Returns:
      The network, the number of tensors that were loaded, and the names of tensors that are not needed.

    Raises:
      DataError: a tensor is missing, unknown, or has another shape; one line that lists them.
      ConfigError: there is no such network, or it does not take these arguments.
    """
    model = models.create(name, num_classes=num_classes, **arguments)
    try:
        skipped = load_with_skipped_names(model, state)
    except DataError as error:
        raise DataError(f"{printable(path)}: {error}") from error
    counters = [each for each in state if each.endswith("num_batches_tracked")]
    named = [f"{len(counters)} counters (num_batches_tracked)"] if counters else []
    return model, len(state) - len(skipped) - len(counters), (*skipped, *named)


def check_number_of_classes(path: Path, num_classes: int, scheme: LabelScheme) -> None:
    """Raises ConfigError unless the label scheme has a class for each output of the network."""
    if scheme.num_classes != num_classes:
        raise ConfigError(
            f"--labels: {printable(path)} has {num_classes} outputs, the label scheme {scheme.name} has "
            f"{scheme.num_classes} ({', '.join(scheme.class_names)}); name a scheme with one class for each output"
        )
