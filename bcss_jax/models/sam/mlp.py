"""Dense layers after each other."""

from collections.abc import Callable, Sequence

import jax
from flax import nnx
from flax.typing import Dtype

from bcss_jax.models.blocks import layers
from bcss_jax.models.encoders.vision_transformer.adapters import LowRank, with_product
from bcss_jax.models.weights.torch_layout import TorchEntries, entries_of

LIN = ("lin1", "lin2")  # names of SAM; those of SAM 2.1 are numbers


class MLP(nnx.Module):
    """Dense layers with an activation between them and none after the last one."""

    def __init__(
        self,
        widths: Sequence[int],
        *,
        activation: Callable[[jax.Array], jax.Array] = jax.nn.relu,
        names: Sequence[str] = (),
        dtype: Dtype,
        rngs: nnx.Rngs,
    ):
        """Builds the layers.

        Args:
          widths: features of the input, of the result of each layer.
          activation: between the layers.
          names: of the layers in the reference; empty: `layers.0`, `layers.1`, ...
          dtype: type of the computation.
          rngs: random keys.
        """
        pairs = list(zip(widths[:-1], widths[1:], strict=True))
        self.layers = nnx.List(layers.Linear(*pair, dtype=dtype, rngs=rngs) for pair in pairs)
        self.activation = activation
        self.names = tuple(names) or tuple(f"layers.{i}" for i in range(len(pairs)))

    def __call__(self, x: jax.Array, products: Sequence[LowRank | None] = ()) -> jax.Array:
        """(..., widths[0]) -> (..., widths[-1]); `products` are what LoRA trains beside the layers."""
        products = products or (None,) * len(self.layers)
        last = len(self.layers) - 1
        for i, (layer, product) in enumerate(zip(self.layers, products, strict=True)):
            x = with_product(layer(x), x, product)
            x = x if i == last else self.activation(x)
        return x

    def torch_entries(self) -> TorchEntries:
        """Returns the entries under the names of SAM's `MLPBlock` or `MLP`."""
        return entries_of(dict(zip(self.names, self.layers, strict=True)))
