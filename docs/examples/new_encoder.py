"""A new encoder: five feature maps from plain strided convolutions, and a U-Net over them."""

import functools

import jax
from flax import nnx
from flax.typing import Dtype

from bcss_jax import models
from bcss_jax.models.blocks import initializers, layers, norms
from bcss_jax.models.encoder_unet import EncoderUNet
from bcss_jax.models.weights.torch_layout import TorchEntries, prefixed


class StridedEncoder(nnx.Module):
    """Five times (3x3 convolution with stride 2, BatchNorm, ReLU).

    Attributes:
      channels: of the five feature maps.
    """

    channels = (16, 32, 64, 128, 256)

    def __init__(self, in_channels: int, *, dtype: Dtype, rngs: nnx.Rngs):
        """Builds the layers with random weights."""
        inputs = in_channels
        for i, outputs in enumerate(self.channels):
            conv = layers.Conv(
                inputs, outputs, 3, stride=2, use_bias=False, init=initializers.kaiming_uniform, dtype=dtype, rngs=rngs
            )
            setattr(self, f"conv{i}", conv)
            setattr(self, f"norm{i}", norms.BatchNorm(outputs, relu=True))
            inputs = outputs

    def __call__(self, images: jax.Array) -> tuple[jax.Array, ...]:
        """Returns features (N, H', W', channels) at 1/2, 1/4, 1/8, 1/16 and 1/32 of the size, rounded up.

        Args:
          images: (N, H, W, in_channels).
        """
        features = [images]
        for i in range(len(self.channels)):
            features.append(getattr(self, f"norm{i}")(getattr(self, f"conv{i}")(features[-1])))
        return tuple(features[1:])

    def torch_entries(self) -> TorchEntries:
        """Returns the names of the weights in files, for `--config.pretrained`."""
        entries = {}
        for i in range(len(self.channels)):
            entries |= prefixed(f"conv{i}", getattr(self, f"conv{i}").torch_entries())
            entries |= prefixed(f"norm{i}", getattr(self, f"norm{i}").torch_entries())
        return entries


models.MODELS["unet_strided"] = functools.partial(EncoderUNet, encoder=StridedEncoder)
