"""EoMT: queries that join the tokens of a vision transformer for its last blocks, and predict masks and classes.

Source: Kerssies et al. 2025 (arXiv:2503.19108), in the form of transformers' `EomtForUniversalSegmentation`.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from flax.typing import Dtype

from bcss_jax.models.blocks import initializers, layers, norms
from bcss_jax.models.encoders.vision_transformer.adapters import Adapters
from bcss_jax.models.encoders.vision_transformer.block import token_init
from bcss_jax.models.encoders.vision_transformer.network import VisionTransformer
from bcss_jax.models.weights.torch_layout import CONV, SAME, TorchEntries, entries_of, prefixed

_CHUNK = 16  # queries whose masks are held at full size at once
_LEAST = 1e-6  # of a class at a pixel, before the logarithm
_POWER = 0.9  # of the falling probability of masked attention
_FIRST_KEY = 1 << 20  # numbers of the random keys of masked attention; dropouts have lower ones


class Queries(NamedTuple):
    """What the queries predict.

    Attributes:
      masks: logits (N, Q, rows, columns) of the pixels that belong to each query.
      classes: logits (N, Q, num_classes + 1) of what each query stands for; the last class is none of them.
      cell: side of a pixel of `masks`, in pixels of the images.
    """

    masks: jax.Array
    classes: jax.Array
    cell: jax.Array | float

    def semantic(self, height: int, width: int) -> jax.Array:
        """Returns how much of each class is at each pixel: float32 (N, height, width, num_classes).

        It is the sum over the queries of the probability of the class times that of the mask, which is resized first.
        """
        classes = jax.nn.softmax(self.classes.astype(jnp.float32))[..., :-1]
        n, count, _ = classes.shape
        chunk = max(size for size in range(1, _CHUNK + 1) if count % size == 0)

        def add(total, queries):
            masks, classes = queries
            masks = jax.image.resize(masks.astype(jnp.float32), (n, chunk, height, width), "linear", antialias=False)
            return total + jnp.einsum("nqc,nqhw->nhwc", classes, jax.nn.sigmoid(masks)), None

        chunks = [x.reshape(n, count // chunk, chunk, *x.shape[2:]).swapaxes(0, 1) for x in (self.masks, classes)]
        nothing = jnp.zeros((n, height, width, classes.shape[-1]), jnp.float32)
        return jax.lax.scan(add, nothing, tuple(chunks))[0]

    def logits(self, height: int, width: int) -> jax.Array:
        """Returns the logarithm of `semantic`: its softmax is what it has of each class, divided by their sum."""
        return jnp.log(self.semantic(height, width) + _LEAST)


class MaskProbability(nnx.Variable):
    """How likely the attention of a query is masked in each of the last blocks, in training."""


def mask_probabilities(progress: float, blocks: int) -> np.ndarray:
    """Returns the probabilities of masked attention: float32 (blocks,).

    Those of the first blocks fall first, from 1 to 0 as (1 - x)^0.9, each over 2 / (3 * blocks + 3) of the training. At
    the end none is left, so that predictions need no masks. Source: the settings of github.com/tue-mps/eomt.

    Args:
      progress: share of the training that is done.
      blocks: number of the blocks that the queries pass.
    """
    start = (3 * np.arange(blocks) + 2) / (3 * blocks + 3)
    done = np.clip((progress - start) * (3 * blocks + 3) / 2, 0, 1)
    return ((1 - done) ** _POWER).astype(np.float32)


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
        self.mask_probability = MaskProbability(jnp.ones(blocks))
        self.query = token_init(rngs, (queries, width))
        self.upscales = nnx.List(Upscale(width, dtype=dtype, rngs=rngs) for _ in range(upscales))
        self.mask_head = nnx.List(layers.Linear(width, width, dtype=dtype, rngs=rngs) for _ in range(3))
        self.class_predictor = layers.Linear(width, num_classes + 1, dtype=dtype, rngs=rngs)

    def __call__(
        self,
        encoder: VisionTransformer,
        tokens: jax.Array,
        grid: tuple[int, int],
        *,
        masked: bool,
        keys: jax.Array | None = None,
        adapters: Adapters | None = None,
    ) -> list[Queries]:
        """Returns the predictions before each of the last blocks and, as the last one, after them.

        Args:
          encoder: of `width` features.
          tokens: before the first of the last blocks.
          grid: rows and columns of the patches.
          masked: in the last blocks, a query sees only the patches of its own mask so far, with `mask_probability`.
            Otherwise there is one prediction, after the last block.
          keys: JAX keys (N,), one per example, which decide for which queries that is so; None: for all.
          adapters: see `VisionTransformer.block_outputs`.
        """
        angles, predictions = encoder.angles(*grid), []
        query = jnp.broadcast_to(self.query[...], (tokens.shape[0], *self.query.shape)).astype(tokens.dtype)
        x = jnp.concatenate([query, tokens], axis=1)
        first = len(encoder.blocks) - self.blocks
        for number, block in enumerate(encoder.blocks[first:]):
            seen = None
            if masked:
                predictions.append(self._predict(encoder, x, grid))
                free = None if keys is None else self._free(number, keys)
                seen = self._seen(predictions[-1].masks, grid, x.shape[1], free)
            x = block(x, angles, keys, seen, adapters and adapters.blocks[first + number])
        return [*predictions, self._predict(encoder, x, grid)]

    def _free(self, number: int, keys: jax.Array) -> jax.Array:
        """Returns the queries whose attention is not masked in a block: bool (N, Q)."""
        count = self.query.shape[0]
        draw = jax.vmap(lambda key: jax.random.uniform(jax.random.fold_in(key, _FIRST_KEY + number), (count,)))
        return draw(keys) >= self.mask_probability[number]

    def _seen(self, masks: jax.Array, grid: tuple[int, int], tokens: int, free: jax.Array | None = None) -> jax.Array:
        """Returns the mask of the attention, bool (N, T, T): a query sees the patches where its mask is positive.

        The queries that are `free` see all patches.
        """
        n, queries = masks.shape[:2]
        small = jax.image.resize(masks, (n, queries, *grid), "linear", antialias=False) > 0
        small = small if free is None else small | free[:, :, None, None]
        before = jnp.ones((n, queries, tokens - grid[0] * grid[1]), bool)
        of_queries = jnp.concatenate([before, small.reshape(n, queries, -1)], axis=2)
        return jnp.concatenate([of_queries, jnp.ones((n, tokens - queries, tokens), bool)], axis=1)

    def _predict(self, encoder: VisionTransformer, x: jax.Array, grid: tuple[int, int]) -> Queries:
        """Returns what the queries predict, from tokens before the final norm."""
        x, prefix, count = encoder.norm(x), encoder.architecture.prefix, self.query.shape[0]
        query, patches = x[:, :count], x[:, count + prefix :].reshape(x.shape[0], *grid, -1)
        classes = self.class_predictor(query)
        for upscale in self.upscales:
            patches = upscale(patches)
        *hidden, last = self.mask_head
        for dense in hidden:
            query = jax.nn.gelu(dense(query), approximate=False)
        cell = encoder.architecture.patch / 2 ** len(self.upscales)
        return Queries(jnp.einsum("nqc,nhwc->nqhw", last(query), patches), classes, cell)

    def torch_entries(self) -> TorchEntries:
        """Returns the entries under the names of transformers' `EomtForUniversalSegmentation`."""
        entries: TorchEntries = {"query.weight": (self.query, SAME)}
        for i, upscale in enumerate(self.upscales):
            entries |= prefixed(f"upscale_block.block.{i}", upscale.torch_entries())
        for i, dense in enumerate(self.mask_head, 1):
            entries |= prefixed(f"mask_head.fc{i}", dense.torch_entries())
        return entries | prefixed("class_predictor", self.class_predictor.torch_entries())
