"""Writes a pretrained encoder as safetensors in timm's names, which `configs/vit.py` and timm read."""

import dataclasses
import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save

from bcss_jax.common.files import write_bytes
from bcss_jax.models.encoders.vision_transformer.architecture import Architecture
from bcss_jax.models.encoders.vision_transformer.network import VisionTransformer
from bcss_jax.models.image_normalization import ImageStatistics
from bcss_jax.models.weights.pretrained import to_torch_state

ABOUT = "bcss_jax"  # key of the file's own description


def timm_state(encoder: VisionTransformer) -> dict[str, np.ndarray]:
    """Returns the weights of an encoder under the names of timm's `VisionTransformer`, in PyTorch's layout."""
    renames = {"register_tokens": "reg_token"}
    state = {}
    for name, array in to_torch_state(encoder).items():
        if name == "mask_token":  # only the pretraining needs it
            continue
        name = renames.get(name, name).replace(".mlp.w12.", ".mlp.fc1.").replace(".mlp.w3.", ".mlp.fc2.")
        state[name] = np.ascontiguousarray(array)
    return state


def write_encoder(
    path: Path, encoder: VisionTransformer, name: str, statistics: ImageStatistics, mpp: float | None, about: dict
) -> None:
    """Writes an encoder.

    Args:
      path: of the .safetensors file.
      encoder: to write.
      name: of its form (`presets.PRESETS`).
      statistics: what its images are normalized with.
      mpp: um/px of the tiles it was trained with; None: unknown.
      about: JSON, further description.

    Raises:
      StorageError: the file cannot be written.
    """
    description = {
        "encoder": name,
        "architecture": architecture_json(encoder.architecture),
        "image_mean": list(statistics.mean),
        "image_std": list(statistics.std),
        "mpp": mpp,
        **about,
    }
    write_bytes(path, save(timm_state(encoder), metadata={ABOUT: json.dumps(description)}))


def architecture_json(architecture: Architecture) -> dict:
    """Returns the fields of an architecture as JSON."""
    return {name: getattr(value, "value", value) for name, value in dataclasses.asdict(architecture).items()}
