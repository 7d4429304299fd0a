"""One linear layer on the features of a vision transformer."""

import jax
import jax.numpy as jnp
from flax import nnx
from flax.typing import Dtype

from bcss_jax.models.blocks import initializers, layers, norms
from bcss_jax.models.weights.torch_layout import TorchEntries, entries_of


def head_init(rngs: nnx.Rngs, shape: tuple[int, ...]) -> nnx.Param:
    """Draws from a normal distribution with deviation 0.01, as DINOv3's linear head."""
    return initializers.normal(rngs, shape, 0.01)


class LinearDecoder(nnx.Module):
    """BatchNorm and a 1x1 convolution on the features of the last blocks, then bilinear interpolation.

    Source: the linear head of github.com/facebookresearch/dinov3 (eval/segmentation), without its dropout.
    """

    def __init__(
        self, features: int, maps: int, num_classes: int, *, in_channels: int = 3, dtype: Dtype, rngs: nnx.Rngs
    ):
        """Builds the decoder for `maps` maps of `features` features; the channels of the images do not matter."""
        del in_channels
        self.norm = norms.BatchNorm(features * maps, relu=False)
        self.head = layers.Conv(
            features * maps, num_classes, 1, use_bias=True, zero_bias=True, init=head_init, dtype=dtype, rngs=rngs
        )

    def __call__(self, features: list[jax.Array], images: jax.Array) -> jax.Array:
        """Returns the logits.

        Args:
          features: maps (N, rows, columns, C), that of the last block last.
          images: (N, H, W, C), of which the size is taken.

        Returns:
          float32 (N, H, W, num_classes).
        """
        logits = self.head(self.norm(jnp.concatenate(features, axis=-1))).astype(jnp.float32)
        return jax.image.resize(logits, (*images.shape[:3], logits.shape[-1]), "linear", antialias=False)

    def torch_entries(self) -> TorchEntries:
        """Returns the entries under the names of DINOv3's head."""
        return entries_of({"batchnorm_layer": self.norm, "conv": self.head})
