"""SAM as a network that is trained with prompts, in parts that can be frozen or tuned with LoRA."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from flax.typing import Dtype

from bcss_jax.models.arguments import check_counts
from bcss_jax.models.encoders.vision_transformer.adapters import AdaptedNetwork, Adapters
from bcss_jax.models.sam.architecture import DecoderForm, HieraForm
from bcss_jax.models.sam.frames import Frame, LongestSide, Stretched
from bcss_jax.models.sam.mask_decoder import Features, Predictions
from bcss_jax.models.sam.presets import form_of_encoder
from bcss_jax.models.sam.prompt_encoder import BOTTOM_RIGHT, NO_TOKEN, NOT_A_POINT, TOP_LEFT, Tokens
from bcss_jax.models.sam.sam import Sam
from bcss_jax.models.sam.sam2 import Sam2
from bcss_jax.models.sam.weights.starting import Start, of_masks, start_of
from bcss_jax.models.weights.pretrained import load_torch_state, to_torch_state
from bcss_jax.models.weights.torch_layout import SAME, TorchEntries, entries_of

DECODER = DecoderForm()


class PromptableSam(AdaptedNetwork):
    """SAM or SAM 2.1 with its encoder as a part of its own.

    Attributes:
      encoder: the transformer of the image encoder; its neck belongs to what is trained beside a frozen encoder.
      adapters: low-rank products beside the matrices of the encoder, which are trained in its place; None: there are
        none.
      image_size: height and width of the network's input, pixels.
    """

    def __init__(
        self,
        encoder: str,
        *,
        image_size: int,
        lora_rank: int = 0,
        lora_alpha: float = 16.0,
        lora_on: str = "qkv,proj",
        dtype: Dtype = jnp.float32,
        seed: int = 0,
    ):
        """Builds the network with random weights.

        Args:
          encoder: see `presets.form_of_encoder`. The table of positions of a plain vision transformer gets the size of
            the images.
          image_size: height and width of the network's input, pixels.
          lora_rank: rank of the products of `Adapters`, which are trained in place of the encoder; 0: there are none.
          lora_alpha: see there.
          lora_on: see there.
          dtype: type of the computation. Weights, masks and scores are float32.
          seed: of the initial weights.

        Raises:
          ConfigError: an argument is invalid.
        """
        check_counts("sam", image_size=image_size)
        self.form, self.encoder_name = form_of_encoder(encoder, image_size), encoder
        common: dict[str, Any] = dict(image_size=image_size, dtype=dtype, seed=seed)
        form = self.form
        sam = Sam2(form, DECODER, **common) if isinstance(form, HieraForm) else Sam(form, DECODER, **common)
        self.image_size, self.dtype = image_size, dtype
        self.encoder, self.neck = sam.image_encoder.trunk, sam.image_encoder.neck
        self.prompt_encoder, self.decoder = sam.prompt_encoder, sam.mask_decoder
        self.no_memory = sam.no_memory if isinstance(sam, Sam2) else None
        lora: dict[str, Any] = dict(rank=lora_rank, alpha=lora_alpha, on=lora_on)
        rngs = nnx.Rngs(seed + 1)
        self.adapters = Adapters(self.encoder.matrices(), **lora, dtype=dtype, rngs=rngs) if lora_rank else None

    @property
    def mask_size(self) -> int:
        """Rows (and columns) of the masks."""
        return 4 * self.image_size // self.form.stride

    def frame(self, height: int, width: int) -> Frame:
        """Returns where the pixels of an image of this size stand in the network's input."""
        return (LongestSide if self.no_memory is None else Stretched)(self.image_size, height, width)

    def encode(self, images: jax.Array) -> list[jax.Array]:
        """Returns what the neck takes from the encoder: maps (N, h, w, C).

        Args:
          images: normalized, float (N, H, W, 3) of any size; they are resized to the network's input.
        """
        by_row, by_column = (jnp.asarray(m, jnp.float32) for m in self.frame(*images.shape[1:3]).input_matrices())
        x = jnp.einsum("rh,nhwc,sw->nrsc", by_row, images.astype(jnp.float32), by_column, precision="highest")
        return self.encoder(x, self.adapters)

    def features(self, maps: list[jax.Array]) -> Features:
        """Returns what the decoder takes from the result of `encode`."""
        return self.decoder.features(self.neck([x.astype(self.dtype) for x in maps]), self.no_memory)

    def decode(
        self,
        features: Features,
        points: jax.Array,
        labels: jax.Array,
        boxes: jax.Array,
        has_box: jax.Array,
        masks: jax.Array,
        has_masks: jax.Array,
    ) -> Predictions:
        """Returns all masks of P prompts, each of which has points, a box, or both.

        Args:
          features: of N images; P is a multiple of N, and prompts of one image come together.
          points: (P, T, 2), x and y in pixels of the network's input.
          labels: (P, T), 1: inside, 0: outside, `NO_TOKEN`: there is no point.
          boxes: (P, 4), x and y of the first and the last corner.
          has_box: bool (P,), whether there is a box.
          masks: logits (P, mask_size, mask_size) of an earlier prediction.
          has_masks: bool scalar, whether there are any.
        """
        corners = jnp.where(has_box[:, None], jnp.array([TOP_LEFT, BOTTOM_RIGHT]), NO_TOKEN)
        padded = jnp.full(has_box.shape, True) if self.no_memory is not None else ~has_box
        padding = jnp.where(padded, NOT_A_POINT, NO_TOKEN)
        places = jnp.concatenate([points, boxes.reshape(-1, 2, 2), jnp.zeros((len(boxes), 1, 2))], axis=1)
        tokens = Tokens(places, jnp.concatenate([labels, corners, padding[:, None]], axis=1))
        prompts, (rows, columns) = self.prompt_encoder, features.embedding.shape[1:3]
        sparse, seen = prompts.sparse(tokens, (self.image_size, self.image_size)), tokens.labels != NO_TOKEN
        dense = jnp.where(has_masks, prompts.dense(masks, rows, columns), prompts.dense(None, rows, columns))
        return self.decoder(features, prompts.positions(rows, columns), sparse, seen, dense)

    def load_start(self, state: Mapping[str, np.ndarray]) -> Start:
        """Loads what a training can start from: the weights of SAM, of one with classes, or of its encoder.

        Args:
          state: name -> array in PyTorch's layout, as in a file.

        Returns:
          What was loaded, as `starting.start_of` returns it.

        Raises:
          DataError: the weights are not those of a network with this encoder.
        """
        start = start_of(state, self.form, self.encoder_name, prompts=True)
        missing = set() if start.complete else set(self.torch_entries()) - start.arrays.keys()
        kept = missing if start.part == "encoder" else set(filter(of_masks, missing))
        own = to_torch_state(self) if kept else {}
        load_torch_state(self, {name: own[name] for name in kept} | start.arrays)
        return start

    def torch_entries(self) -> TorchEntries:
        """Returns the entries under the names of the reference's `Sam` or `SAM2Base`; none of the adapters."""
        prefix = "" if self.no_memory is None else "sam_"
        encoder = {"image_encoder.trunk": self.encoder} if prefix else {"image_encoder": self.encoder}
        entries = entries_of(encoder) | entries_of({"image_encoder": self.neck})
        entries |= entries_of({f"{prefix}prompt_encoder": self.prompt_encoder, f"{prefix}mask_decoder": self.decoder})
        if self.no_memory is not None:
            entries["no_mem_embed"] = (self.no_memory, SAME)
        return entries
