"""Dense U-Net of the report's own code: DenseNet's stem and layers, a decoder that ends at a quarter of the size."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from flax.typing import Dtype

from bcss_jax.models.arguments import MOST_LAYERS, check_counts, check_counts_in, check_image_size
from bcss_jax.models.blocks import initializers, norms, resampling
from bcss_jax.models.blocks.dense_block import DenseBlock
from bcss_jax.models.blocks.layers import ConvTranspose3x3
from bcss_jax.models.dense_unet import NormConv
from bcss_jax.models.encoders.densenet import DenseLayer
from bcss_jax.models.report.stem import Stem
from bcss_jax.models.weights.torch_layout import TorchEntries, entries_of, prefixed


class TransitionUp(nnx.Module):
    """Learned upsampling by two, BatchNorm and ReLU."""

    def __init__(self, inputs: int, outputs: int, *, dtype: Dtype, rngs: nnx.Rngs):
        """Builds the block for `inputs` and `outputs` channels."""
        self.conv = ConvTranspose3x3(inputs, outputs, dtype=dtype, rngs=rngs)
        self.norm = norms.BatchNorm(outputs, relu=True)

    def __call__(self, x: jax.Array) -> jax.Array:
        """(N, H, W, inputs) -> (N, 2H, 2W, outputs)."""
        return self.norm(self.conv(x))

    def torch_entries(self) -> TorchEntries:
        """Returns the entries under the names of the code."""
        return entries_of({"convTrans": self.conv, "bn": self.norm})


class ReportDenseUNet(nnx.Module):
    """Dense U-Net with 7,019,584 parameters for RGB and three classes.

    Convolutions are initialized with PyTorch's default. None of them has a bias.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        growth: int = 32,
        layers: tuple[int, ...] = (4, 4, 4, 4, 4),
        init_width: int = 64,
        in_channels: int = 3,
        dtype: Dtype = jnp.float32,
        seed: int = 0,
    ):
        """Builds the network with random weights.

        Args:
          num_classes: channels of the logits.
          growth: channels that each dense layer adds.
          layers: number of layers of each dense block of the encoder; the last block is the bottleneck. The blocks of
            the decoder have the same numbers in reverse order, without the bottleneck's. Images need at least
            2**(len(layers) + 1) pixels on each side.
          init_width: channels after the stem; `init_features` of the code.
          in_channels: channels of the images.
          dtype: type of the computation. Weights, batch statistics and logits are always float32.
          seed: of the initial weights.

        Raises:
          ConfigError: a number is not positive.
        """
        name = "report_dense_unet"
        check_counts(name, num_classes=num_classes, growth=growth, init_width=init_width, in_channels=in_channels)
        check_counts_in(name, None, most=MOST_LAYERS, layers=layers)
        self.depth, self.dtype = len(layers) - 1, dtype
        common: dict[str, Any] = dict(dtype=dtype, rngs=nnx.Rngs(seed))
        layer = functools.partial(DenseLayer, init=initializers.torch_default)
        transition = functools.partial(NormConv, size=1, init=initializers.torch_default, **common)
        self.stem = Stem(in_channels, init_width, use_bias=False, **common)
        inputs, skips = init_width, []
        for level, count in enumerate(layers):
            block = DenseBlock(inputs, growth, count, layer, joined=False, **common)
            setattr(self, f"down{level}", block)
            inputs = block.outputs
            if level < self.depth:
                skips.append(block.outputs)
                inputs = max(1, block.outputs // 2)
                setattr(self, f"down{level}_transition", transition(block.outputs, inputs))
        for step, count in enumerate(reversed(layers[:-1])):
            skip = skips.pop()
            setattr(self, f"upsample{step}", TransitionUp(inputs, skip, **common))
            block = DenseBlock(2 * skip, growth, count, layer, joined=False, **common)
            setattr(self, f"up{step}", block)
            inputs = block.outputs
        self.head = transition(inputs, num_classes)

    def __call__(self, images: jax.Array) -> jax.Array:
        """Images (N, H, W, in_channels) -> float32 logits (N, H, W, num_classes).

        The code takes sides that are multiples of 2**(len(layers) + 1) only, and resizes the logits to 320x320 whatever
        the input. Here upsampled maps are padded with zeros to the size of the skips, and the logits have the size of
        the images.

        Raises:
          ConfigError: no pixel would remain in the bottleneck.
        """
        size = images.shape[1:3]
        check_image_size("report_dense_unet", images, 2 ** (self.depth + 2), f"{self.depth + 1} dense blocks")
        x, skips = self.stem(images.astype(self.dtype)), []
        for level in range(self.depth):
            maps = getattr(self, f"down{level}")(norms.with_batch_statistics(x))
            skips.append(maps)
            transition = getattr(self, f"down{level}_transition")
            # Taking the mean before the convolution gives the same result with a quarter of the work.
            x = transition.conv(resampling.avg_pool(transition.norm(*maps), (2, 2)))
        maps = getattr(self, f"down{self.depth}")(norms.with_batch_statistics(x))
        for step in range(self.depth):
            skip = skips.pop()
            x = jnp.concatenate([m.values for m in maps], axis=-1)
            x = resampling.pad_to(getattr(self, f"upsample{step}")(x), skip[0].values.shape)
            maps = getattr(self, f"up{step}")(norms.with_batch_statistics(x), *skip)
        return resampling.resize_bilinear(self.head(*maps).astype(jnp.float32), *size)

    def torch_entries(self) -> TorchEntries:
        """Returns the entries under the names of the code's state_dict."""
        entries = prefixed("features", self.stem.torch_entries())
        for level in range(self.depth + 1):
            entries |= prefixed(f"encoder_blocks.{level}", _block_entries(getattr(self, f"down{level}")))
        for level in range(self.depth):
            entries |= prefixed(f"transition_downs.{level}.layers", _entries(getattr(self, f"down{level}_transition")))
            entries |= prefixed(f"decoder_blocks.{level}", _block_entries(getattr(self, f"up{level}")))
            entries |= prefixed(f"transition_ups.{level}", getattr(self, f"upsample{level}").torch_entries())
        return entries | prefixed("final_conv", _entries(self.head))


def _entries(transition: NormConv) -> TorchEntries:
    return entries_of({"0": transition.norm, "2": transition.conv})


def _block_entries(block: DenseBlock) -> TorchEntries:
    entries = {}
    for i in range(block.num_layers):
        layer: DenseLayer = getattr(block, f"layer{i + 1}")
        modules = {"0": layer.norm1, "2": layer.conv1, "3": layer.norm2, "5": layer.conv2}
        entries |= prefixed(f"layers.{i}.layers", entries_of(modules))
    return entries
