"""Transformer encoder of the vision transformer, over tokens (N, T, D).

Source: Dosovitskiy et al. 2020 (arXiv:2010.11929), in the forms of github.com/Beckschen/TransUNet and
github.com/google-research/vision_transformer.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from flax.typing import Dtype

from bcss_jax.models.blocks import initializers, layers, norms
from bcss_jax.models.blocks.attention import attend
from bcss_jax.models.weights.torch_layout import TorchEntries, entries_of, prefixed


class Attention(nnx.Module):
    """Self-attention with several heads. The softmax is float32 for tokens of any type."""

    def __init__(self, features: int, heads: int, *, dtype: Dtype, rngs: nnx.Rngs):
        """Builds the layer for tokens of `features` features, which are divided among `heads` heads."""
        self.query, self.key, self.value, self.out = (
            layers.Linear(features, features, dtype=dtype, rngs=rngs) for _ in range(4)
        )
        self.heads = heads

    def __call__(self, x: jax.Array) -> jax.Array:
        """(N, T, features) -> the same shape."""
        n, t, features = x.shape
        query, key, value = (
            linear(x).reshape(n, t, self.heads, features // self.heads) for linear in (self.query, self.key, self.value)
        )
        return self.out(attend(query, key, value).reshape(x.shape))

    def torch_entries(self) -> TorchEntries:
        """Returns the entries under the names of TransUNet's `Attention`."""
        return entries_of({"query": self.query, "key": self.key, "value": self.value, "out": self.out})


class Block(nnx.Module):
    """Attention followed by an MLP of two dense layers with a GELU between them.

    Attention and MLP each have a LayerNorm before them and a residual connection around them.
    """

    def __init__(
        self,
        features: int,
        heads: int,
        mlp: int,
        *,
        google: bool,
        dropout: float,
        dropout_number: int,
        dtype: Dtype,
        rngs: nnx.Rngs,
    ):
        """Builds the block; see `Transformer`. Its three dropouts are numbered from `dropout_number`."""
        self.attention_norm = norms.LayerNorm(features, eps=1e-6)
        self.attention = Attention(features, heads, dtype=dtype, rngs=rngs)
        self.attention_dropout = layers.Dropout(dropout if google else 0, dropout_number)
        self.mlp_norm = norms.LayerNorm(features, eps=1e-6)
        dense: dict[str, Any] = dict(init=initializers.xavier_uniform, bias_std=1e-6, dtype=dtype, rngs=rngs)
        self.dense1 = layers.Linear(features, mlp, **dense)
        self.dropout1 = layers.Dropout(dropout, dropout_number + 1)
        self.dense2 = layers.Linear(mlp, features, **dense)
        self.dropout2 = layers.Dropout(dropout, dropout_number + 2)
        self.google = google

    def __call__(self, x: jax.Array, dropout_keys: jax.Array | None) -> jax.Array:
        """(N, T, features) and one key per example (N,) -> the same shape as the tokens."""
        x = x + self.attention_dropout(self.attention(self.attention_norm(x)), dropout_keys)
        y = self.dense1(self.mlp_norm(x))
        # float16 does not hold the third power of 41, which the tanh form takes.
        wide = y.astype(jnp.float32) if y.dtype == jnp.float16 else y
        y = self.dropout1(jax.nn.gelu(wide, approximate=self.google).astype(y.dtype), dropout_keys)
        return x + self.dropout2(self.dense2(y), dropout_keys)

    def torch_entries(self) -> TorchEntries:
        """Returns the entries under the names of TransUNet's `Block`."""
        attention = {"attention_norm": self.attention_norm, "attn": self.attention}
        mlp = {"ffn_norm": self.mlp_norm, "ffn.fc1": self.dense1, "ffn.fc2": self.dense2}
        return entries_of(attention) | entries_of(mlp)


class Transformer(nnx.Module):
    """A sequence of blocks and a final LayerNorm."""

    def __init__(
        self,
        features: int,
        heads: int,
        mlp: int,
        blocks: int,
        *,
        google: bool,
        dropout: float,
        dropout_number: int,
        dtype: Dtype,
        rngs: nnx.Rngs,
    ):
        """Builds the encoder.

        Attention is initialized with PyTorch's default, dense layers with Glorot's uniform kernels.

        Args:
          features: of a token.
          heads: number of attention heads; must divide `features`.
          mlp: features between the two dense layers.
          blocks: number of blocks.
          google: use the arithmetic that Google trained with: the tanh form of the GELU, and dropout after the
            attention as well. Otherwise that of TransUNet: the exact GELU, and dropout after the two dense layers only.
          dropout: probability.
          dropout_number: number of the first dropout; each block has three of them, numbered consecutively.
          dtype: type of the computation.
          rngs: random keys.
        """
        self.blocks = blocks
        for i in range(blocks):
            number = dropout_number + 3 * i
            block = Block(
                features, heads, mlp, google=google, dropout=dropout, dropout_number=number, dtype=dtype, rngs=rngs
            )
            setattr(self, f"block{i}", block)
        self.norm = norms.LayerNorm(features, eps=1e-6)

    def __call__(self, x: jax.Array, dropout_keys: jax.Array | None = None) -> jax.Array:
        """(N, T, features) and, in training with dropout, one key per example (N,) -> the same shape as the tokens."""
        for i in range(self.blocks):
            x = getattr(self, f"block{i}")(x, dropout_keys)
        return self.norm(x)

    def torch_entries(self) -> TorchEntries:
        """Returns the entries under the names of TransUNet's `Encoder`."""
        entries = prefixed("encoder_norm", self.norm.torch_entries())
        for i in range(self.blocks):
            entries |= prefixed(f"layer.{i}", getattr(self, f"block{i}").torch_entries())
        return entries
