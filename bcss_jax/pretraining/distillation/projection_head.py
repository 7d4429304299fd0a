"""The head of the pretraining: features to scores of prototypes."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from flax.typing import Dtype

from bcss_jax.models.blocks import initializers, layers
from bcss_jax.models.encoders.vision_transformer.block import token_init
from bcss_jax.models.weights.torch_layout import SAME, TorchEntries, entries_of


class ProjectionHead(nnx.Module):
    """Three dense layers, a normalization to length one, and the products with prototypes of length one.

    Source: `DINOHead` of github.com/facebookresearch/dino and dinov2.
    """

    def __init__(
        self,
        inputs: int,
        prototypes: int,
        *,
        hidden: int = 2048,
        bottleneck: int = 256,
        free_lengths: bool = False,
        dtype: Dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Builds the head.

        Args:
          inputs: features of a token.
          prototypes: number of scores.
          hidden: features of the first two dense layers.
          bottleneck: features of a prototype.
          free_lengths: train the lengths of the prototypes, as DINOv2 does; otherwise they stay one ("norm_last_layer"
            of DINO).
          dtype: type of the computation. Weights and scores are float32.
          rngs: random keys.
        """
        common: dict[str, Any] = dict(init=token_init, bias_std=0, dtype=dtype, rngs=rngs)
        self.dense1 = layers.Linear(inputs, hidden, **common)
        self.dense2 = layers.Linear(hidden, hidden, **common)
        self.dense3 = layers.Linear(hidden, bottleneck, **common)
        self.directions = nnx.Param(initializers.torch_default(rngs, (bottleneck, prototypes))[...].T)
        self.lengths = nnx.Param(jnp.ones((prototypes, 1))) if free_lengths else None
        self.dtype = dtype

    def __call__(self, x: jax.Array) -> jax.Array:
        """(..., inputs) -> scores float32 (..., prototypes)."""
        x = layers.gelu(self.dense1(x))
        x = layers.gelu(self.dense2(x))
        x = self.dense3(x)
        x = normalized(x, 1e-6 if self.dtype == jnp.float16 else 1e-12)
        prototypes = self.directions[...]
        prototypes = prototypes / jnp.linalg.norm(prototypes, axis=1, keepdims=True)
        if self.lengths is not None:
            prototypes = prototypes * self.lengths[...]
        y = jnp.matmul(
            x.astype(self.dtype).reshape(-1, x.shape[-1]),
            prototypes.astype(self.dtype).T,
            preferred_element_type=jnp.float32,
        )
        return y.reshape(*x.shape[:-1], -1)

    def torch_entries(self) -> TorchEntries:
        """Returns the entries under the names of `DINOHead`."""
        entries = entries_of({"mlp.0": self.dense1, "mlp.2": self.dense2, "mlp.4": self.dense3})
        entries["last_layer.weight_v"] = (self.directions, SAME)
        if self.lengths is not None:
            entries["last_layer.weight_g"] = (self.lengths, SAME)
        return entries


def normalized(x: jax.Array, eps: float) -> jax.Array:
    """Returns float32 vectors (..., C) of length one; those shorter than `eps` are divided by it."""
    x = x.astype(jnp.float32)
    squares = jnp.sum(x * x, axis=-1, keepdims=True)
    # The root has no gradient at zero.
    length = jnp.sqrt(jnp.where(squares > eps * eps, squares, 1))
    return x / jnp.where(squares > eps * eps, length, eps)
