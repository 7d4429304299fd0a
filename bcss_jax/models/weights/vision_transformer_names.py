"""The names under which vision transformers are published: those of Meta, timm and Hugging Face, in the files.

All become the names of DINOv2's `DinoVisionTransformer`, with the dense layers of a SwiGLU as `w12` and `w3`.
"""

import re
from collections.abc import Mapping

import numpy as np

from bcss_jax.errors import DataError
from bcss_jax.models.encoders.vision_transformer.positions import rotary_periods

# Wrappers of training programs. DINO's and DINOv2's checkpoints hold a student too, which is not what one wants.
_WRAPPER = re.compile(
    r"^(?:(?:module|_orig_mod|model|backbone|encoder|teacher|vit|dinov2|trunk|visual|transformer)\.)+"
)
_RENAMES = tuple(
    (re.compile(pattern), name)
    for pattern, name in (
        (r"^embeddings\.(cls_token|mask_token|register_tokens)$", r"\1"),
        (r"^(reg_token|storage_tokens)$", "register_tokens"),
        (r"^embeddings\.position_embeddings(\.weight)?$", "pos_embed"),
        (r"^embeddings\.patch_embeddings\.(?:projection\.)?", "patch_embed.proj."),
        (r"^layers?\.(\d+)\.", r"blocks.\1."),
        (r"^blocks\.\d+\.(\d+)\.", r"blocks.\1."),  # DINOv2 divides the blocks into chunks and counts through
        (r"^(blocks\.\d+\.)attention\.(?:attention\.)?(?:query|q_proj)\.", r"\1attn.q."),
        (r"^(blocks\.\d+\.)attention\.(?:attention\.)?(?:key|k_proj)\.", r"\1attn.k."),
        (r"^(blocks\.\d+\.)attention\.(?:attention\.)?(?:value|v_proj)\.", r"\1attn.v."),
        (r"^(blocks\.\d+\.)attention\.(?:output\.dense|o_proj|out_proj)\.", r"\1attn.proj."),
        (r"^(blocks\.\d+\.)(?:layernorm_before|layer_norm1)\.", r"\1norm1."),
        (r"^(blocks\.\d+\.)(?:layernorm_after|layer_norm2)\.", r"\1norm2."),
        (r"^(blocks\.\d+\.)intermediate\.dense\.", r"\1mlp.fc1."),
        (r"^(blocks\.\d+\.)output\.dense\.", r"\1mlp.fc2."),
        (r"^(blocks\.\d+\.)mlp\.weights_in\.", r"\1mlp.w12."),
        (r"^(blocks\.\d+\.)mlp\.weights_out\.", r"\1mlp.w3."),
        (r"^(blocks\.\d+\.)layer_scale([12])\.lambda1$", r"\1ls\2.gamma"),
        (r"^(blocks\.\d+\.)gamma_([12])$", r"\1ls\2.gamma"),
        (r"^layernorm\.", "norm."),
        (r"^fc_norm\.", "norm."),  # timm's name if it averages the patches
    )
)
# What such files hold besides the network: heads of the pretraining, classifiers, and norms that only training uses.
_OTHERS = re.compile(r"^(?:dino_head|ibot_head|head|classifier|pooler|local_cls_norm|mim|decoder)\.")


def canonical(state: Mapping[str, np.ndarray]) -> tuple[dict[str, np.ndarray], list[str]]:
    """Returns the weights of a vision transformer under the names of DINOv2.

    Args:
      state: name -> array in PyTorch's layout, as in the file.

    Returns:
      The weights, and the names of the file that the network does not need. Rotary periods and masks of biases are
      among these after they have been applied or compared.

    Raises:
      DataError: two names of the file mean the same weights, a group of weights is not whole, or rotary periods are not
        those of DINOv3.
    """
    sources: dict[str, str] = {}
    arrays: dict[str, np.ndarray] = {}
    others: list[str] = []
    for original, array in state.items():
        name = original
        if original.startswith("student."):
            others.append(original)
            continue
        name = _WRAPPER.sub("", name)
        for pattern, replacement in _RENAMES:
            name = pattern.sub(replacement, name)
        if _OTHERS.match(name):
            others.append(original)
            continue
        if name in arrays:
            raise DataError(f"{sources[name]} and {original} are both {name}; keep one of them")
        arrays[name], sources[name] = np.asarray(array), original
    _join_query_key_value(arrays)
    others += _apply_bias_masks(arrays)
    others += _compare_periods(arrays)
    _join_gates(arrays)
    if arrays.get("pos_embed", np.empty((1, 1, 1))).ndim == 2:
        arrays["pos_embed"] = arrays["pos_embed"][None]
    for name in ("cls_token", "register_tokens"):
        if name in arrays:
            arrays[name] = arrays[name].reshape(1, -1, arrays[name].shape[-1])
    if "mask_token" in arrays:
        arrays["mask_token"] = arrays["mask_token"].reshape(1, -1)
    return arrays, others


