"""A block of a vision transformer: attention and two dense layers, each with a norm before and a residual around it."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from flax.typing import Dtype

from bcss_jax.models.blocks import initializers, layers, norms
from bcss_jax.models.blocks.attention import attend
from bcss_jax.models.encoders.vision_transformer.adapters import BlockAdapter, with_product
from bcss_jax.models.encoders.vision_transformer.architecture import Architecture
from bcss_jax.models.encoders.vision_transformer.positions import rotated
from bcss_jax.models.weights.torch_layout import LINEAR, SAME, TorchEntries, entries_of


def token_init(rngs: nnx.Rngs, shape: tuple[int, ...]) -> nnx.Param:
    """Draws from a normal distribution with deviation 0.02: DINO's trunc_normal, whose bounds are never met."""
    return initializers.normal(rngs, shape, 0.02)


class Attention(nnx.Module):
    """Self-attention whose queries, keys and values come from one dense layer."""

    def __init__(self, architecture: Architecture, *, dtype: Dtype, rngs: nnx.Rngs):
        """Builds the layer."""
        width, self.heads = architecture.width, architecture.heads
        self.kernel = token_init(rngs, (width, 3 * width))
        self.bias = nnx.Param(jnp.zeros(3 * width))
        self.key_bias, self.dtype = architecture.key_bias, dtype
        self.proj = layers.Linear(width, width, init=token_init, bias_std=0, dtype=dtype, rngs=rngs)

    def query_key_value(
        self, x: jax.Array, angles: np.ndarray | None, adapter: BlockAdapter | None = None
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """(N, T, width), see `Block` -> three arrays (N, T, heads, width / heads), the first two rotated."""
        y = layers.dense(x, self.kernel[...], self._bias(), self.dtype)
        y = with_product(y, x, adapter and adapter.qkv)
        y = y.reshape(*x.shape[:2], 3, self.heads, -1)
        query, key, value = y[:, :, 0], y[:, :, 1], y[:, :, 2]
        if angles is not None:
            prefix = x.shape[1] - len(angles)
            query, key = rotated(query, angles, prefix), rotated(key, angles, prefix)
        return query, key, value

    def first(self, x: jax.Array, angles: np.ndarray | None) -> jax.Array:
        """Tokens (N, T, width) -> the result for the first of them, which is not rotated: (N, 1, width)."""
        width, (kernel, bias) = x.shape[-1], (self.kernel[...], self._bias())

        def dense(x, columns):
            return layers.dense(x, kernel[:, columns], bias[columns], self.dtype)

        query = dense(x[:, :1], slice(0, width)).reshape(x.shape[0], 1, self.heads, -1)
        key, value = jnp.moveaxis(dense(x, slice(width, None)).reshape(*x.shape[:2], 2, self.heads, -1), 2, 0)
        if angles is not None:
            key = rotated(key, angles, x.shape[1] - len(angles))
        return self.proj(attend(query, key, value).reshape(x.shape[0], 1, width))

    def __call__(
        self,
        x: jax.Array,
        angles: np.ndarray | None,
        mask: jax.Array | None = None,
        adapter: BlockAdapter | None = None,
    ) -> jax.Array:
        """(N, T, width), see `Block` -> the same shape."""
        x = attend(*self.query_key_value(x, angles, adapter), mask).reshape(x.shape)
        return with_product(self.proj(x), x, adapter and adapter.proj)

    def _bias(self) -> jax.Array:
        if self.key_bias:
            return self.bias[...]
        return self.bias[...] * np.repeat(np.array((1, 0, 1), np.float32), self.bias.shape[0] // 3)

    def torch_entries(self) -> TorchEntries:
        """Returns the entries under the names of DINO's `Attention`."""
        return {"qkv.weight": (self.kernel, LINEAR), "qkv.bias": (self.bias, SAME)} | entries_of({"proj": self.proj})


class FeedForward(nnx.Module):
    """Two dense layers with the exact GELU or with SwiGLU between them."""

    def __init__(self, architecture: Architecture, *, dtype: Dtype, rngs: nnx.Rngs):
        """Builds the layer."""
        width, hidden, self.gated = architecture.width, architecture.hidden, architecture.gated
        common: dict[str, Any] = dict(init=token_init, bias_std=0, dtype=dtype, rngs=rngs)
        self.dense1 = layers.Linear(width, 2 * hidden if self.gated else hidden, **common)
        self.dense2 = layers.Linear(hidden, width, **common)

    def __call__(self, x: jax.Array, adapter: BlockAdapter | None = None) -> jax.Array:
        """(N, T, width), see `Block` -> the same shape."""
        y = with_product(self.dense1(x), x, adapter and adapter.dense1)
        if self.gated:
            gate, y = jnp.split(y, 2, axis=-1)
            y = jax.nn.silu(gate) * y
        else:
            y = layers.gelu(y)
        return with_product(self.dense2(y), y, adapter and adapter.dense2)

    def torch_entries(self) -> TorchEntries:
        """Returns the entries under the names of DINOv2's `Mlp` or `SwiGLUFFN`."""
        names = ("w12", "w3") if self.gated else ("fc1", "fc2")
        return entries_of(dict(zip(names, (self.dense1, self.dense2), strict=True)))


class Block(nnx.Module):
    """Attention, then dense layers; each result may be scaled by a learned vector and dropped for whole examples."""

    def __init__(self, architecture: Architecture, *, drop_path: float, drop_number: int, dtype: Dtype, rngs: nnx.Rngs):
        """Builds the block.

        Args:
          architecture: form of the network.
          drop_path: probability with which a result is dropped in training (Huang et al. 2016, arXiv:1603.09382).
          drop_number: number of the first of two dropouts; see `layers.Dropout`.
          dtype: type of the computation.
          rngs: random keys.
        """
        width = architecture.width
        self.norm1 = norms.LayerNorm(width, eps=architecture.eps)
        self.attn = Attention(architecture, dtype=dtype, rngs=rngs)
        self.norm2 = norms.LayerNorm(width, eps=architecture.eps)
        self.mlp = FeedForward(architecture, dtype=dtype, rngs=rngs)
        scaled = architecture.layer_scale
        self.scale1 = nnx.Param(jnp.ones(width)) if scaled else None
        self.scale2 = nnx.Param(jnp.ones(width)) if scaled else None
        self.drop1 = layers.Dropout(drop_path, drop_number, whole_examples=True)
        self.drop2 = layers.Dropout(drop_path, drop_number + 1, whole_examples=True)

    def __call__(
        self,
        x: jax.Array,
        angles: np.ndarray | None,
        dropout_keys: jax.Array | None = None,
        mask: jax.Array | None = None,
        adapter: BlockAdapter | None = None,
    ) -> jax.Array:
        """Runs the block.

        Args:
          x: tokens (N, T, width).
          angles: of `positions.rotary_angles`, for the last tokens; None: positions are not rotary.
          dropout_keys: JAX keys (N,), one per example; needed only in training with `drop_path`.
          mask: of `attention.attend`.
          adapter: products that are added to those with the matrices of the block; None: none.

        Returns:
          The shape and type of `x`.
        """
        attended = self.attn(self.norm1(x), angles, mask, adapter)
        return self._with_residuals(x, attended, dropout_keys, adapter)

    def first(self, x: jax.Array, angles: np.ndarray | None, dropout_keys: jax.Array | None = None) -> jax.Array:
        """Returns what `__call__` does for the first token (N, 1, width), in a fraction of its time."""
        return self._with_residuals(x[:, :1], self.attn.first(self.norm1(x), angles), dropout_keys)

    def _with_residuals(self, x, attended, dropout_keys, adapter=None):
        x = x + self.drop1(_scaled(attended, self.scale1), dropout_keys)
        return x + self.drop2(_scaled(self.mlp(self.norm2(x), adapter), self.scale2), dropout_keys)

    def torch_entries(self) -> TorchEntries:
        """Returns the entries under the names of DINOv2's `Block`."""
        entries = entries_of({"norm1": self.norm1, "attn": self.attn, "norm2": self.norm2, "mlp": self.mlp})
        for name, scale in (("ls1.gamma", self.scale1), ("ls2.gamma", self.scale2)):
            if scale is not None:
                entries[name] = (scale, SAME)
        return entries


def _scaled(x: jax.Array, scale: nnx.Param | None) -> jax.Array:
    return x if scale is None else x * layers.spread(scale[...], x)
