"""Segmentation with a vision transformer as the encoder."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from flax.typing import Dtype

from bcss_jax.errors import ConfigError
from bcss_jax.models.arguments import check_counts, check_fraction
from bcss_jax.models.decoders.convolutional import ConvolutionalDecoder
from bcss_jax.models.decoders.eomt import EoMTDecoder, Queries
from bcss_jax.models.decoders.linear import LinearDecoder
from bcss_jax.models.encoders.vision_transformer.adapters import AdaptedNetwork, Adapters, matrices_of
from bcss_jax.models.encoders.vision_transformer.network import VisionTransformer
from bcss_jax.models.encoders.vision_transformer.presets import preset_of
from bcss_jax.models.image_normalization import ImageStatistics
from bcss_jax.models.weights.torch_layout import TorchEntries, entries_of

MAP_DECODERS = {"linear": LinearDecoder, "convolutional": ConvolutionalDecoder}
DECODERS = (*MAP_DECODERS, "eomt")


class ViTSegmenter(AdaptedNetwork):
    """A published form of vision transformer, and a decoder on the features of its last blocks.

    Attributes:
      preset: the published form.
      adapters: low-rank products beside the matrices of the encoder, which are trained in its place; None: there are
        none.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        encoder: str = "gigapath_flash",
        table: int = 0,
        decoder: str = "convolutional",
        decoded_blocks: int = 1,
        queries: int = 100,
        query_blocks: int = 3,
        drop_path: float = 0.0,
        lora_rank: int = 0,
        lora_alpha: float = 16.0,
        lora_on: str = "qkv,proj",
        in_channels: int = 3,
        dtype: Dtype = jnp.float32,
        seed: int = 0,
    ):
        """Builds the network with random weights.

        Args:
          num_classes: channels of the logits.
          encoder: a name of `presets.PRESETS`.
          table: rows of the table of position embeddings, if another than the published one; 0: as published.
          decoder: "convolutional", "linear" or "eomt".
          decoded_blocks: number of the last blocks whose features are decoded; not of "eomt".
          queries: of "eomt", at least as many as classes.
          query_blocks: number of the last blocks that the queries of "eomt" pass.
          drop_path: probability with which the results of the last block are dropped in training; it grows from 0 in
            the first.
          lora_rank: rank of the products of `adapters.Adapters`, which are trained in place of the encoder; 0: there
            are none.
          lora_alpha: see there.
          lora_on: see there.
          in_channels: channels of the images.
          dtype: type of the computation. Weights, batch statistics and logits are float32.
          seed: of the initial weights.

        Raises:
          ConfigError: an argument is invalid.
        """
        check_counts("vit", num_classes=num_classes, in_channels=in_channels)
        check_fraction("vit", allow_zero=True, allow_one=False, drop_path=drop_path)
        self.preset = preset_of(encoder)
        architecture = self.preset.architecture
        if table:
            check_counts("vit", table=table)
            if architecture.table is None:
                raise ConfigError(f"vit: {encoder} has rotary positions and no table; leave table at 0, not {table}")
            architecture = dataclasses.replace(architecture, table=table)
        check_counts("vit", most=architecture.depth, decoded_blocks=decoded_blocks)
        if decoder not in DECODERS:
            raise ConfigError(f"vit: decoder must be one of {', '.join(DECODERS)}, not {decoder!r}")
        rngs = nnx.Rngs(seed)
        self.decoded_blocks, self.dtype = decoded_blocks, dtype
        self.encoder = VisionTransformer(
            architecture, in_channels=in_channels, drop_path=drop_path, dtype=dtype, rngs=rngs
        )
        common: dict[str, Any] = dict(dtype=dtype, rngs=rngs)
        if decoder == "eomt":
            check_counts("vit", most=architecture.depth, query_blocks=query_blocks)
            check_counts("vit", queries=queries)
            if queries < num_classes:
                raise ConfigError(f"vit: {queries} queries cannot stand for {num_classes} classes; choose more")
            # Masks have a quarter of the resolution of the images, or a little less.
            upscales = 1 if architecture.patch < 12 else 2
            self.decoder = EoMTDecoder(
                architecture.width, num_classes, queries=queries, blocks=query_blocks, upscales=upscales, **common
            )
        else:
            self.decoder = MAP_DECODERS[decoder](
                architecture.width, decoded_blocks, num_classes, in_channels=in_channels, **common
            )
        lora: dict[str, Any] = dict(rank=lora_rank, alpha=lora_alpha, on=lora_on)
        self.adapters = Adapters(matrices_of(architecture), **lora, **common) if lora_rank else None

    @staticmethod
    def image_statistics(encoder: str = "gigapath_flash", **others) -> ImageStatistics:
        """Returns what images must be normalized with for a network with these arguments."""
        del others
        return preset_of(encoder).statistics

    def __call__(
        self, images: jax.Array, dropout_keys: jax.Array | None = None, encoded: list[jax.Array] | None = None
    ) -> jax.Array:
        """Returns the logits of a batch.

        Args:
          images: (N, H, W, in_channels). If H or W is not a multiple of the patch, the last row or column is repeated
            up to the next one, and the logits are cropped.
          dropout_keys: JAX keys (N,), one per example; needed only in training with `drop_path`.
          encoded: the result of `encode` for the same images, if it is known.

        Returns:
          float32 (N, H, W, num_classes).
        """
        height, width = images.shape[1:3]
        images = self._whole_patches(images)
        encoded = self.encode(images, dropout_keys) if encoded is None else encoded
        if isinstance(self.decoder, EoMTDecoder):
            logits = self._queries(images, encoded, masked=False)[-1].logits(*images.shape[1:3])
        else:
            logits = self.decoder(encoded, images)
        return logits[:, :height, :width]

    def queries(
        self, images: jax.Array, dropout_keys: jax.Array | None = None, encoded: list[jax.Array] | None = None
    ) -> list[Queries]:
        """Returns the predictions of the queries of "eomt", for training; the arguments are those of `__call__`."""
        images = self._whole_patches(images)
        encoded = self.encode(images, dropout_keys) if encoded is None else encoded
        return self._queries(images, encoded, masked=True, keys=dropout_keys)

    def _queries(self, images: jax.Array, encoded: list[jax.Array], **how) -> list[Queries]:
        assert isinstance(self.decoder, EoMTDecoder)
        return self.decoder(self.encoder, encoded[0], self.encoder.grid(images), adapters=self.adapters, **how)

    @property
    def has_queries(self) -> bool:
        """Whether the network is trained by `queries` in place of logits."""
        return isinstance(self.decoder, EoMTDecoder)

    def encode(self, images: jax.Array, dropout_keys: jax.Array | None = None) -> list[jax.Array]:
        """Returns what the decoder takes from the encoder; the arguments are those of `__call__`.

        It is the features of the last blocks (N, rows, columns, C) or, for "eomt", the tokens that the queries join
        (N, T, C).
        """
        images = self._whole_patches(images)
        if isinstance(self.decoder, EoMTDecoder):
            blocks = len(self.encoder.blocks) - self.decoder.blocks
            return self.encoder.tokens(images, None, dropout_keys, self.adapters, blocks)[-1:]
        blocks = self.encoder.block_outputs(images, dropout_keys=dropout_keys, adapters=self.adapters)
        grid = self.encoder.grid(images)
        return [self.encoder.features(x, grid).patches for x in blocks[-self.decoded_blocks :]]

    def _whole_patches(self, images: jax.Array) -> jax.Array:
        height, width = images.shape[1:3]
        patch = self.encoder.architecture.patch
        if height % patch or width % patch:
            images = jnp.pad(images, ((0, 0), (0, -height % patch), (0, -width % patch), (0, 0)), mode="edge")
        return images.astype(self.dtype)

    def torch_entries(self) -> TorchEntries:
        """Returns the entries under names of our own, the encoder's under those of DINOv2; none of the adapters."""
        return entries_of({"encoder": self.encoder, "decoder": self.decoder})
