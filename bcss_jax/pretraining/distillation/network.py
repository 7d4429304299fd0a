"""The network that is pretrained: an encoder, and heads that are thrown away afterwards."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from flax.typing import Dtype

from bcss_jax.models.blocks import layers
from bcss_jax.models.encoders.vision_transformer.architecture import Architecture
from bcss_jax.models.encoders.vision_transformer.block import token_init
from bcss_jax.models.encoders.vision_transformer.network import VisionTransformer
from bcss_jax.models.weights.torch_layout import TorchEntries, entries_of
from bcss_jax.pretraining.distillation.projection_head import ProjectionHead


class ViewOutputs(NamedTuple):
    """What the network says of views.

    Attributes:
      features: of the class token (views, N, C).
      scores: of the class token, float32 (views, N, prototypes).
      patches: features of the patches (views, N, P, C), or None.
    """

    features: jax.Array
    scores: jax.Array
    patches: jax.Array | None


class PretrainedNetwork(nnx.Module):
    """A vision transformer, a head for its class token and, with masked patches, one for these.

    Attributes:
      encoder: the vision transformer.
      head: of the class token.
      patch_head: of the patches; None if there is none, or if `head` serves both.
      word_head: tells the cluster of visual words of a patch; None: there is none.
    """

    def __init__(
        self,
        architecture: Architecture,
        *,
        prototypes: int,
        head_hidden: int = 2048,
        head_bottleneck: int = 256,
        free_lengths: bool = False,
        mask_token: bool = False,
        patch_head: bool = False,
        clusters: int = 0,
        drop_path: float = 0.0,
        dtype: Dtype = jnp.float32,
        seed: int = 0,
    ):
        """Builds the network with random weights.

        Args:
          architecture: of the encoder.
          prototypes: scores of a token.
          head_hidden: see `ProjectionHead`.
          head_bottleneck: see `ProjectionHead`.
          free_lengths: see `ProjectionHead`.
          mask_token: have a token that replaces those of masked patches.
          patch_head: have a head of their own for patches.
          clusters: of visual words, which are told of patches; 0: none.
          drop_path: see `VisionTransformer`.
          dtype: type of the computation. Weights and scores are float32.
          seed: of the initial weights.
        """
        rngs = nnx.Rngs(seed)
        self.encoder = VisionTransformer(
            architecture, mask_token=mask_token, drop_path=drop_path, dtype=dtype, rngs=rngs
        )

        def head() -> ProjectionHead:
            return ProjectionHead(
                architecture.width,
                prototypes,
                hidden=head_hidden,
                bottleneck=head_bottleneck,
                free_lengths=free_lengths,
                dtype=dtype,
                rngs=rngs,
            )

        self.head = head()
        self.patch_head = head() if patch_head else None
        common: dict[str, Any] = dict(init=token_init, bias_std=0, dtype=dtype, rngs=rngs)
        self.word_head = layers.Linear(architecture.width, clusters, **common) if clusters else None

    def __call__(
        self,
        views: jax.Array,
        masked: jax.Array | None = None,
        dropout_keys: jax.Array | None = None,
        *,
        patches: bool = False,
    ) -> ViewOutputs:
        """Runs the network on views of one size.

        Args:
          views: normalized, float (views, N, H, W, 3).
          masked: bool (views, N, P), patches that the mask token replaces; None: none.
          dropout_keys: JAX keys (views, N), needed only in training with `drop_path`.
          patches: compute the features of patches too.
        """
        count, n = views.shape[:2]

        def flat(x):
            return None if x is None else x.reshape(count * n, *x.shape[2:])

        images, keys, of_patches = views.reshape(count * n, *views.shape[2:]), flat(dropout_keys), None
        if patches:
            features, _, of_patches = self.encoder(images, flat(masked), keys)
            of_patches = of_patches.reshape(count, n, -1, of_patches.shape[-1])
        else:
            assert masked is None, "masked patches are learned from their features"
            features = self.encoder.class_features(images, keys)
        return ViewOutputs(features.reshape(count, n, -1), self.head(features).reshape(count, n, -1), of_patches)

    def patch_scores(self, patches: jax.Array) -> jax.Array:
        """Features of patches (..., C) -> scores float32 (..., prototypes)."""
        return (self.patch_head or self.head)(patches)

    def word_scores(self, patches: jax.Array) -> jax.Array:
        """Features of patches (..., C) -> scores of the clusters of visual words, float32 (..., clusters)."""
        assert self.word_head is not None, "the network tells no visual words"
        return self.word_head(patches).astype(jnp.float32)

    def torch_entries(self) -> TorchEntries:
        """Returns the entries under the names of DINO's checkpoints, `patch_head` as DINOv2's `ibot_head`."""
        modules = {"backbone": self.encoder, "head": self.head}
        optional = {"ibot_head": self.patch_head, "word_head": self.word_head}
        return entries_of(modules | {name: module for name, module in optional.items() if module is not None})
