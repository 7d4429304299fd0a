"""U-Net of the report's own code: convolutions with biases, bilinear upsampling, dropout in the bottleneck."""

import jax
import jax.numpy as jnp
from flax import nnx
from flax.typing import Dtype

from bcss_jax.models.arguments import check_counts, check_fraction, check_image_size
from bcss_jax.models.blocks import layers, norms, resampling
from bcss_jax.models.weights.torch_layout import TorchEntries, entries_of, prefixed

DEPTH = 4


class ConvNorm(nnx.Module):
    """3x3 convolution with a bias, BatchNorm and ReLU. It takes maps that count as concatenated over channels."""

    def __init__(self, inputs: int, outputs: int, *, dtype: Dtype, rngs: nnx.Rngs):
        """Builds the block for `inputs` channels, all maps together, and `outputs` channels of the result."""
        self.conv = layers.Conv(inputs, outputs, 3, use_bias=True, dtype=dtype, rngs=rngs)
        self.norm = norms.BatchNorm(outputs, relu=True)

    def __call__(self, *maps: jax.Array) -> jax.Array:
        """Maps (N, H, W, C1), (N, H, W, C2), ... -> (N, H, W, outputs)."""
        return self.norm(self.conv(*maps))

    def torch_entries(self, first: int = 0) -> TorchEntries:
        """Returns the entries under the numbers of a `Sequential`, `first` and the next one."""
        return entries_of({f"{first}": self.conv, f"{first + 1}": self.norm})


class ReportUNet(nnx.Module):
    """U-Net with 5,501,091 parameters for RGB, three classes and width 32.

    Convolutions are initialized with PyTorch's default.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        width: int = 32,
        dropout: float = 0.5,
        in_channels: int = 3,
        dtype: Dtype = jnp.float32,
        seed: int = 0,
    ):
        """Builds the network with random weights.

        Args:
          num_classes: channels of the logits.
          width: channels at full resolution; they double with each downsampling. `n_filters` of the code.
          dropout: probability that a channel of the bottleneck is dropped.
          in_channels: channels of the images.
          dtype: type of the computation. Weights, batch statistics and logits are always float32.
          seed: of the initial weights.

        Raises:
          ConfigError: a number is not positive, or the probability is not below 1.
        """
        check_counts("report_unet", num_classes=num_classes, in_channels=in_channels, width=width)
        check_fraction("report_unet", allow_zero=True, allow_one=False, dropout=dropout)
        self.dtype, rngs = dtype, nnx.Rngs(seed)
        inputs = in_channels
        for level in range(DEPTH):
            outputs = width * 2**level
            setattr(self, f"down{level + 1}_conv1", ConvNorm(inputs, outputs, dtype=dtype, rngs=rngs))
            setattr(self, f"down{level + 1}_conv2", ConvNorm(outputs, outputs, dtype=dtype, rngs=rngs))
            inputs = outputs
        self.bottleneck_conv1 = ConvNorm(inputs, 2 * inputs, dtype=dtype, rngs=rngs)
        self.dropout1 = layers.Dropout(dropout, 0, whole_channels=True)
        self.bottleneck_conv2 = ConvNorm(2 * inputs, inputs, dtype=dtype, rngs=rngs)
        self.dropout2 = layers.Dropout(dropout, 1, whole_channels=True)
        for level in reversed(range(DEPTH)):
            skip = width * 2**level
            middle, outputs = (inputs + skip) // 2, max(width, skip // 2)
            setattr(self, f"up{level + 1}_conv1", ConvNorm(inputs + skip, middle, dtype=dtype, rngs=rngs))
            setattr(self, f"up{level + 1}_conv2", ConvNorm(middle, outputs, dtype=dtype, rngs=rngs))
            inputs = outputs
        self.head = layers.Conv(inputs, num_classes, 1, use_bias=True, dtype=dtype, rngs=rngs)

    def __call__(self, images: jax.Array, dropout_keys: jax.Array | None = None) -> jax.Array:
        """Returns the logits of a batch.

        Args:
          images: (N, H, W, in_channels), at least 16 pixels on each side. The code takes multiples of 16 only; for
            other sizes the upsampled maps are padded with zeros to the size of the skips.
          dropout_keys: JAX keys (N,), one per example; needed only in training with dropout.

        Returns:
          float32 (N, H, W, num_classes).

        Raises:
          ConfigError: the images are smaller, so that no pixel would remain at the deepest level.
        """
        check_image_size("report_unet", images, 2**DEPTH, f"depth {DEPTH}")
        x, skips = images.astype(self.dtype), []
        for level in range(1, DEPTH + 1):
            x = getattr(self, f"down{level}_conv2")(getattr(self, f"down{level}_conv1")(x))
            skips.append(x)
            x = resampling.max_pool_2x2(x)
        x = self.dropout1(self.bottleneck_conv1(x), dropout_keys)
        x = self.dropout2(self.bottleneck_conv2(x), dropout_keys)
        for level in reversed(range(1, DEPTH + 1)):
            skip = skips.pop()
            x = resampling.pad_to(resampling.upsample_bilinear_2x(x), skip.shape)
            x = getattr(self, f"up{level}_conv2")(getattr(self, f"up{level}_conv1")(x, skip))
        return self.head(x).astype(jnp.float32)

    def torch_entries(self) -> TorchEntries:
        """Returns the entries under the names of the code's state_dict."""
        entries = {}
        for level in range(1, DEPTH + 1):
            for ours, theirs in (("down", "enc_block_{}.encoder_block"), ("up", "dec_block_{}.decoder_block")):
                block = getattr(self, f"{ours}{level}_conv1").torch_entries()
                block |= getattr(self, f"{ours}{level}_conv2").torch_entries(3)
                entries |= prefixed(theirs.format(level), block)
        bottleneck = self.bottleneck_conv1.torch_entries() | self.bottleneck_conv2.torch_entries(4)
        return entries | prefixed("bottleneck", bottleneck) | prefixed("output", self.head.torch_entries())
