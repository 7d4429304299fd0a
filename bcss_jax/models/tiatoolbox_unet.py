"""TIAToolbox's U-Net with a ResNet encoder, whose weights for five tissue classes of BCSS are published.

Source: `UNetModel` of TIAToolbox (tiatoolbox/models/architecture/unet.py, github.com/TissueImageAnalytics/tiatoolbox)
with `encoder="resnet50"` and `skip_type="add"`. Its `fcn_resnet50_unet-bcss` has two 3x3 convolutions at each
resolution of the decoder, its `fcn-tissue_mask` has one. `python -m bcss_jax.import_model --format=tiatoolbox` loads
both.

The network divides the RGB values by 255 itself, and its logits have half the resolution of the images. As in
TIAToolbox, probabilities are enlarged, not logits.
"""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from flax.typing import Dtype

from bcss_jax.errors import ConfigError
from bcss_jax.models.arguments import check_counts, check_counts_in
from bcss_jax.models.blocks import initializers, layers, norms, resampling
from bcss_jax.models.encoder_unet import FeatureEncoder
from bcss_jax.models.image_normalization import ImageStatistics
from bcss_jax.models.weights.torch_layout import HasTorchEntries, TorchEntries, entries_of, prefixed

NAME = "TIAToolbox U-Net"
MULTIPLE = 32  # sides of images in pixels: skips are added, so every halving must come out even


class PreactivatedConvs(nnx.Module):
    """Convolutions without bias, each after BatchNorm and ReLU."""

    def __init__(self, inputs: int, outputs: int, kernels: Sequence[int], *, dtype: Dtype, rngs: nnx.Rngs):
        """Builds the block.

        Args:
          inputs: channels of the map.
          outputs: channels of the result of each convolution.
          kernels: side of each convolution, odd.
          dtype: type of the computation.
          rngs: random keys.
        """
        self.length = len(kernels)
        for i, size in enumerate(kernels):
            setattr(self, f"norm{i}", norms.BatchNorm(inputs, relu=True))
            setattr(self, f"conv{i}", _conv(inputs, outputs, size, dtype=dtype, rngs=rngs))
            inputs = outputs

    def __call__(self, x: jax.Array) -> jax.Array:
        """(N, H, W, inputs) -> (N, H, W, outputs)."""
        for i in range(self.length):
            x = getattr(self, f"conv{i}")(getattr(self, f"norm{i}")(x))
        return x

    def torch_entries(self) -> TorchEntries:
        """Returns the entries under the positions in TIAToolbox's `Sequential`: norm, ReLU, convolution, norm, ..."""
        modules: dict[str, HasTorchEntries] = {}
        for i in range(self.length):
            modules |= {str(3 * i): getattr(self, f"norm{i}"), str(3 * i + 2): getattr(self, f"conv{i}")}
        return entries_of(modules)


