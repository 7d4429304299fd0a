"""U-Net whose downsampling path is a network made for classification.

Source: segmentation_models_pytorch 0.6.0 (github.com/qubvel-org/segmentation_models.pytorch), `Unet`, whose weights load
through `bcss_jax.models.weights.pretrained`: nearest-neighbor upsampling, upsampled map before the skip, no skip at full resolution.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from flax.typing import Dtype

from bcss_jax.errors import ConfigError
from bcss_jax.models.arguments import check_counts
from bcss_jax.models.blocks import initializers, layers, norms, resampling
from bcss_jax.models.weights.torch_layout import TorchEntries, entries_of, prefixed

DECODER_CHANNELS = (256, 128, 64, 32, 16)
SMALLEST = 32


class DecoderBlock(nnx.Module):
    """Upsampling, concatenation with the skip if there is one, and twice (3x3 convolution, BatchNorm, ReLU)."""

    def __init__(self, inputs: int, skip: int, outputs: int, *, dtype: Dtype, rngs: nnx.Rngs):
        """Channels of the map to upsample, of the skip (0: none) and of the result."""
        common = dict(use_bias=False, init=initializers.kaiming_uniform, dtype=dtype, rngs=rngs)
        self.conv1 = layers.Conv(inputs + skip, outputs, 3, **common)
        self.norm1 = norms.BatchNorm(outputs, relu=True)
        self.conv2 = layers.Conv(outputs, outputs, 3, **common)
        self.norm2 = norms.BatchNorm(outputs, relu=True)

    def __call__(self, x: jax.Array, skips: list[jax.Array], size: tuple[int, int]) -> jax.Array:
        """(N, h, w, inputs), no or one skip (N, H, W, skip), and the size (H, W) -> (N, H, W, outputs)."""
        x = resampling.upsample_nearest(x, *size)
        return self.norm2(self.conv2(self.norm1(self.conv1(x, *skips))))

    def torch_entries(self) -> TorchEntries:
        """Names as in smp's `UnetDecoderBlock`."""
        parts = {"conv1.0": self.conv1, "conv1.1": self.norm1, "conv2.0": self.conv2, "conv2.1": self.norm2}
        return entries_of(parts)


class EncoderUNet(nnx.Module):
    """smp's U-Net over an encoder of five features.

    Parameters for RGB and three classes: 24,436,659 with ResNet-34, 32,521,395 with ResNet-50, 51,513,523 with
    ResNet-101, 13,607,923 with DenseNet-121.

    The decoder's convolutions start uniform in +-sqrt(6 / fan_in), the last one in +-sqrt(6 / (fan_in + fan_out)) and
    with a zero bias.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        encoder: Callable[..., nnx.Module],
        in_channels: int = 3,
        dtype: Dtype = jnp.float32,
        seed: int = 0,
    ):
        """Builds the network with random weights.

        Args:
          num_classes: channels of the logits.
          encoder: `encoder(in_channels, dtype=dtype, rngs=rngs)` gives a module that maps images to five features at
            1/2 to 1/32 of the size, whose channels are in its attribute `channels`.
          in_channels: channels of the images.
          dtype: type of the arithmetic. Weights, batch statistics and logits are float32 whatever it is.
          seed: of the initial weights.

        Raises:
          ConfigError: a number is not positive.
        """
        check_counts("U-Net with an encoder", num_classes=num_classes, in_channels=in_channels)
        rngs = nnx.Rngs(seed)
        self.encoder = encoder(in_channels, dtype=dtype, rngs=rngs)
        self.dtype = dtype
        *skips, inputs = self.encoder.channels
        for i, (skip, outputs) in enumerate(zip([*reversed(skips), 0], DECODER_CHANNELS, strict=True)):
            setattr(self, f"decoder{i}", DecoderBlock(inputs, skip, outputs, dtype=dtype, rngs=rngs))
            inputs = outputs
        self.head = layers.Conv(
            inputs,
            num_classes,
            3,
            use_bias=True,
            zero_bias=True,
            init=initializers.xavier_uniform,
            dtype=dtype,
            rngs=rngs,
        )

    def __call__(self, images: jax.Array) -> jax.Array:
        """Images (N, H, W, in_channels) -> float32 logits (N, H, W, num_classes); any H and W from 32 on.

        Raises:
          ConfigError: the images are smaller.
        """
        height, width = images.shape[1:3]
        if min(height, width) < SMALLEST:
            nearest = f"{max(height, SMALLEST)}x{max(width, SMALLEST)}"
            raise ConfigError(
                f"U-Net with an encoder: {height}x{width} pixels are too few for an encoder that halves them five times; take "
                f"images of at least {SMALLEST} pixels a side, here {nearest}"
            )
        *skips, x = self.encoder(images.astype(self.dtype))
        for i in range(len(DECODER_CHANNELS)):
            skip = [skips.pop()] if skips else []
            size = skip[0].shape[1:3] if skip else (height, width)
            x = getattr(self, f"decoder{i}")(x, skip, size)
        return self.head(x).astype(jnp.float32)

    def torch_entries(self) -> TorchEntries:
        """Names as in the state_dict of smp's `Unet`."""
        entries = prefixed("encoder", self.encoder.torch_entries())
        for i in range(len(DECODER_CHANNELS)):
            entries |= prefixed(f"decoder.blocks.{i}", getattr(self, f"decoder{i}").torch_entries())
        return entries | prefixed("segmentation_head.0", self.head.torch_entries())
