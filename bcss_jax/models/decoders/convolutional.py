"""Convolutions on the features of a vision transformer and on the image."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from flax.typing import Dtype

from bcss_jax.models.blocks import initializers, layers, norms
from bcss_jax.models.weights.torch_layout import TorchEntries, entries_of

CHANNELS = (256, 128, 64)  # of the stages, from coarse to fine


class Stage(nnx.Module):
    """Bilinear upsampling by two, the image at that size beside it, 3x3 convolution, BatchNorm and ReLU."""

    def __init__(self, inputs: int, outputs: int, in_channels: int, *, dtype: Dtype, rngs: nnx.Rngs):
        """Builds the stage for maps of `inputs` channels and images of `in_channels`."""
        common: dict[str, Any] = dict(use_bias=False, init=initializers.kaiming_uniform, dtype=dtype, rngs=rngs)
        self.conv = layers.Conv(inputs + in_channels, outputs, 3, **common)
        self.norm = norms.BatchNorm(outputs, relu=True)

    def __call__(self, x: jax.Array, images: jax.Array) -> jax.Array:
        """(N, h, w, inputs), images (N, H, W, in_channels) -> (N, 2h, 2w, outputs)."""
        n, height, width, channels = x.shape
        x = jax.image.resize(x, (n, 2 * height, 2 * width, channels), "linear", antialias=False)
        size = (n, *x.shape[1:3], images.shape[-1])
        small = jax.image.resize(images, size, "linear", antialias=True).astype(x.dtype)
        return self.norm(self.conv(x, small))

    def torch_entries(self) -> TorchEntries:
        """Returns the entries under names of our own."""
        return entries_of({"conv": self.conv, "norm": self.norm})


class ConvolutionalDecoder(nnx.Module):
    """Three stages from the patches to finer maps, each of which sees the image too, and a 1x1 convolution.

    The idea is that of the decoder with image of kaiko's eva (github.com/kaiko-ai/eva); the channels are ours.
    """

    def __init__(
        self, features: int, maps: int, num_classes: int, *, in_channels: int = 3, dtype: Dtype, rngs: nnx.Rngs
    ):
        """Builds the decoder for `maps` maps of `features` features and images of `in_channels` channels."""
        inputs = features * maps
        stages = []
        for outputs in CHANNELS:
            stages.append(Stage(inputs, outputs, in_channels, dtype=dtype, rngs=rngs))
            inputs = outputs
        self.stages = nnx.List(stages)
        self.head = layers.Conv(inputs, num_classes, 1, use_bias=True, zero_bias=True, dtype=dtype, rngs=rngs)

    def __call__(self, features: list[jax.Array], images: jax.Array) -> jax.Array:
        """Returns float32 logits (N, H, W, num_classes); the arguments are those of `LinearDecoder`."""
        x = jnp.concatenate(features, axis=-1)
        for stage in self.stages:
            x = stage(x, images)
        logits = self.head(x).astype(jnp.float32)
        return jax.image.resize(logits, (*images.shape[:3], logits.shape[-1]), "linear", antialias=False)

    def torch_entries(self) -> TorchEntries:
        """Returns the entries under names of our own."""
        stages = {f"stages.{i}": stage for i, stage in enumerate(self.stages)}
        return entries_of({**stages, "head": self.head})
