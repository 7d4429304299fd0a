"""The weights of a plain vision transformer as those of SAM's image encoder.

SAM's own encoder began so, from a plain one that masked autoencoding had trained (Li et al. 2022, arXiv:2203.16527):
the class token and the last norm are left out, and the terms for distances begin as zero.
"""

import dataclasses
from collections.abc import Mapping

import numpy as np

from bcss_jax.errors import ConfigError
from bcss_jax.models.encoders.vision_transformer.fitting import check_fit
from bcss_jax.models.encoders.vision_transformer.presets import Preset
from bcss_jax.models.image_normalization import IMAGENET
from bcss_jax.models.sam.architecture import ViTForm
from bcss_jax.models.weights.vision_transformer_names import canonical

_NAMES = {"mlp.fc1.": "mlp.lin1.", "mlp.fc2.": "mlp.lin2."}
_LAYER_SCALES = {"ls1.gamma": "attn.proj", "ls2.gamma": "mlp.lin2"}


def form_of_preset(name: str, preset: Preset) -> ViTForm:
    """Returns the form of SAM's encoder that holds a plain vision transformer; all its blocks see the whole image.

    Raises:
      ConfigError: the network has what SAM's encoder has no place for.
    """
    architecture = preset.architecture
    has = {
        "a SwiGLU": architecture.gated,
        "registers": architecture.registers > 0,
        "rotary positions": architecture.table is None,
    }
    if any(has.values()):
        found = " and ".join(name for name, found in has.items() if found)
        raise ConfigError(
            f"sam: {name} has {found}, which SAM's encoder has no place for; choose another encoder, such as "
            "vit_small16, or --config=configs/vit.py"
        )
    assert architecture.table is not None
    return ViTForm(
        architecture.width,
        architecture.depth,
        architecture.heads,
        tuple(range(architecture.depth)),
        patch=architecture.patch,
        hidden=architecture.hidden,
        table=architecture.table,
    )


def sam_state(state: Mapping[str, np.ndarray], preset: Preset) -> tuple[dict[str, np.ndarray], list[str]]:
    """Returns the weights of a plain vision transformer under the names of SAM's `ImageEncoderViT`.

    What differs is put into the weights: scales of the residuals into the matrices before them, and the normalization
    of the images into the convolution of the patches.

    Args:
      state: name -> array as in the file, under the names of DINO, timm or Hugging Face.
      preset: the form that the weights must have.

    Returns:
      The weights, and the names that have no place.

    Raises:
      DataError: the weights do not have the form.
    """
    arrays, unused = canonical(state)
    arrays.pop("mask_token", None)
    check_fit(arrays, dataclasses.replace(preset.architecture, table=_table(arrays, preset)))
    found: dict[str, np.ndarray] = {}
    for name, array in arrays.items():
        if name == "pos_embed":
            rows = array[0, preset.architecture.prefix_rows :]
            side = int(len(rows) ** 0.5)
            found[name] = rows.reshape(1, side, side, -1)
        elif name == "cls_token" or name.startswith("norm."):
            unused.append(name)
        elif not name.endswith(tuple(_LAYER_SCALES)):
            for theirs, ours in _NAMES.items():
                name = name.replace(theirs, ours)
            found[name] = array
    for name, scale in arrays.items():
        for ending, layer in _LAYER_SCALES.items():
            if name.endswith(ending):
                block = name.removesuffix(ending)
                found[f"{block}{layer}.weight"] = found[f"{block}{layer}.weight"] * scale[:, None]
                found[f"{block}{layer}.bias"] = found[f"{block}{layer}.bias"] * scale
    _renormalize(found, preset)
    head = preset.architecture.width // preset.architecture.heads
    size = found["pos_embed"].shape[1]
    for block in range(preset.architecture.depth):
        for axis in "hw":
            found[f"blocks.{block}.attn.rel_pos_{axis}"] = np.zeros((2 * size - 1, head), np.float32)
    return found, unused


def _table(arrays: Mapping[str, np.ndarray], preset: Preset) -> int | None:
    """Returns the rows of the table of positions in a file, which need not be the published ones."""
    if "pos_embed" not in arrays:
        return preset.architecture.table
    rows = arrays["pos_embed"].shape[1] - preset.architecture.prefix_rows
    side = int(max(rows, 0) ** 0.5)
    return side if side and side * side == rows else preset.architecture.table


def _renormalize(found: dict[str, np.ndarray], preset: Preset) -> None:
    """Makes the convolution of the patches take images that are normalized as SAM's."""
    (mean, std), (new_mean, new_std) = (
        tuple(np.array(each, np.float64) for each in (statistics.mean, statistics.std))
        for statistics in (preset.statistics, IMAGENET)
    )
    kernel = found["patch_embed.proj.weight"].astype(np.float64)  # (C, 3, patch, patch)
    shift = np.einsum("oihw,i->o", kernel, (new_mean - mean) / std)
    found["patch_embed.proj.weight"] = (kernel * (new_std / std)[:, None, None]).astype(np.float32)
    found["patch_embed.proj.bias"] = (found["patch_embed.proj.bias"] + shift).astype(np.float32)
