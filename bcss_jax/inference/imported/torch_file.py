"""Weights of this project's networks under the names of PyTorch (`models.weights.pretrained.to_torch_state`)."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bcss_jax import models
from bcss_jax.inference.imported.network import DEFAULT_WINDOW, ImportedNetwork, load_all
from bcss_jax.labels import LabelScheme
from bcss_jax.models.image_normalization import IMAGENET
from bcss_jax.models.weights.files import read_weights


def read(
    path: Path,
    *,
    name: str,
    arguments: Mapping[str, Any],
    scheme: LabelScheme,
    mpp: float,
    window: int | None = None,
) -> ImportedNetwork:
    """Reads the weights.

    Args:
      path: .pth, .safetensors or .npz with the state dict.
      name: of the network, a key of `models.MODELS`.
      arguments: of the network, where they are not the default.
      scheme: what the outputs mean.
      mpp: um per pixel of the images that it was trained on.
      window: side of the windows in pixels; None: 512.

    Raises:
      DataError: the file cannot be read, or does not fit the network.
      ConfigError: there is no such network, or it does not take these arguments.
    """
    models.check_size(name, num_classes=scheme.num_classes, **arguments)
    file = read_weights(path)
    model, tensors, passed_over = load_all(path, name, arguments, scheme.num_classes, file.arrays)
    return ImportedNetwork(
        format="torch",
        name=name,
        arguments=dict(arguments),
        model=model,
        scheme=scheme,
        statistics=models.image_statistics(name, **arguments) or IMAGENET,
        mpp=mpp,
        window=window or DEFAULT_WINDOW,
        file=Path(path).name,
        sha256=file.sha256,
        tensors=tensors,
        passed_over=passed_over,
    )
