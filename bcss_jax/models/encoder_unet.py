"""U-Net with a classification network as its encoder.

Source: `Unet` of segmentation_models_pytorch 0.6.0 (github.com/qubvel-org/segmentation_models.pytorch), whose weights
  load
through `bcss_jax.models.weights.pretrained`. Upsampling is nearest-neighbor, the upsampled map is concatenated before
the skip, and there is no skip at full resolution.
"""

from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from flax import nnx
from flax.typing import Dtype

from bcss_jax.models.arguments import check_counts, check_image_size
from bcss_jax.models.blocks import initializers, layers, norms, resampling
from bcss_jax.models.weights.torch_layout import HasTorchEntries, TorchEntries, entries_of, prefixed

DECODER_CHANNELS = (256, 128, 64, 32, 16)
MIN_IMAGE_SIZE = 32  # pixels; the encoder halves images five times


class FeatureEncoder(HasTorchEntries, Protocol):
    """A network that maps images to five feature maps.

    Attributes:
      channels: of the five maps, full resolution first.
    """

    channels: tuple[int, ...]

    def __call__(self, images: jax.Array) -> tuple[jax.Array, ...]:
        """(N, H, W, in_channels) -> features (N, H', W', channels) at 1/2, 1/4, 1/8, 1/16, 1/32 of the size."""
        ...


class DecoderBlock(nnx.Module):
    """Upsampling, concatenation with a skip, and two blocks of 3x3 convolution, BatchNorm and ReLU."""

    def __init__(self, inputs: int, skip: int, outputs: int, *, dtype: Dtype, rngs: nnx.Rngs):
        """Builds the block.

        Args:
          inputs: channels of the map to upsample.
          skip: channels of the skip; 0: there is none.
          outputs: channels of the result.
          dtype: type of the computation.
          rngs: random keys.
        """
        common: dict[str, Any] = dict(use_bias=False, init=initializers.kaiming_uniform, dtype=dtype, rngs=rngs)
        self.conv1 = layers.Conv(inputs + skip, outputs, 3, **common)
        self.norm1 = norms.BatchNorm(outputs, relu=True)
        self.conv2 = layers.Conv(outputs, outputs, 3, **common)
        self.norm2 = norms.BatchNorm(outputs, relu=True)

    def __call__(self, x: jax.Array, skips: list[jax.Array], size: tuple[int, int]) -> jax.Array:
        """Runs the block.

        Args:
          x: (N, h, w, inputs).
          skips: one map (N, H, W, skip), or none.
          size: height and width (H, W) of the result.

        Returns:
          (N, H, W, outputs).
        """
        x = resampling.upsample_nearest(x, *size)
        return self.norm2(self.conv2(self.norm1(self.conv1(x, *skips))))

    def torch_entries(self) -> TorchEntries:
        """Returns the entries under the names of smp's `UnetDecoderBlock`."""
        modules = {"conv1.0": self.conv1, "conv1.1": self.norm1, "conv2.0": self.conv2, "conv2.1": self.norm2}
        return entries_of(modules)


class EncoderUNet(nnx.Module):
    """smp's U-Net on top of an encoder that returns five feature maps.

    It has, for RGB and three classes, 24,436,659 parameters with ResNet-34, 32,521,395 with ResNet-50, 51,513,523 with
    ResNet-101, and 13,607,923 with DenseNet-121.

    The convolutions of the decoder are initialized uniformly in +-sqrt(6 / fan_in), the last one in
    +-sqrt(6 / (fan_in + fan_out)) and with a zero bias.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        encoder: Callable[..., FeatureEncoder],
        in_channels: int = 3,
        dtype: Dtype = jnp.float32,
        seed: int = 0,
    ):
        """Builds the network with random weights.

        Args:
          num_classes: channels of the logits.
          encoder: `encoder(in_channels, dtype=dtype, rngs=rngs)` returns the encoder.
          in_channels: channels of the images.
          dtype: type of the computation. Weights, batch statistics and logits are always float32.
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
        """Images (N, H, W, in_channels) -> float32 logits (N, H, W, num_classes); any H and W >= 32.

        Raises:
          ConfigError: the images are smaller.
        """
        network = "an encoder that halves them five times"
        check_image_size("U-Net with an encoder", images, MIN_IMAGE_SIZE, network)
        *skips, x = self.encoder(images.astype(self.dtype))
        for i in range(len(DECODER_CHANNELS)):
            skip = [skips.pop()] if skips else []
            size = skip[0].shape[1:3] if skip else images.shape[1:3]
            x = getattr(self, f"decoder{i}")(x, skip, size)
        return self.head(x).astype(jnp.float32)

    def torch_entries(self) -> TorchEntries:
        """Returns the entries under the names of the state_dict of smp's `Unet`."""
        entries = prefixed("encoder", self.encoder.torch_entries())
        for i in range(len(DECODER_CHANNELS)):
            entries |= prefixed(f"decoder.blocks.{i}", getattr(self, f"decoder{i}").torch_entries())
        return entries | prefixed("segmentation_head.0", self.head.torch_entries())
