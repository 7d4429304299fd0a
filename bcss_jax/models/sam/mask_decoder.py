"""SAM's mask decoder: the embedding of an image and prompts to masks and their expected quality.

Source: `MaskDecoder` of github.com/facebookresearch/segment-anything and sam2.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from flax.typing import Dtype

from bcss_jax.models.blocks import initializers, layers, norms
from bcss_jax.models.sam.architecture import DecoderForm
from bcss_jax.models.sam.mlp import LIN, MLP
from bcss_jax.models.sam.two_way_transformer import TwoWayTransformer
from bcss_jax.models.weights.torch_layout import SAME, TorchEntries, entries_of


class Features(NamedTuple):
    """What an encoder says of images.

    Attributes:
      embedding: (N, h, w, C).
      finer: maps of more pixels, that of 4h x 4w first, which SAM 2.1 adds to masks; empty in SAM.
    """

    embedding: jax.Array
    finer: tuple[jax.Array, ...] = ()


class Predictions(NamedTuple):
    """What is predicted for P prompts.

    Attributes:
      masks: float32 logits (P, M, 4h, 4w).
      scores: float32 (P, M), the expected intersection over union of each mask with what was meant.
      object_scores: float32 logits (P,), whether there is an object at all; None in SAM.
    """

    masks: jax.Array
    scores: jax.Array
    object_scores: jax.Array | None = None


class MaskDecoder(nnx.Module):
    """A two-way transformer, upscaling of the image, and a product of its pixels with a vector for each mask."""

    def __init__(self, form: DecoderForm, *, version: int, scored: bool = True, dtype: Dtype, rngs: nnx.Rngs):
        """Builds the decoder with random weights.

        Args:
          form: its form.
          version: 1 for SAM and 2 for SAM 2.1.
          scored: False: there is nothing that scores the masks, only `masks` can be called.
          dtype: type of the computation. Weights are float32.
          rngs: random keys.

        Raises:
          ConfigError: no network has such a form.
        """
        form.check()
        self.form, self.version, self.dtype = form, version, dtype
        width, common = form.channels, dict[str, Any](dtype=dtype, rngs=rngs)
        self.transformer = TwoWayTransformer(form, mlp_names=LIN if version == 1 else (), **common)
        self.score_token = initializers.normal(rngs, (1, width), 1)
        self.mask_tokens = initializers.normal(rngs, (form.masks, width), 1)
        self.upscaling1 = layers.ConvTranspose(width, width // 4, **common)
        self.upscaling_norm = norms.LayerNorm(width // 4, eps=1e-6)
        self.upscaling2 = layers.ConvTranspose(width // 4, width // 8, **common)
        self.mask_vectors = nnx.List(MLP((width, width, width, width // 8), **common) for _ in range(form.masks))
        if scored:
            self.score_head = MLP((width, form.score_hidden, form.score_hidden, form.masks), **common)
        if version == 2:
            self.object_token = initializers.normal(rngs, (1, width), 1)
            if scored:
                self.object_head = MLP((width, width, width, 1), **common)
            self.finest = layers.Conv(width, width // 8, 1, use_bias=True, **common)
            self.finer = layers.Conv(width, width // 4, 1, use_bias=True, **common)

    def features(self, maps: Sequence[jax.Array], no_memory: nnx.Param | None) -> Features:
        """Returns what the decoder takes of an image from the maps of the encoder's neck, finest first.

        Args:
          maps: one of SAM; of SAM 2.1 two finer ones before it.
          no_memory: SAM 2.1's (1, 1, C) that stands for a memory of other images; None: SAM.
        """
        *finer, embedding = maps
        if no_memory is None:
            return Features(embedding)
        finest, finer = finer
        embedding = embedding + no_memory[...].astype(embedding.dtype)
        return Features(embedding, (self.finest(finest), self.finer(finer)))

    def __call__(
        self,
        features: Features,
        positions: jax.Array,
        tokens: jax.Array,
        seen: jax.Array | None,
        dense: jax.Array,
    ) -> Predictions:
        """Returns all masks of P prompts.

        Args:
          features: of N images; P is a multiple of N, and prompts of one image come together.
          positions: float32 (h, w, C), of `PromptEncoder.positions`.
          tokens: float32 (P, T, C), of `PromptEncoder.sparse`.
          seen: bool (P, T), which tokens exist; None: all.
          dense: (P or 1, h, w, C), of `PromptEncoder.dense`.
        """
        masks, own = self.masks(features, positions, tokens, seen, dense)
        scores = self.score_head(own[:, self.version - 1]).astype(jnp.float32)
        if self.version == 1:
            return Predictions(masks, scores)
        return Predictions(masks, jax.nn.sigmoid(scores), self.object_head(own[:, 0])[:, 0].astype(jnp.float32))

    def masks(
        self, features: Features, positions: jax.Array, tokens: jax.Array, seen: jax.Array | None, dense: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Returns the masks alone, and the decoder's own tokens after the transformer.

        The arguments are those of `__call__`.

        Returns:
          float32 logits (P, M, 4h, 4w), and (P, T, C): in SAM 2.1 the token of the object, then that of the scores,
          then those of the masks.
        """
        prompts, count = tokens.shape[0], self.form.masks
        of_image, height, width, channels = features.embedding.shape
        own = [self.object_token] if self.version == 2 else []
        own = jnp.concatenate([token[...] for token in (*own, self.score_token, self.mask_tokens)])
        tokens = jnp.concatenate([jnp.broadcast_to(own, (prompts, *own.shape)), tokens], axis=1).astype(self.dtype)
        if seen is not None:
            seen = jnp.concatenate([jnp.ones((prompts, len(own)), bool), seen], axis=1)

        def for_prompts(x):
            return jnp.repeat(x.astype(self.dtype), prompts // of_image, axis=0)

        image = (for_prompts(features.embedding) + dense.astype(self.dtype)).reshape(prompts, -1, channels)
        flat_positions = positions.reshape(1, -1, channels).astype(self.dtype)
        tokens, image = self.transformer(tokens, image, flat_positions, seen)
        x = self.upscaling1(image.reshape(prompts, height, width, channels))
        if self.version == 2:
            finest, finer = (for_prompts(x) for x in features.finer)
            x = layers.gelu(self.upscaling_norm(x + finer))
            x = layers.gelu(self.upscaling2(x) + finest)
        else:
            x = layers.gelu(self.upscaling2(layers.gelu(self.upscaling_norm(x))))

        first = len(own) - count
        vectors = jnp.stack([layer(tokens[:, first + i]) for i, layer in enumerate(self.mask_vectors)], axis=1)
        masks = jnp.einsum("pmc,phwc->pmhw", vectors, x, preferred_element_type=jnp.float32)
        return masks, tokens[:, : len(own)]

    def torch_entries(self) -> TorchEntries:
        """Returns the entries under the names of the reference's `MaskDecoder`."""
        entries: TorchEntries = {
            "iou_token.weight": (self.score_token, SAME),
            "mask_tokens.weight": (self.mask_tokens, SAME),
        }
        modules = {
            "transformer": self.transformer,
            "output_upscaling.0": self.upscaling1,
            "output_upscaling.1": self.upscaling_norm,
            "output_upscaling.3": self.upscaling2,
            **{f"output_hypernetworks_mlps.{i}": layer for i, layer in enumerate(self.mask_vectors)},
        }
        if self.version == 2:
            entries["obj_score_token.weight"] = (self.object_token, SAME)
            modules |= {"conv_s0": self.finest, "conv_s1": self.finer}
        heads = {"iou_prediction_head": "score_head", "pred_obj_score_head": "object_head"}
        modules |= {name: getattr(self, head) for name, head in heads.items() if hasattr(self, head)}
        return entries | entries_of(modules)
