"""SAM's prompt encoder: points, boxes and masks to tokens and a map.

Source: `PromptEncoder` of github.com/facebookresearch/segment-anything and sam2.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from flax.typing import Dtype

from bcss_jax.models.blocks import initializers, layers, norms
from bcss_jax.models.sam.architecture import DecoderForm
from bcss_jax.models.sam.patch_conv import PatchConv
from bcss_jax.models.weights.torch_layout import SAME, TorchEntries, entries_of

# Labels of what becomes a token.
BACKGROUND, FOREGROUND, TOP_LEFT, BOTTOM_RIGHT = 0, 1, 2, 3
NOT_A_POINT = -1  # the token that the reference appends to points
NO_TOKEN = -2  # no token at all: what fills an array up to a common length, and no other token sees


class Buffer(nnx.Variable):
    """Numbers that are stored with the weights and never trained."""


class Tokens(NamedTuple):
    """Points and corners of boxes, in the order of their tokens.

    Attributes:
      points: float32 (P, N, 2), x and y in pixels of the network's input.
      labels: integer (P, N), of the labels above.
    """

    points: jax.Array
    labels: jax.Array


class Places(nnx.Module):
    """Fourier features of places in an image, with random frequencies."""

    def __init__(self, channels: int, *, rngs: nnx.Rngs):
        """Draws the frequencies of so many features."""
        self.matrix = Buffer(initializers.normal(rngs, (2, channels // 2), 1)[...])

    def __call__(self, places: jax.Array) -> jax.Array:
        """Returns the features of places (..., 2), x and y between 0 and 1: float32 (..., channels)."""
        x, y = jnp.split(2 * places.astype(jnp.float32) - 1, 2, axis=-1)
        by_x, by_y = self.matrix[...]
        # Not a matrix product, which some devices compute with fewer digits.
        angles = 2 * np.pi * (x * by_x + y * by_y)
        return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)

    def of_map(self, rows: int, columns: int) -> jax.Array:
        """Returns the features of the pixels of a map: float32 (rows, columns, channels)."""
        y, x = np.meshgrid(*((np.arange(n, dtype=np.float32) + 0.5) / n for n in (rows, columns)), indexing="ij")
        return self(jnp.asarray(np.stack([x, y], axis=-1)))

    def torch_entries(self) -> TorchEntries:
        """Returns the entries under the names of SAM's `PositionEmbeddingRandom`."""
        return {"positional_encoding_gaussian_matrix": (self.matrix, SAME)}


class PromptEncoder(nnx.Module):
    """Fourier features of places, learned vectors for what they mean, and convolutions for masks."""

    def __init__(self, form: DecoderForm, *, dtype: Dtype, rngs: nnx.Rngs):
        """Builds the encoder with random weights."""
        channels, of_mask = form.channels, form.mask_channels
        self.places = Places(channels, rngs=rngs)
        self.points = nnx.List(initializers.normal(rngs, (1, channels), 1) for _ in range(4))
        self.not_a_point = initializers.normal(rngs, (1, channels), 1)
        self.no_mask = initializers.normal(rngs, (1, channels), 1)
        self.downscaling = nnx.List(
            [
                PatchConv(1, of_mask // 4, 2, dtype=dtype, rngs=rngs),
                norms.LayerNorm(of_mask // 4, eps=1e-6),
                PatchConv(of_mask // 4, of_mask, 2, dtype=dtype, rngs=rngs),
                norms.LayerNorm(of_mask, eps=1e-6),
                layers.Conv(of_mask, channels, 1, use_bias=True, dtype=dtype, rngs=rngs),
            ]
        )
        self.dtype = dtype

    def positions(self, rows: int, columns: int) -> jax.Array:
        """Returns the features of the pixels of a map: float32 (rows, columns, channels)."""
        return self.places.of_map(rows, columns)

    def sparse(self, tokens: Tokens, size: tuple[int, int]) -> jax.Array:
        """Returns the tokens of points and boxes.

        Args:
          tokens: P prompts.
          size: height and width of the network's input, pixels.

        Returns:
          float32 (P, N, channels); those of `NO_TOKEN` hold no sense.
        """
        height, width = size
        places = (tokens.points.astype(jnp.float32) + 0.5) / np.array((width, height), np.float32)
        features = jnp.where(tokens.labels[..., None] < 0, 0, self.places(places))
        meanings = jnp.concatenate([self.not_a_point[...], *(vector[...] for vector in self.points)])
        return features + meanings[jnp.clip(tokens.labels + 1, 0, 4)]

    def dense(self, masks: jax.Array | None, rows: int, columns: int) -> jax.Array:
        """Returns the map of a prompt, which is added to the embedding of the image.

        Args:
          masks: logits (P, 4 * rows, 4 * columns); None: there are none.
          rows: of the embedding.
          columns: of the embedding.

        Returns:
          (P, rows, columns, channels); P is 1 without masks.
        """
        if masks is None:
            return jnp.broadcast_to(self.no_mask[...], (1, rows, columns, self.no_mask.shape[-1])).astype(self.dtype)
        first, norm1, second, norm2, last = self.downscaling
        x = layers.gelu(norm1(first(masks[..., None])))
        return last(layers.gelu(norm2(second(x))))

    def torch_entries(self) -> TorchEntries:
        """Returns the entries under the names of SAM's `PromptEncoder`."""
        entries: TorchEntries = {
            "not_a_point_embed.weight": (self.not_a_point, SAME),
            "no_mask_embed.weight": (self.no_mask, SAME),
        }
        entries |= {f"point_embeddings.{i}.weight": (vector, SAME) for i, vector in enumerate(self.points)}
        numbers = (0, 1, 3, 4, 6)  # the others are activations
        names = [f"mask_downscaling.{number}" for number in numbers]
        return entries | entries_of({"pe_layer": self.places, **dict(zip(names, self.downscaling, strict=True))})
