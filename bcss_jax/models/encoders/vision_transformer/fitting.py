"""Whether weights fit a vision transformer, and which published one they do fit."""

import dataclasses
import math
import re
from collections.abc import Mapping

import numpy as np

from bcss_jax.errors import DataError
from bcss_jax.models.encoders.vision_transformer.architecture import Architecture
from bcss_jax.models.encoders.vision_transformer.presets import PRESETS


def architecture_of(arrays: Mapping[str, np.ndarray], like: Architecture) -> Architecture:
    """Returns the form of the network that weights belong to.

    Args:
      arrays: under the names of `weights.vision_transformer_names.canonical`.
      like: has what weights do not tell, such as the number of heads.

    Raises:
      DataError: these are not the weights of a vision transformer.
    """
    patch = arrays.get("patch_embed.proj.weight")
    blocks = {int(match[1]) for name in arrays if (match := re.match(r"blocks\.(\d+)\.", name))}
    if patch is None or patch.ndim != 4 or "cls_token" not in arrays or not blocks:
        raise DataError(
            "not the weights of a vision transformer: expected patch_embed.proj.weight, cls_token and blocks under a "
            f"name of DINO, timm or Hugging Face, found {', '.join(sorted(arrays)[:4]) or 'none'}"
        )
    width, depth = patch.shape[0], max(blocks) + 1
    gated = "blocks.0.mlp.w12.weight" in arrays
    first = arrays.get("blocks.0.mlp.w12.weight" if gated else "blocks.0.mlp.fc1.weight", np.empty((0, 0)))
    registers = arrays["register_tokens"].shape[1] if "register_tokens" in arrays else 0
    changes: dict = dict(table=None, prefix_rows=like.prefix_rows)
    if "pos_embed" in arrays:
        rows = arrays["pos_embed"].shape[1]
        for prefix_rows in dict.fromkeys((like.prefix_rows, 1, 1 + registers, 0)):
            side = math.isqrt(max(rows - prefix_rows, 0))
            if side and side**2 + prefix_rows == rows:
                changes = dict(table=side, prefix_rows=prefix_rows)
                break
    return dataclasses.replace(
        like,
        width=width,
        depth=depth,
        heads=like.heads if like.width == width else max(width // 64, 1),
        patch=patch.shape[2],
        hidden=first.shape[0] // (2 if gated else 1),
        gated=gated,
        layer_scale="blocks.0.ls1.gamma" in arrays,
        registers=registers,
        **changes,
    )


def check_fit(arrays: Mapping[str, np.ndarray], expected: Architecture) -> None:
    """Raises DataError unless weights have the form of a network; the message says which published network they fit.

    Args:
      arrays: under the names of `weights.vision_transformer_names.canonical`.
      expected: form of the network.
    """
    found = architecture_of(arrays, expected)
    if found == expected:
        return
    if dataclasses.replace(found, table=expected.table) == expected and found.table and expected.table:
        raise DataError(
            f"its position table is {found.table}x{found.table}, expected {expected.table}x{expected.table}; "
            f"set --config.model.table={found.table}"
        )
    names = [
        name for name, preset in PRESETS.items() if architecture_of(arrays, preset.architecture) == preset.architecture
    ]
    if names:
        remedy = f"it fits --config.encoder={names[0]}" + (f" (or {', '.join(names[1:])})" if names[1:] else "")
    else:
        near = min(PRESETS, key=lambda name: len(_differences(found, PRESETS[name].architecture)))
        differences = "; ".join(_differences(found, PRESETS[near].architecture))
        remedy = f"it fits no published encoder that is known here; nearest is {near}, which differs: {differences}"
    raise DataError(f"the weights of another vision transformer: {'; '.join(_differences(found, expected))}; {remedy}")


def _differences(found: Architecture, expected: Architecture) -> list[str]:
    names = ("width", "depth", "patch", "hidden", "gated", "layer_scale", "registers", "table", "prefix_rows")
    pairs = [(name, getattr(found, name), getattr(expected, name)) for name in names]
    return [f"{name} is {one}, expected {other}" for name, one, other in pairs if one != other]
