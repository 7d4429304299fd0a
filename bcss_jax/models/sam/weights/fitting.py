"""Which form of SAM weights belong to."""

import re
from collections.abc import Mapping

import numpy as np

from bcss_jax.errors import ConfigError, DataError
from bcss_jax.models.sam.architecture import DecoderForm, HieraForm, ViTForm
from bcss_jax.models.sam.presets import PRESETS
from bcss_jax.models.sam.weights.names import is_sam2


def form_of(arrays: Mapping[str, np.ndarray]) -> ViTForm | HieraForm:
    """Returns the form of the encoder that weights belong to.

    Args:
      arrays: under the names of `names.canonical`.

    Raises:
      DataError: these are not the weights of SAM or of SAM 2.1.
    """
    if is_sam2(arrays):
        return _hiera_form(arrays)
    if not any(name.startswith("image_encoder.") for name in arrays):
        hint = ""
        if any("cls_token" in name for name in arrays):
            hint = "; this is a vision transformer, which --config.pretrained of configs/vit.py loads"
        raise DataError(
            "expected the weights of SAM or SAM 2.1 under a name of Meta or Hugging Face, found "
            f"{', '.join(sorted(arrays)[:4]) or 'none'}{hint}"
        )
    patch = _shape(arrays, "image_encoder.patch_embed.proj.weight", 4)
    table = _shape(arrays, "image_encoder.pos_embed", 4)
    depth = _blocks(arrays, r"image_encoder\.blocks\.(\d+)\.")
    tables = [_shape(arrays, f"image_encoder.blocks.{i}.attn.rel_pos_h", 2) for i in range(depth)]
    of_all = 2 * table[1] - 1
    windows = [length for length, _ in tables if length != of_all]
    form = ViTForm(
        width=patch[0],
        depth=depth,
        heads=max(patch[0] // max(tables[0][1], 1), 1) if depth else 1,
        global_blocks=tuple(i for i, (length, _) in enumerate(tables) if length == of_all),
        patch=patch[2],
        window=(windows[0] + 1) // 2 if windows else 14,
        hidden=_shape(arrays, "image_encoder.blocks.0.mlp.lin1.weight", 2)[0],
        table=table[1],
    )
    try:
        form.check()
    except ConfigError as error:
        raise DataError(f"the shapes of the weights fit no SAM: {error}") from error
    return form


def decoder_form_of(arrays: Mapping[str, np.ndarray]) -> DecoderForm:
    """Returns the form of the decoder that weights belong to.

    Raises:
      DataError: weights are missing, or the decoder has another width than the published ones. Weights do not tell the
        number of heads, so that of another decoder is not known.
    """
    prefix = "sam_" if is_sam2(arrays) else ""
    decoder = f"{prefix}mask_decoder"
    masks, channels = _shape(arrays, f"{decoder}.mask_tokens.weight", 2)
    if channels != DecoderForm().channels:
        raise DataError(f"the decoder has {channels} channels, expected 256, as all published networks have")
    mlp = f"{decoder}.transformer.layers.0.mlp." + ("layers.0" if prefix else "lin1")
    return DecoderForm(
        channels=channels,
        mask_channels=_shape(arrays, f"{prefix}prompt_encoder.mask_downscaling.3.weight", 4)[0],
        masks=masks,
        depth=_blocks(arrays, rf"{decoder}\.transformer\.layers\.(\d+)\."),
        hidden=_shape(arrays, f"{mlp}.weight", 2)[0],
        score_hidden=_shape(arrays, f"{decoder}.iou_prediction_head.layers.0.weight", 2)[0],
    )


def preset_of(form: ViTForm | HieraForm) -> str | None:
    """Returns the name of the published network of a form, or None."""
    return next((name for name, published in PRESETS.items() if published == form), None)


def _hiera_form(arrays: Mapping[str, np.ndarray]) -> HieraForm:
    """Returns the published form that weights belong to; heads and windows cannot be seen in them."""
    width = _shape(arrays, "image_encoder.trunk.patch_embed.proj.weight", 4)[0]
    table = _shape(arrays, "image_encoder.trunk.pos_embed", 4)[2]
    depth = _blocks(arrays, r"image_encoder\.trunk\.blocks\.(\d+)\.")
    forms = {name: form for name, form in PRESETS.items() if isinstance(form, HieraForm)}
    for form in forms.values():
        if (form.width, sum(form.stages), form.table) == (width, depth, table):
            return form
    known = ", ".join(f"{name} ({form.width}, {sum(form.stages)}, {form.table})" for name, form in forms.items())
    raise DataError(
        f"an encoder of width {width}, {depth} blocks and a position table of {table}x{table} is none of SAM 2.1's: "
        f"{known}; the file is not whole, or of another network"
    )


def _shape(arrays: Mapping[str, np.ndarray], name: str, axes: int) -> tuple[int, ...]:
    if name not in arrays:
        raise DataError(
            f"these are not the whole weights of SAM: {name} is missing among {len(arrays)} tensors; get the file again"
        )
    if arrays[name].ndim != axes:
        raise DataError(f"{name} is {arrays[name].shape}, expected {axes} axes; this is another network")
    return arrays[name].shape


def _blocks(arrays: Mapping[str, np.ndarray], pattern: str) -> int:
    return max((int(match[1]) + 1 for name in arrays if (match := re.match(pattern, name))), default=0)
