"""EoMT: queries that join the tokens of a vision transformer for its last blocks, and predict masks and classes.

Source: Kerssies et al. 2025 (arXiv:2503.19108), in the form of transformers' `EomtForUniversalSegmentation`.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from flax.typing import Dtype

from bcss_jax.models.blocks import initializers, layers, norms
from bcss_jax.models.encoders.vision_transformer.block import token_init
from bcss_jax.models.encoders.vision_transformer.network import VisionTransformer
from bcss_jax.models.weights.torch_layout import CONV, SAME, TorchEntries, entries_of, prefixed


class Queries(NamedTuple):
    """What the queries predict.

    Attributes:
      masks: logits (N, Q, rows, columns) of the pixels that belong to each query.
      classes: logits (N, Q, num_classes + 1) of what each query stands for; the last class is none of them.
    """

    masks: jax.Array
    classes: jax.Array

    def semantic(self) -> jax.Array:
        """Returns how much of each class is at each place: float32 (N, rows, columns, num_classes)."""
        classes = jax.nn.softmax(self.classes.astype(jnp.float32))[..., :-1]
        return jnp.einsum("nqc,nqhw->nhwc", classes, jax.nn.sigmoid(self.masks.astype(jnp.float32)))


class Upscale(nnx.Module):
    """Learned upsampling by two, GELU, a 3x3 convolution of each channel, and a norm over the channels."""

    def __init__(self, width: int, *, dtype: Dtype, rngs: nnx.Rngs):
        """Builds the layer for maps of `width` channels."""
        self.conv1 = layers.ConvTranspose(width, width, dtype=dtype, rngs=rngs)
        self.kernel = initializers.torch_default(rngs, (3, 3, 1, width))
        self.norm = norms.LayerNorm(width, eps=1e-6)

    def __call__(self, x: jax.Array) -> jax.Array:
        """(N, h, w, width) -> (N, 2h, 2w, width)."""
        x = jax.nn.gelu(self.conv1(x), approximate=False)
        x = jax.lax.conv_general_dilated(
            x,
            self.kernel[...].astype(x.dtype),
            (1, 1),
            "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=x.shape[-1],
        )
        return self.norm(x)

    def torch_entries(self) -> TorchEntries:
        """Returns the entries under the names of transformers' `EomtScaleLayer`."""
        return {"conv2.weight": (self.kernel, CONV)} | entries_of({"conv1": self.conv1, "layernorm2d": self.norm})


class EoMTDecoder(nnx.Module):
    """The queries, and what turns their tokens and those of the patches into masks and classes."""

    def __init__(
        self, width: int, num_classes: int, *, queries: int, blocks: int, upscales: int, dtype: Dtype, rngs: nnx.Rngs
    ):
        """Builds the decoder.

        Args:
          width: features of a token.
          num_classes: without the class for none.
          queries: number of queries.
          blocks: number of the last blocks of the encoder that the queries pass.
          upscales: times that the map of patches is doubled.
          dtype: type of the computation.
          rngs: random keys.
        """
        self.blocks = blocks
        self.query = token_init(rngs, (queries, width))
        self.upscales = nnx.List(Upscale(width, dtype=dtype, rngs=rngs) for _ in range(upscales))
        self.mask_head = nnx.List(layers.Linear(width, width, dtype=dtype, rngs=rngs) for _ in range(3))
        self.class_predictor = layers.Linear(width, num_classes + 1, dtype=dtype, rngs=rngs)

    def __call__(
        self, encoder: VisionTransformer, images: jax.Array, *, masked: bool, dropout_keys: jax.Array | None = None
    ) -> list[Queries]:
        """Returns the predictions before each of the last blocks and, as the last one, after them.

        Args:
          encoder: of `width` features.
          images: as `VisionTransformer` takes them.
          masked: in the last blocks, each query sees only the patches of its own mask so far, as in the first part of
            training. Otherwise there is one prediction, after the last block.
          dropout_keys: see `VisionTransformer`.
        """
        x, angles, grid = encoder.embed(images), encoder.angles(*encoder.grid(images)), encoder.grid(images)
        first, predictions = len(encoder.blocks) - self.blocks, []
        for number, block in enumerate(encoder.blocks):
            if number == first:
                query = jnp.broadcast_to(self.query[...], (x.shape[0], *self.query.shape)).astype(x.dtype)
                x = jnp.concatenate([query, x], axis=1)
            seen = None
            if masked and number >= first:
                predictions.append(self._predict(encoder.norm(x), grid, encoder.architecture.prefix))
                seen = self._seen(predictions[-1].masks, grid, x.shape[1])
            x = block(x, angles, dropout_keys, seen)
        return [*predictions, self._predict(encoder.norm(x), grid, encoder.architecture.prefix)]

    def _seen(self, masks: jax.Array, grid: tuple[int, int], tokens: int) -> jax.Array:
        """Returns the mask of the attention, bool (N, T, T): a query sees the patches where its mask is positive."""
        n, queries = masks.shape[:2]
        small = jax.image.resize(masks, (n, queries, *grid), "linear", antialias=False) > 0
        before = jnp.ones((n, queries, tokens - grid[0] * grid[1]), bool)
        of_queries = jnp.concatenate([before, small.reshape(n, queries, -1)], axis=2)
        return jnp.concatenate([of_queries, jnp.ones((n, tokens - queries, tokens), bool)], axis=1)

    def _predict(self, x: jax.Array, grid: tuple[int, int], prefix: int) -> Queries:
        """Returns what the queries predict, from tokens after the final norm."""
        count = self.query.shape[0]
        query, patches = x[:, :count], x[:, count + prefix :].reshape(x.shape[0], *grid, -1)
        classes = self.class_predictor(query)
        for upscale in self.upscales:
            patches = upscale(patches)
        *hidden, last = self.mask_head
        for dense in hidden:
            query = jax.nn.gelu(dense(query), approximate=False)
        return Queries(jnp.einsum("nqc,nhwc->nqhw", last(query), patches), classes)

    def torch_entries(self) -> TorchEntries:
        """Returns the entries under the names of transformers' `EomtForUniversalSegmentation`."""
        entries: TorchEntries = {"query.weight": (self.query, SAME)}
        for i, upscale in enumerate(self.upscales):
            entries |= prefixed(f"upscale_block.block.{i}", upscale.torch_entries())
        for i, dense in enumerate(self.mask_head, 1):
            entries |= prefixed(f"mask_head.fc{i}", dense.torch_entries())
        return entries | prefixed("class_predictor", self.class_predictor.torch_entries())
