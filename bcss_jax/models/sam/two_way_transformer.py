"""A transformer in which tokens look at an image and the image looks back at them.

Source: `TwoWayTransformer` of github.com/facebookresearch/segment-anything and sam2.
"""

from typing import Any

import jax
from flax import nnx
from flax.typing import Dtype

from bcss_jax.models.blocks import layers, norms
from bcss_jax.models.blocks.attention import attend
from bcss_jax.models.sam.architecture import DecoderForm
from bcss_jax.models.sam.mlp import MLP
from bcss_jax.models.weights.torch_layout import TorchEntries, entries_of

EPS = 1e-5


class Attention(nnx.Module):
    """Attention with a dense layer for each of query, key, value and result."""

    def __init__(self, width: int, heads: int, *, downsample: int = 1, dtype: Dtype, rngs: nnx.Rngs):
        """Builds the layer; the features inside are `width` / `downsample`."""
        inner = width // downsample
        common: dict[str, Any] = dict(dtype=dtype, rngs=rngs)
        self.q_proj, self.k_proj, self.v_proj = (layers.Linear(width, inner, **common) for _ in range(3))
        self.out_proj = layers.Linear(inner, width, **common)
        self.heads = heads

    def __call__(self, query: jax.Array, key: jax.Array, value: jax.Array, seen: jax.Array | None = None) -> jax.Array:
        """Runs the layer.

        Args:
          query: (P, T, width).
          key: (P, S, width).
          value: (P, S, width).
          seen: bool (P, S), which keys are seen; None: all.

        Returns:
          (P, T, width).
        """
        pairs = ((self.q_proj, query), (self.k_proj, key), (self.v_proj, value))
        q, k, v = (layer(x).reshape(*x.shape[:2], self.heads, -1) for layer, x in pairs)
        mask = None if seen is None else jax.numpy.broadcast_to(seen[:, None], (len(q), q.shape[1], k.shape[1]))
        return self.out_proj(attend(q, k, v, mask).reshape(*query.shape[:2], -1))

    def torch_entries(self) -> TorchEntries:
        """Returns the entries under the names of SAM's `Attention` of the decoder."""
        names = ("q_proj", "k_proj", "v_proj", "out_proj")
        return entries_of({name: getattr(self, name) for name in names})


class Layer(nnx.Module):
    """Tokens to tokens, tokens to image, dense layers, image to tokens; each with a norm behind it."""

    def __init__(self, form: DecoderForm, *, first: bool, mlp_names: tuple[str, ...], dtype: Dtype, rngs: nnx.Rngs):
        """Builds the layer; the `first` one attends without positions, and its result replaces the tokens."""
        width, common = form.channels, dict[str, Any](dtype=dtype, rngs=rngs)
        self.self_attn = Attention(width, form.heads, **common)
        self.cross_attn_token_to_image = Attention(width, form.heads, downsample=2, **common)
        self.cross_attn_image_to_token = Attention(width, form.heads, downsample=2, **common)
        self.mlp = MLP((width, form.hidden, width), names=mlp_names, **common)
        self.norm1, self.norm2, self.norm3, self.norm4 = (norms.LayerNorm(width, eps=EPS) for _ in range(4))
        self.first = first

    def __call__(
        self, tokens: jax.Array, image: jax.Array, token_positions: jax.Array, positions: jax.Array, seen
    ) -> tuple[jax.Array, jax.Array]:
        """Runs the layer; the arguments are those of `TwoWayTransformer`. Returns the tokens and the image."""
        if self.first:
            tokens = self.self_attn(tokens, tokens, tokens, seen)
        else:
            placed = tokens + token_positions
            tokens = tokens + self.self_attn(placed, placed, tokens, seen)
        tokens = self.norm1(tokens)
        tokens = tokens + self.cross_attn_token_to_image(tokens + token_positions, image + positions, image)
        tokens = self.norm2(tokens)
        tokens = self.norm3(tokens + self.mlp(tokens))
        looking_back = self.cross_attn_image_to_token(image + positions, tokens + token_positions, tokens, seen)
        return tokens, self.norm4(image + looking_back)

    def torch_entries(self) -> TorchEntries:
        """Returns the entries under the names of SAM's `TwoWayAttentionBlock`."""
        names = ("self_attn", "cross_attn_token_to_image", "cross_attn_image_to_token", "mlp")
        return entries_of({name: getattr(self, name) for name in (*names, "norm1", "norm2", "norm3", "norm4")})


class TwoWayTransformer(nnx.Module):
    """The layers, and a last look of the tokens at the image."""

    def __init__(self, form: DecoderForm, *, mlp_names: tuple[str, ...], dtype: Dtype, rngs: nnx.Rngs):
        """Builds the transformer; `mlp_names` are those of the dense layers in the reference."""
        self.layers = nnx.List(
            Layer(form, first=i == 0, mlp_names=mlp_names, dtype=dtype, rngs=rngs) for i in range(form.depth)
        )
        self.final_attn = Attention(form.channels, form.heads, downsample=2, dtype=dtype, rngs=rngs)
        self.norm = norms.LayerNorm(form.channels, eps=EPS)

    def __call__(
        self, tokens: jax.Array, image: jax.Array, positions: jax.Array, seen: jax.Array | None
    ) -> tuple[jax.Array, jax.Array]:
        """Runs the transformer.

        Args:
          tokens: (P, T, C); as they come in, they are also the tokens' positions.
          image: (P, S, C), pixels of the image's embedding with the mask prompt.
          positions: (1, S, C), of the pixels.
          seen: bool (P, T), which tokens exist; None: all.

        Returns:
          Tokens and pixels after the layers.
        """
        token_positions = tokens
        for layer in self.layers:
            tokens, image = layer(tokens, image, token_positions, positions, seen)
        tokens = tokens + self.final_attn(tokens + token_positions, image + positions, image)
        return self.norm(tokens), image

    def torch_entries(self) -> TorchEntries:
        """Returns the entries under the names of SAM's `TwoWayTransformer`."""
        layers = {f"layers.{i}": layer for i, layer in enumerate(self.layers)}
        return entries_of({**layers, "final_attn_token_to_image": self.final_attn, "norm_final_attn": self.norm})
