"""Converts Google's weights of hybrid vision transformers (`R50+ViT-B_16.npz`) to a PyTorch state of TransUNet.

Source: the names in github.com/google-research/vision_transformer, before and after its move to flax.linen, and their
conversion in github.com/Beckschen/TransUNet.
"""

import math
import re
from collections.abc import Iterable, Mapping

import numpy as np

from bcss_jax.models.weights.torch_layout import CONV, LINEAR

_POSITIONS = "Transformer/posembed_input/pos_embedding"
_NOT_USED = re.compile(r"cls|(head|pre_logits)/.*")
_LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias"}
_RENAMED = [  # (pattern of Google's layer name, PyTorch's layer name)
    (r"conv_root", "embeddings.hybrid_model.root.conv"),
    (r"gn_root", "embeddings.hybrid_model.root.gn"),
    (r"(block\d+)/(unit\d+)/conv_proj", r"embeddings.hybrid_model.body.\1.\2.downsample"),
    (r"(block\d+)/(unit\d+)/(conv\d|gn\d|gn_proj)", r"embeddings.hybrid_model.body.\1.\2.\3"),
    (r"embedding", "embeddings.patch_embeddings"),
    (r"Transformer/encoder_norm", "encoder.encoder_norm"),
    (r"Transformer/encoderblock_(\d+)/LayerNorm_0", r"encoder.layer.\1.attention_norm"),
    (r"Transformer/encoderblock_(\d+)/LayerNorm_[12]", r"encoder.layer.\1.ffn_norm"),
    (r"Transformer/encoderblock_(\d+)/MlpBlock_[03]/Dense_0", r"encoder.layer.\1.ffn.fc1"),
    (r"Transformer/encoderblock_(\d+)/MlpBlock_[03]/Dense_1", r"encoder.layer.\1.ffn.fc2"),
    (
        r"Transformer/encoderblock_(\d+)/MultiHeadDotProductAttention_[01]/(query|key|value|out)",
        r"encoder.layer.\1.attn.\2",
    ),
]


def is_google(names: Iterable[str]) -> bool:
    """Returns whether array names are those of Google's vision transformers."""
    return any(name.startswith("Transformer/") for name in names)


def torch_state(arrays: Mapping[str, np.ndarray], grid: tuple[int, int]) -> dict[str, np.ndarray]:
    """Returns Google's arrays under TransUNet's names, in PyTorch's layout.

    Args:
      arrays: name in the npz -> array. The class token and the arrays of the classifier (`cls`, `pre_logits`, `head`)
        are dropped, because TransUNet has neither.
      grid: rows and columns of tokens; position embeddings are resized to this grid.

    Returns:
      {name in `TransUNet.encoder.torch_entries()`: array}. Unknown names are kept, so that the loader can list them in
      its error.
    """
    state = {}
    for name, array in arrays.items():
        if name == _POSITIONS:
            state["embeddings.position_embeddings"] = _resized(np.asarray(array), grid)
        elif not _NOT_USED.fullmatch(name):
            torch_name = _torch_name(name)
            state[torch_name or name] = _in_torch_layout(name, np.asarray(array)) if torch_name else array
    return state


def _torch_name(name: str) -> str | None:
    layer, _, leaf = name.rpartition("/")
    for pattern, replacement in _RENAMED:
        match = re.fullmatch(pattern, layer)
        if match and leaf in _LEAVES:
            return f"{match.expand(replacement)}.{_LEAVES[leaf]}"
    return None


def _in_torch_layout(name: str, array: np.ndarray) -> np.ndarray:
    if not name.endswith("kernel"):
        return array.reshape(-1)  # GroupNorm has arrays (1, 1, 1, C), attention has biases (heads, features)
    if array.ndim == 4:
        return CONV.to_torch(array)
    if array.ndim < 2:
        return array  # an invalid kernel, which the loader reports
    # A matrix. In attention its inputs or outputs are split over the heads.
    inputs_split = name.endswith("/out/kernel")
    matrix = array.reshape(-1, array.shape[-1]) if inputs_split else array.reshape(array.shape[0], -1)
    return LINEAR.to_torch(matrix)


def _resized(table: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """Resizes position embeddings to a grid: (1, S * S, D) -> (1, rows * columns, D).

    The table may have S * S + 1 rows, the first for a class token, which is dropped. A table of another shape is
    returned unchanged. Interpolation is linear and maps corners to corners, as in TransUNet.
    """
    tokens = table.shape[1] if table.ndim == 3 else 0
    side = math.isqrt(tokens)
    if side == 0 or side * side not in (tokens, tokens - 1):
        return table
    table = table[:, tokens - side * side :]
    if grid == (side, side):
        return table
    rows, columns = (_interpolation_matrix(side, new) for new in grid)
    resized = np.einsum(
        "ri,cj,ijd->rcd", rows, columns, table.reshape(side, side, -1).astype(np.float64), optimize=True
    )
    return resized.reshape(1, -1, table.shape[-1]).astype(table.dtype)


def _interpolation_matrix(old: int, new: int) -> np.ndarray:
    source = np.linspace(0, old - 1, new)
    return np.maximum(0, 1 - np.abs(source[:, None] - np.arange(old)[None]))
