"""The first layers that the report's TransUNet and Dense U-Net share."""

import jax
from flax import nnx
from flax.typing import Dtype

from bcss_jax.models.blocks import layers, norms, resampling
from bcss_jax.models.weights.torch_layout import TorchEntries, entries_of


class Stem(nnx.Module):
    """7x7 convolution with stride 2, BatchNorm, ReLU and 3x3 maximum with stride 2: a quarter of the size."""

    def __init__(self, inputs: int, outputs: int, *, use_bias: bool, dtype: Dtype, rngs: nnx.Rngs):
        """Builds the stem.

        Args:
          inputs: channels of the images.
          outputs: channels of the result.
          use_bias: whether the convolution has a bias.
          dtype: type of the computation.
          rngs: random keys.
        """
        self.conv = layers.Conv(inputs, outputs, 7, stride=2, use_bias=use_bias, dtype=dtype, rngs=rngs)
        self.norm = norms.BatchNorm(outputs, relu=True)

    def __call__(self, images: jax.Array) -> jax.Array:
        """(N, H, W, inputs) -> (N, H', W', outputs) with a quarter of the sides, rounded up."""
        return resampling.max_pool_3x3(self.norm(self.conv(images)))

    def torch_entries(self) -> TorchEntries:
        """Returns the entries under the numbers of the code's `Sequential`."""
        return entries_of({"0": self.conv, "1": self.norm})