def _blocks_with(arrays: dict[str, np.ndarray], end: str) -> list[str]:
    """Returns the starts of the names that end in `end`, up to the block and its dot."""
    return [name.removesuffix(end) for name in arrays if name.startswith("blocks.") and name.endswith(f".{end}")]


def _join_query_key_value(arrays: dict[str, np.ndarray]) -> None:
    for kind in ("weight", "bias"):
        for block in _blocks_with(arrays, f"attn.q.{kind}"):
            parts = [arrays.pop(f"{block}attn.{part}.{kind}", None) for part in "qkv"]
            if parts[1] is None and kind == "bias" and parts[0] is not None:
                parts[1] = np.zeros_like(parts[0])  # DINOv3's keys have no bias
            arrays[f"{block}attn.qkv.{kind}"] = np.concatenate(_whole(parts, f"{block}attn.*.{kind}"))
    for block in _blocks_with(arrays, "attn.qkv.weight"):  # some files leave out what is zero
        weight = arrays[f"{block}attn.qkv.weight"]
        arrays.setdefault(f"{block}attn.qkv.bias", np.zeros(len(weight), weight.dtype))


def _apply_bias_masks(arrays: dict[str, np.ndarray]) -> list[str]:
    """Multiplies biases by their masks, which DINOv3 keeps beside them; returns the names of the masks."""
    names = []
    for block in _blocks_with(arrays, "attn.qkv.bias_mask"):
        names.append(f"{block}attn.qkv.bias_mask")
        bias, mask = _whole([arrays.get(f"{block}attn.qkv.bias"), arrays.pop(names[-1])], f"{block}attn.qkv.bias")
        arrays[f"{block}attn.qkv.bias"] = np.where(mask == 0, 0, bias).astype(bias.dtype)
    return names


def _compare_periods(arrays: dict[str, np.ndarray]) -> list[str]:
    names = [name for name in arrays if name.endswith(("rope_embed.periods", "rope_embeddings.inv_freq"))]
    for name in names:
        found = np.asarray(arrays.pop(name), np.float64)
        found = 1 / found if name.endswith("inv_freq") else found
        expected = rotary_periods(4 * found.size)
        if found.shape != expected.shape or not np.allclose(found, expected, rtol=1e-2):  # some are stored in bfloat16
            raise DataError(f"{name} is not that of DINOv3 (base 100); such rotary positions are not supported")
    return names


def _join_gates(arrays: dict[str, np.ndarray]) -> None:
    """Brings the dense layers of a SwiGLU to the form w12, w3, and those of a GELU to fc1, fc2."""
    for kind in ("weight", "bias"):
        for block in _blocks_with(arrays, f"mlp.down_proj.{kind}"):
            gated = f"{block}mlp.gate_proj.{kind}" in arrays
            names = (
                {"gate_proj": "w1", "up_proj": "w2", "down_proj": "w3"}
                if gated
                else {"up_proj": "fc1", "down_proj": "fc2"}
            )
            for theirs, ours in names.items():
                if f"{block}mlp.{theirs}.{kind}" in arrays:
                    arrays[f"{block}mlp.{ours}.{kind}"] = arrays.pop(f"{block}mlp.{theirs}.{kind}")
        for block in _blocks_with(arrays, f"mlp.w1.{kind}"):
            parts = [arrays.pop(f"{block}mlp.{part}.{kind}", None) for part in ("w1", "w2")]
            arrays[f"{block}mlp.w12.{kind}"] = np.concatenate(_whole(parts, f"{block}mlp.w1, w2"))
    # timm packs gate and value into fc1, which then has twice the features that fc2 takes.
    for block in _blocks_with(arrays, "mlp.fc1.weight"):
        first, second = arrays[f"{block}mlp.fc1.weight"], arrays.get(f"{block}mlp.fc2.weight")
        if second is not None and first.ndim == second.ndim == 2 and first.shape[0] == 2 * second.shape[1]:
            for theirs, ours in (("fc1", "w12"), ("fc2", "w3")):
                for kind in ("weight", "bias"):
                    if f"{block}mlp.{theirs}.{kind}" in arrays:
                        arrays[f"{block}mlp.{ours}.{kind}"] = arrays.pop(f"{block}mlp.{theirs}.{kind}")


def _whole(parts: list[np.ndarray | None], name: str) -> list[np.ndarray]:
    found = [part for part in parts if part is not None]
    if len(found) < len(parts):
        raise DataError(f"{name}: {len(parts)} tensors belong together, and {len(parts) - len(found)} is missing")
    return found
