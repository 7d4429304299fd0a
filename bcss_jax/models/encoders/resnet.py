"""ResNet as an encoder: it returns five feature maps instead of class scores.

Source: He et al. 2015 (arXiv:1512.03385) in the form of torchvision ("v1.5": the stride of a bottleneck is in its 3x3
convolution), whose ImageNet weights load through `bcss_jax.models.weights.pretrained`. resnet34, resnet50 and resnet101
are the networks of the same names in timm and segmentation_models_pytorch.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
from flax import nnx
from flax.typing import Dtype

from bcss_jax.models.blocks import initializers, layers, norms, resampling
from bcss_jax.models.weights.torch_layout import HasTorchEntries, TorchEntries, entries_of, prefixed


def _conv(inputs: int, outputs: int, size: int, **kwargs) -> layers.Conv:
    return layers.Conv(inputs, outputs, size, use_bias=False, init=initializers.kaiming_normal_fan_out, **kwargs)


class Block(nnx.Module):
    """Residual block: convolutions with norms, whose result is added to the input, followed by ReLU.

    A basic block has two 3x3 convolutions. A bottleneck has a 1x1, a 3x3 and a 1x1 convolution, the last with four
    times the channels. If the shape changes, a 1x1 convolution and a norm are applied to the input.
    """

    def __init__(self, inputs: int, width: int, *, stride: int, bottleneck: bool, dtype: Dtype, rngs: nnx.Rngs):
        """Builds the block.

        Args:
          inputs: channels of the input.
          width: channels inside the block.
          stride: of the first 3x3 convolution.
          bottleneck: whether the block is a bottleneck or a basic block.
          dtype: type of the computation.
          rngs: random keys.
        """
        outputs = 4 * width if bottleneck else width
        common: dict[str, Any] = dict(dtype=dtype, rngs=rngs)
        if bottleneck:
            convs = [
                _conv(inputs, width, 1, **common),
                _conv(width, width, 3, stride=stride, **common),
                _conv(width, outputs, 1, **common),
            ]
        else:
            convs = [_conv(inputs, width, 3, stride=stride, **common), _conv(width, width, 3, **common)]
        self.length = len(convs)
        for i, conv in enumerate(convs, 1):
            setattr(self, f"conv{i}", conv)
            setattr(self, f"norm{i}", norms.BatchNorm(conv.kernel.shape[-1], relu=i < self.length))
        self.projects = stride != 1 or inputs != outputs
        if self.projects:
            self.projection = _conv(inputs, outputs, 1, stride=stride, **common)
            self.projection_norm = norms.BatchNorm(outputs, relu=False)

    def __call__(self, x: jax.Array) -> jax.Array:
        """(N, H, W, inputs) -> (N, ceil(H / stride), ceil(W / stride), outputs)."""
        shortcut = self.projection_norm(self.projection(x)) if self.projects else x
        for i in range(1, self.length + 1):
            x = getattr(self, f"norm{i}")(getattr(self, f"conv{i}")(x))
        return jax.nn.relu(x + shortcut)

    def torch_entries(self) -> TorchEntries:
        """Returns the entries under the names of torchvision's `BasicBlock` and `Bottleneck`."""
        modules: dict[str, HasTorchEntries] = {}
        for i in range(1, self.length + 1):
            modules |= {f"conv{i}": getattr(self, f"conv{i}"), f"bn{i}": getattr(self, f"norm{i}")}
        if self.projects:
            modules |= {"downsample.0": self.projection, "downsample.1": self.projection_norm}
        return entries_of(modules)


class ResNet(nnx.Module):
    """ResNet without its classifier.

    Convolutions are initialized from a normal distribution with variance 2 / fan_out, scales of the norms with ones.

    Attributes:
      channels: of the five feature maps.
    """

    channels: tuple[int, ...]

    def __init__(self, blocks: Sequence[int], bottleneck: bool, in_channels: int, *, dtype: Dtype, rngs: nnx.Rngs):
        """Builds the network.

        Args:
          blocks: number of blocks of each of the four stages.
          bottleneck: whether the blocks are bottlenecks or basic blocks.
          in_channels: channels of the images.
          dtype: type of the computation.
          rngs: random keys.
        """
        self.blocks = tuple(blocks)
        self.conv1 = _conv(in_channels, 64, 7, stride=2, dtype=dtype, rngs=rngs)
        self.norm1 = norms.BatchNorm(64, relu=True)
        self.channels = (64,)
        inputs = 64
        for stage, count in enumerate(self.blocks, 1):
            width = 64 * 2 ** (stage - 1)
            for i in range(count):
                stride = 2 if stage > 1 and i == 0 else 1
                block = Block(inputs, width, stride=stride, bottleneck=bottleneck, dtype=dtype, rngs=rngs)
                setattr(self, f"stage{stage}_block{i}", block)
                inputs = 4 * width if bottleneck else width
            self.channels += (inputs,)

    def __call__(self, images: jax.Array) -> tuple[jax.Array, ...]:
        """(N, H, W, in_channels) -> features (N, H', W', channels) at 1/2, 1/4, 1/8, 1/16 and 1/32 of the size.

        The sizes are rounded up.
        """
        x = self.norm1(self.conv1(images))
        features = [x]
        x = resampling.max_pool_3x3(x)
        for stage, count in enumerate(self.blocks, 1):
            for i in range(count):
                x = getattr(self, f"stage{stage}_block{i}")(x)
            features.append(x)
        return tuple(features)

    def torch_entries(self) -> TorchEntries:
        """Returns the entries under the names of torchvision's `ResNet`, without `fc`."""
        entries = prefixed("conv1", self.conv1.torch_entries()) | prefixed("bn1", self.norm1.torch_entries())
        for stage, count in enumerate(self.blocks, 1):
            for i in range(count):
                entries |= prefixed(f"layer{stage}.{i}", getattr(self, f"stage{stage}_block{i}").torch_entries())
        return entries


resnet34 = functools.partial(ResNet, (3, 4, 6, 3), False)
resnet50 = functools.partial(ResNet, (3, 4, 6, 3), True)
resnet101 = functools.partial(ResNet, (3, 4, 23, 3), True)
