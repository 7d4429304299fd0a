"""DenseNet as an encoder: it returns five feature maps instead of class scores.

Source: Huang et al. 2016 (arXiv:1608.06993) in the form of torchvision, whose ImageNet weights load through
`bcss_jax.models.weights.pretrained`. The choice of the feature maps follows segmentation_models_pytorch.
"""

import functools
from collections.abc import Sequence

import jax
from flax import nnx
from flax.typing import Dtype

from bcss_jax.models.blocks import initializers, layers, norms, resampling
from bcss_jax.models.blocks.dense_block import DenseBlock
from bcss_jax.models.weights.torch_layout import HasTorchEntries, TorchEntries, entries_of, prefixed

BOTTLENECK = 4  # channels between the convolutions of a layer, as a multiple of the growth


def _conv(inputs: int, outputs: int, size: int, *, init=initializers.kaiming_normal, **kwargs) -> layers.Conv:
    return layers.Conv(inputs, outputs, size, use_bias=False, init=init, **kwargs)


class DenseLayer(nnx.Module):
    """Two blocks of BatchNorm, ReLU and convolution: 1x1 to four times the growth, then 3x3 to the growth."""

    def __init__(
        self,
        inputs: int,
        growth: int,
        *,
        init: initializers.Initializer = initializers.kaiming_normal,
        dtype: Dtype,
        rngs: nnx.Rngs,
    ):
        """Builds the layer.

        Args:
          inputs: channels of the input, all maps together.
          growth: channels of the result.
          init: initializer of the kernels.
          dtype: type of the computation.
          rngs: random keys.
        """
        self.norm1 = norms.BatchNorm(inputs, relu=True)
        self.conv1 = _conv(inputs, BOTTLENECK * growth, 1, init=init, dtype=dtype, rngs=rngs)
        self.norm2 = norms.BatchNorm(BOTTLENECK * growth, relu=True)
        self.conv2 = _conv(BOTTLENECK * growth, growth, 3, init=init, dtype=dtype, rngs=rngs)

    def __call__(self, *maps: norms.MapWithStatistics) -> jax.Array:
        """Maps (N, H, W, C1), (N, H, W, C2), ... -> (N, H, W, growth)."""
        return self.conv2(self.norm2(self.conv1(self.norm1(*maps))))

    def torch_entries(self) -> TorchEntries:
        """Returns the entries under the names of torchvision's `_DenseLayer`."""
        return entries_of({"norm1": self.norm1, "conv1": self.conv1, "norm2": self.norm2, "conv2": self.conv2})


class DenseNet(nnx.Module):
    """DenseNet without its classifier.

    Between its dense blocks are transitions: a 1x1 convolution to half of the channels and a mean over 2x2 pixels.
    Convolutions are initialized from a normal distribution with variance 2 / fan_in, scales of the norms with ones.

    Attributes:
      channels: of the five feature maps.
    """

    channels: tuple[int, ...]

    def __init__(
        self,
        growth: int,
        block_layers: Sequence[int],
        init_width: int,
        in_channels: int,
        *,
        dtype: Dtype,
        rngs: nnx.Rngs,
    ):
        """Builds the network.

        Args:
          growth: channels that each layer adds.
          block_layers: number of layers of each of the four dense blocks.
          init_width: channels before the first dense block.
          in_channels: channels of the images.
          dtype: type of the computation.
          rngs: random keys.
        """
        self.blocks = len(block_layers)
        self.conv0 = _conv(in_channels, init_width, 7, stride=2, dtype=dtype, rngs=rngs)
        self.norm0 = norms.BatchNorm(init_width, relu=True)
        self.channels = (init_width,)
        inputs = init_width
        for i, num_layers in enumerate(block_layers, 1):
            block = DenseBlock(inputs, growth, num_layers, DenseLayer, joined=True, dtype=dtype, rngs=rngs)
            setattr(self, f"block{i}", block)
            setattr(self, f"norm{i}", norms.BatchNorm(block.outputs, relu=i < self.blocks))
            if i < self.blocks:
                inputs = block.outputs // 2
                setattr(self, f"conv{i}", _conv(block.outputs, inputs, 1, dtype=dtype, rngs=rngs))
            self.channels += (block.outputs,)

    def __call__(self, images: jax.Array) -> tuple[jax.Array, ...]:
        """(N, H, W, in_channels) -> features (N, H', W', channels) at 1/2, 1/4, 1/8, 1/16 and 1/32 of the size.

        The first two sizes are rounded up, the others down. All features are normalized. A ReLU is applied to all of
        them except the last.
        """
        x = self.norm0(self.conv0(images))
        features = [x]
        x = resampling.max_pool_3x3(x)
        for i in range(1, self.blocks + 1):
            x = getattr(self, f"norm{i}")(*getattr(self, f"block{i}")(norms.with_batch_statistics(x)))
            features.append(x)
            if i < self.blocks:
                # The reference takes the mean after the convolution. The result is the same; this is a quarter of the
                # work.
                x = getattr(self, f"conv{i}")(resampling.avg_pool(x, (2, 2)))
        return tuple(features)

    def torch_entries(self) -> TorchEntries:
        """Returns the entries under the names of torchvision's `DenseNet`, without `classifier`."""
        modules: dict[str, HasTorchEntries] = {"conv0": self.conv0, "norm0": self.norm0}
        for i in range(1, self.blocks + 1):
            modules[f"denseblock{i}"] = getattr(self, f"block{i}")
            if i < self.blocks:
                modules[f"transition{i}.norm"] = getattr(self, f"norm{i}")
                modules[f"transition{i}.conv"] = getattr(self, f"conv{i}")
        modules["norm5"] = getattr(self, f"norm{self.blocks}")
        return prefixed("features", entries_of(modules))


densenet121 = functools.partial(DenseNet, 32, (6, 12, 24, 16), 64)
