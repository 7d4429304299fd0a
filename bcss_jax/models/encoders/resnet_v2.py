"""ResNet with standardized kernels and GroupNorm: the convolutional part of hybrid vision transformers.

Source: Kolesnikov et al. 2019 (BiT, arXiv:1912.11370) in the forms of github.com/Beckschen/TransUNet and
github.com/google-research/vision_transformer. Despite the name, units normalize after each convolution.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from flax.typing import Dtype

from bcss_jax.models.blocks import layers, norms, resampling
from bcss_jax.models.weights.torch_layout import HasTorchEntries, TorchEntries, entries_of, prefixed

GROUPS = 32


class StdConv(layers.Conv):
    """Convolution without a bias whose kernel is standardized to mean 0 and variance 1 for each output channel."""

    def __init__(
        self, inputs: int, outputs: int, size: int, *, stride: int = 1, google: bool, dtype: Dtype, rngs: nnx.Rngs
    ):
        """Builds the layer; see `layers.Conv` for the arguments, and `ResNetV2` for `google`."""
        super().__init__(inputs, outputs, size, stride=stride, same=google, use_bias=False, dtype=dtype, rngs=rngs)
        self.google = google

    def weights(self) -> jax.Array:
        """Returns the standardized kernel, float32."""
        kernel = self.kernel[...]
        centered = kernel - kernel.mean((0, 1, 2))
        var = jnp.square(centered).mean((0, 1, 2))
        return centered / (jnp.sqrt(var) + 1e-5 if self.google else jnp.sqrt(var + 1e-5))


class Unit(nnx.Module):
    """Bottleneck of 1x1, 3x3 and 1x1 convolutions with a shortcut, which has a projection if the shape changes."""

    def __init__(
        self, inputs: int, middle: int, outputs: int, *, stride: int, google: bool, dtype: Dtype, rngs: nnx.Rngs
    ):
        """Builds the unit.

        Args:
          inputs: channels of the input.
          middle: channels inside the unit.
          outputs: channels of the result.
          stride: of the 3x3 convolution.
          google: see `ResNetV2`.
          dtype: type of the computation.
          rngs: random keys.
        """
        common: dict[str, Any] = dict(google=google, dtype=dtype, rngs=rngs)
        self.conv1 = StdConv(inputs, middle, 1, **common)
        self.norm1 = norms.GroupNorm(middle, GROUPS, eps=1e-6, negative_slope=0.0)
        self.conv2 = StdConv(middle, middle, 3, stride=stride, **common)
        self.norm2 = norms.GroupNorm(middle, GROUPS, eps=1e-6, negative_slope=0.0)
        self.conv3 = StdConv(middle, outputs, 1, **common)
        self.norm3 = norms.GroupNorm(outputs, GROUPS, eps=1e-6)
        self.projects = stride != 1 or inputs != outputs
        if self.projects:
            self.projection = StdConv(inputs, outputs, 1, stride=stride, **common)
            self.projection_norm = (
                norms.GroupNorm(outputs, GROUPS, eps=1e-6) if google else norms.GroupNorm(outputs, outputs, eps=1e-5)
            )

    def __call__(self, x: jax.Array) -> jax.Array:
        """(N, H, W, inputs) -> (N, ceil(H / stride), ceil(W / stride), outputs)."""
        residual = self.projection_norm(self.projection(x)) if self.projects else x
        y = self.norm2(self.conv2(self.norm1(self.conv1(x))))
        return jax.nn.relu(residual + self.norm3(self.conv3(y)))

    def torch_entries(self) -> TorchEntries:
        """Returns the entries under the names of TransUNet's `PreActBottleneck`."""
        modules: dict[str, HasTorchEntries] = {}
        for i in (1, 2, 3):
            modules |= {f"conv{i}": getattr(self, f"conv{i}"), f"gn{i}": getattr(self, f"norm{i}")}
        if self.projects:
            modules |= {"downsample": self.projection, "gn_proj": self.projection_norm}
        return entries_of(modules)


class ResNetV2(nnx.Module):
    """Root and three blocks of units, down to a sixteenth of the resolution; earlier maps are the skips."""

    def __init__(
        self, in_channels: int, width: int, units: tuple[int, int, int], *, google: bool, dtype: Dtype, rngs: nnx.Rngs
    ):
        """Builds the network with PyTorch's default initial kernels.

        Args:
          in_channels: channels of the images.
          width: channels after the root, a multiple of 32.
          units: number of units of each block.
          google: use the arithmetic that Google trained with: "SAME" padding in the strided convolutions and the
            pooling, 32 groups in the norms of the projections, 1e-5 added to the standard deviation of the kernels.
            Otherwise that of TransUNet: symmetric padding, no padding in the pooling, one group per channel in the
            norms of the projections, 1e-5 added to the variance of the kernels.
          dtype: type of the computation.
          rngs: random keys.
        """
        self.google, self.units = google, tuple(units)
        self.root = StdConv(in_channels, width, 7, stride=2, google=google, dtype=dtype, rngs=rngs)
        self.root_norm = norms.GroupNorm(width, GROUPS, eps=1e-6, negative_slope=0.0)
        inputs = width
        for block, count in enumerate(self.units, 1):
            middle = width * 2 ** (block - 1)
            for unit in range(1, count + 1):
                stride = 2 if block > 1 and unit == 1 else 1
                made = Unit(inputs, middle, 4 * middle, stride=stride, google=google, dtype=dtype, rngs=rngs)
                setattr(self, f"block{block}_unit{unit}", made)
                inputs = 4 * middle

    def __call__(self, images: jax.Array) -> tuple[jax.Array, list[jax.Array]]:
        """(N, H, W, in_channels) -> (N, H/16, W/16, 16 * width) and the skips, deepest first.

        H and W are multiples of 16. The skips are (N, H/8, W/8, 8 * width), (N, H/4, W/4, 4 * width) and
        (N, H/2, W/2, width).
        """
        height, width = images.shape[1:3]
        x = self.root_norm(self.root(images))
        skips = [x]
        x = resampling.max_pool_3x3(x, (0, 1) if self.google else (0, 0))
        for block, units in enumerate(self.units, 1):
            for unit in range(1, units + 1):
                x = getattr(self, f"block{block}_unit{unit}")(x)
            if block < 3:
                # Without padding the pooling drops a row and a column, which are zeros in the skip.
                below, right = height // 2 ** (block + 1) - x.shape[1], width // 2 ** (block + 1) - x.shape[2]
                skips.append(jnp.pad(x, ((0, 0), (0, below), (0, right), (0, 0))))
        return x, skips[::-1]

    def torch_entries(self) -> TorchEntries:
        """Returns the entries under the names of TransUNet's `ResNetV2`."""
        entries = prefixed("root.conv", self.root.torch_entries()) | prefixed("root.gn", self.root_norm.torch_entries())
        for block, units in enumerate(self.units, 1):
            for unit in range(1, units + 1):
                made = getattr(self, f"block{block}_unit{unit}")
                entries |= prefixed(f"body.block{block}.unit{unit}", made.torch_entries())
        return entries
