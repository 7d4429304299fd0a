"""Semantic segmentation with Segment Anything: a learned token for each class in place of prompts.

Source: SAM-Path (Zhang et al. 2023, arXiv:2307.09570).
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from flax.typing import Dtype

from bcss_jax.models.arguments import check_counts
from bcss_jax.models.blocks import initializers
from bcss_jax.models.encoders.vision_transformer.adapters import AdaptedNetwork, Adapters
from bcss_jax.models.image_normalization import IMAGENET
from bcss_jax.models.sam.architecture import DecoderForm, HieraForm
from bcss_jax.models.sam.hiera import Hiera, Pyramid
from bcss_jax.models.sam.image_encoder import Neck, Trunk
from bcss_jax.models.sam.mask_decoder import MaskDecoder
from bcss_jax.models.sam.presets import form_of_encoder
from bcss_jax.models.sam.prompt_encoder import Places
from bcss_jax.models.sam.weights.starting import Start, of_classes, start_of
from bcss_jax.models.weights.pretrained import load_torch_state, to_torch_state
from bcss_jax.models.weights.torch_layout import SAME, TorchEntries, entries_of

DECODER = DecoderForm()
MAX_ENLARGE = 8


class SamSegmenter(AdaptedNetwork):
    """SAM's encoder and mask decoder, with as many mask tokens as classes and no prompts.

    Attributes:
      encoder: the transformer of SAM's image encoder; its neck belongs to what is trained beside a frozen encoder.
      adapters: low-rank products beside the matrices of the encoder, which are trained in its place; None: there are
        none.
    """

    image_statistics = IMAGENET

    def __init__(
        self,
        num_classes: int,
        *,
        encoder: str = "sam_vit_b",
        enlarge: int = 1,
        lora_rank: int = 0,
        lora_alpha: float = 16.0,
        lora_on: str = "qkv,proj",
        dtype: Dtype = jnp.float32,
        seed: int = 0,
    ):
        """Builds the network with random weights.

        Args:
          num_classes: channels of the logits.
          encoder: a published SAM (`sam.presets.PRESETS`), or a plain vision transformer
            (`encoders.vision_transformer.presets.PRESETS`), of which SAM's form is made.
          enlarge: factor by which images are enlarged for the encoder; the masks have a quarter of that resolution.
          lora_rank: rank of the products of `Adapters`, which are trained in place of the encoder; 0: there are none.
          lora_alpha: see there.
          lora_on: see there.
          dtype: type of the computation. Weights and logits are float32.
          seed: of the initial weights.

        Raises:
          ConfigError: an argument is invalid.
        """
        check_counts("sam", num_classes=num_classes)
        check_counts("sam", most=MAX_ENLARGE, enlarge=enlarge)
        self.form, self.encoder_name = form_of_encoder(encoder), encoder
        decoder = dataclasses.replace(DECODER, masks=num_classes)
        common: dict[str, Any] = dict(dtype=dtype, rngs=nnx.Rngs(seed))
        self.enlarge, self.num_classes, self.dtype = enlarge, num_classes, dtype
        if isinstance(self.form, HieraForm):
            self.encoder = Hiera(self.form, **common)
            self.neck = Pyramid(self.encoder.channels, decoder.channels, **common)
            self.no_memory = nnx.Param(jnp.zeros((1, 1, decoder.channels)))
        else:
            self.encoder = Trunk(self.form, **common)
            self.neck = Neck(self.form, decoder.channels, **common)
            self.no_memory = None
        version = 1 if self.no_memory is None else 2
        self.decoder = MaskDecoder(decoder, version=version, scored=False, **common)
        self.places = Places(decoder.channels, rngs=common["rngs"])
        self.no_mask = initializers.normal(common["rngs"], (1, decoder.channels), 1)
        lora: dict[str, Any] = dict(rank=lora_rank, alpha=lora_alpha, on=lora_on)
        self.adapters = Adapters(self.encoder.matrices(), **lora, **common) if lora_rank else None

    def __call__(self, images: jax.Array, encoded: list[jax.Array] | None = None) -> jax.Array:
        """Returns the logits of a batch.

        Args:
          images: (N, H, W, 3). If H or W is no multiple of the patch, the last row or column is repeated up to the next
            one, and the logits are cropped.
          encoded: the result of `encode` for the same images, if it is known.

        Returns:
          float32 (N, H, W, num_classes).
        """
        height, width = images.shape[1:3]
        maps = self.neck(self.encode(images) if encoded is None else [x.astype(self.dtype) for x in encoded])
        features = self.decoder.features(maps, self.no_memory)
        embedding = features.embedding
        tokens = jnp.zeros((images.shape[0], 0, embedding.shape[-1]))
        dense = jnp.broadcast_to(self.no_mask[...], (1, *embedding.shape[1:]))
        masks, _ = self.decoder.masks(features, self.places.of_map(*embedding.shape[1:3]), tokens, None, dense)
        size = (images.shape[0], self.num_classes, *self._padded(height, width))
        masks = jax.image.resize(masks, size, "linear", antialias=False)
        return masks[..., :height, :width].transpose(0, 2, 3, 1)

    def encode(self, images: jax.Array) -> list[jax.Array]:
        """Returns what the neck takes from the encoder: maps (N, h, w, C). The argument is that of `__call__`."""
        height, width = images.shape[1:3]
        rows, columns = self._padded(height, width)
        images = images.astype(self.dtype)
        if (rows, columns) != (height, width):
            images = jnp.pad(images, ((0, 0), (0, rows - height), (0, columns - width), (0, 0)), mode="edge")
        if self.enlarge > 1:
            size = (images.shape[0], self.enlarge * rows, self.enlarge * columns, 3)
            images = jax.image.resize(images, size, "linear", antialias=False)
        return self.encoder(images, self.adapters)

    def _padded(self, height: int, width: int) -> tuple[int, int]:
        """Returns the size to which images are filled up: a multiple of the patch after they are enlarged."""
        multiple = self.encoder.multiple // math.gcd(self.encoder.multiple, self.enlarge)
        return height + -height % multiple, width + -width % multiple

    def load_start(self, state: Mapping[str, np.ndarray]) -> Start:
        """Loads what a training can start from: the weights of SAM, of its encoder, or of a network of this kind.

        Args:
          state: name -> array in PyTorch's layout, as in a file.

        Returns:
          What was loaded, as `starting.start_of` returns it.

        Raises:
          DataError: the weights are not those of a network with this encoder.
        """
        start = start_of(state, self.form, self.encoder_name, prompts=False)
        names = set(self.torch_entries())
        if start.part == "encoder":
            kept = names - start.arrays.keys()
        else:  # the weights of SAM have none for classes
            kept = set() if any(map(of_classes, start.arrays)) else set(filter(of_classes, names))
        own = to_torch_state(self) if kept else {}
        load_torch_state(self, {name: own[name] for name in kept} | start.arrays)
        return start

    def torch_entries(self) -> TorchEntries:
        """Returns the entries under the names of SAM, with as many mask tokens as classes; none of the adapters."""
        prefix = "" if self.no_memory is None else "sam_"
        encoder = {"image_encoder.trunk": self.encoder} if prefix else {"image_encoder": self.encoder}
        entries = entries_of(encoder) | entries_of({"image_encoder": self.neck})
        entries |= entries_of({f"{prefix}mask_decoder": self.decoder, f"{prefix}prompt_encoder.pe_layer": self.places})
        entries[f"{prefix}prompt_encoder.no_mask_embed.weight"] = (self.no_mask, SAME)
        if self.no_memory is not None:
            entries["no_mem_embed"] = (self.no_memory, SAME)
        return entries