class TIAToolboxUNet(nnx.Module):
    """U-Net that adds the features of its encoder and ends at half the resolution of the images.

    With ResNet-50, five classes and two 3x3 convolutions at each resolution it has 34,716,421 parameters.

    Convolutions are initialized from a normal distribution with variance 2 / fan_out, the last one uniformly in
    +-1 / sqrt(fan_in).

    Attributes:
      encoder: returns five feature maps.
      image_statistics: what images must be normalized with before they enter the network: RGB values stay 0 to 255.
    """

    image_statistics: ClassVar[ImageStatistics] = ImageStatistics((0.0, 0.0, 0.0), (1 / 255, 1 / 255, 1 / 255))

    def __init__(
        self,
        num_classes: int,
        *,
        encoder: Callable[..., FeatureEncoder],
        decoder_kernels: Sequence[int] = (3, 3),
        in_channels: int = 3,
        dtype: Dtype = jnp.float32,
        seed: int = 0,
    ):
        """Builds the network with random weights.

        Args:
          num_classes: channels of the logits.
          encoder: `encoder(in_channels, dtype=dtype, rngs=rngs)` returns the encoder.
          decoder_kernels: side of each convolution at one resolution of the decoder, odd.
          in_channels: channels of the images.
          dtype: type of the computation. Weights, batch statistics and logits are always float32.
          seed: of the initial weights.

        Raises:
          ConfigError: a number is not positive, or the side of a convolution is even.
        """
        check_counts(NAME, num_classes=num_classes, in_channels=in_channels)
        check_counts_in(NAME, None, decoder_kernels=decoder_kernels)
        if any(size % 2 == 0 for size in decoder_kernels):
            raise ConfigError(f"{NAME}: decoder_kernels must be odd numbers, not {tuple(decoder_kernels)}")
        rngs = nnx.Rngs(seed)
        self.encoder = encoder(in_channels, dtype=dtype, rngs=rngs)
        self.dtype = dtype
        *skips, deepest = self.encoder.channels
        self.reduce = _conv(deepest, skips[-1], 1, dtype=dtype, rngs=rngs)
        self.levels = len(skips)
        for i, inputs in enumerate(reversed(skips)):
            outputs = skips[max(self.levels - i - 2, 0)]  # channels of the next skip
            setattr(self, f"up{i}", PreactivatedConvs(inputs, outputs, decoder_kernels, dtype=dtype, rngs=rngs))
        self.head = layers.Conv(
            skips[0], num_classes, 1, use_bias=True, init=initializers.torch_default, dtype=dtype, rngs=rngs
        )

    def __call__(self, images: jax.Array) -> jax.Array:
        """Images (N, H, W, in_channels), RGB from 0 to 255 -> float32 logits (N, H / 2, W / 2, num_classes).

        Raises:
          ConfigError: H or W is not a multiple of 32.
        """
        height, width = images.shape[1:3]
        if height % MULTIPLE or width % MULTIPLE:
            fitting = "x".join(str(-(-side // MULTIPLE) * MULTIPLE) for side in (height, width))
            raise ConfigError(
                f"{NAME}: {height}x{width} pixels are not multiples of {MULTIPLE}; use images of {fitting}, for example"
            )
        *skips, x = self.encoder((images.astype(jnp.float32) / 255).astype(self.dtype))
        x = self.reduce(x)
        for i in range(self.levels):
            skip = skips.pop()
            x = getattr(self, f"up{i}")(resampling.upsample_nearest(x, *skip.shape[1:3]) + skip)
        return self.head(x).astype(jnp.float32)

    def full_size_logits(self, images: jax.Array) -> jax.Array:
        """Returns logarithms of the probabilities of every pixel, float32 (N, H, W, num_classes).

        Probabilities, not logits, are enlarged (bilinear, half-pixel centers). The softmax of logarithms of
        probabilities gives these probabilities, so losses and predictions take the result as logits.
        """
        return enlarge_log_probabilities(jax.nn.log_softmax(self(images)))

    def torch_entries(self) -> TorchEntries:
        """Returns the entries under the names of the state_dict of TIAToolbox's `UNetModel`."""
        entries = prefixed("backbone", self.encoder.torch_entries()) | prefixed("conv1x1", self.reduce.torch_entries())
        for i in range(self.levels):
            entries |= prefixed(f"uplist.{i}", getattr(self, f"up{i}").torch_entries())
        return entries | prefixed("clf", self.head.torch_entries())

    def torch_constants(self) -> dict[str, np.ndarray]:
        """Returns what TIAToolbox's files hold besides weights: the 2x2 block that its upsampling repeats pixels by."""
        return {"upsample2x.unpool_mat": np.ones((2, 2), np.float32)}


def _conv(inputs: int, outputs: int, size: int, **kwargs: Any) -> layers.Conv:
    return layers.Conv(inputs, outputs, size, use_bias=False, init=initializers.kaiming_normal_fan_out, **kwargs)


def enlarge_log_probabilities(logarithms: jax.Array) -> jax.Array:
    """Enlarges probabilities to twice the height and width, bilinearly with half-pixel centers.

    It computes with logarithms, which do not underflow where a model is very confident.

    Args:
      logarithms: of the probabilities, (N, h, w, C).

    Returns:
      Logarithms of the enlarged probabilities, (N, 2h, 2w, C).
    """
    for axis in (1, 2):
        size = logarithms.shape[axis]
        first, last = (jax.lax.slice_in_dim(logarithms, at, at + 1, axis=axis) for at in (0, size - 1))
        before = jnp.concatenate([first, jax.lax.slice_in_dim(logarithms, 0, size - 1, axis=axis)], axis)
        after = jnp.concatenate([jax.lax.slice_in_dim(logarithms, 1, size, axis=axis), last], axis)
        near = logarithms + np.float32(np.log(0.75))
        pairs = [jnp.logaddexp(near, each + np.float32(np.log(0.25))) for each in (before, after)]
        shape = [*logarithms.shape]
        shape[axis] *= 2
        logarithms = jnp.stack(pairs, axis + 1).reshape(shape)
    return logarithms
