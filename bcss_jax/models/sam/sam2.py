"""The image path of SAM 2.1: SAM with a faster encoder and finer maps in the decoder. Video has no part here.

Source: Ravi et al. 2024 (arXiv:2408.00714), github.com/facebookresearch/sam2.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from flax.typing import Dtype

from bcss_jax.models.sam.architecture import DecoderForm, HieraForm
from bcss_jax.models.sam.frames import Frame, Stretched
from bcss_jax.models.sam.hiera import MULTIPLE, HieraEncoder
from bcss_jax.models.sam.mask_decoder import Features, MaskDecoder, Predictions
from bcss_jax.models.sam.prompt_encoder import (
    BACKGROUND,
    BOTTOM_RIGHT,
    FOREGROUND,
    NOT_A_POINT,
    TOP_LEFT,
    PromptEncoder,
    Tokens,
)
from bcss_jax.models.sam.sam import box_tokens, check_image_size, decoded, joined, padding_token, point_tokens
from bcss_jax.models.weights.torch_layout import SAME, TorchEntries, entries_of

# A single mask is taken if it hardly changes between these thresholds.
STABILITY_OFFSET = 0.05
STABILITY = 0.98


class Sam2(nnx.Module):
    """SAM 2.1 for images, its weights random until some are loaded.

    Attributes:
      image_size: height and width of the network's input, pixels.
      point_labels: labels that points may have; corners of boxes may be given as points.
    """

    point_labels = (NOT_A_POINT, BACKGROUND, FOREGROUND, TOP_LEFT, BOTTOM_RIGHT)

    def __init__(
        self,
        form: HieraForm,
        decoder: DecoderForm = DecoderForm(),  # noqa: B008  # frozen
        *,
        image_size: int = 0,
        dtype: Dtype = jnp.float32,
        seed: int = 0,
    ):
        """Builds the network; the arguments are those of `Sam`. An `image_size` of 0 is 1024.

        Raises:
          ConfigError: no network has such a form, or the size is not a multiple of 32.
        """
        self.image_size = check_image_size("SAM 2.1", image_size or 1024, MULTIPLE)
        rngs = nnx.Rngs(seed)
        self.image_encoder = HieraEncoder(form, decoder.channels, dtype=dtype, rngs=rngs)
        self.prompt_encoder = PromptEncoder(decoder, dtype=dtype, rngs=rngs)
        self.mask_decoder = MaskDecoder(decoder, version=2, dtype=dtype, rngs=rngs)
        self.no_memory = nnx.Param(jnp.zeros((1, 1, decoder.channels)))

    @property
    def embedding_size(self) -> int:
        """Rows (and columns) of the embedding; mask prompts and masks have four times as many."""
        return self.image_size // self.image_encoder.form.stride

    def frame(self, height: int, width: int) -> Frame:
        """Returns where the pixels of an image of this size stand in the network's input."""
        return Stretched(self.image_size, height, width)

    def encode(self, images: jax.Array) -> Features:
        """Returns what the decoder needs of images.

        Args:
          images: normalized, float (N, image_size, image_size, 3).
        """
        return self.mask_decoder.features(self.image_encoder(images), self.no_memory)

    def tokens(self, points: jax.Array | None, labels: jax.Array | None, boxes: jax.Array | None) -> Tokens:
        """Returns the tokens of P prompts: boxes, then points, then always a token that is no point.

        The arguments are those of `Sam.tokens`.
        """
        parts = [] if boxes is None else [box_tokens(boxes)]
        parts += point_tokens(points, labels)
        return joined([*parts, padding_token(len(parts[0].labels))] if parts else [])

    def decode(self, features: Features, tokens: Tokens, masks: jax.Array | None = None) -> Predictions:
        """Returns all masks of P prompts; the arguments are those of `Sam.decode`."""
        return decoded(self.prompt_encoder, self.mask_decoder, features, tokens, masks, self.image_size)

    def select(self, predictions: Predictions, multimask: bool) -> Predictions:
        """Returns the masks for ambiguous prompts, or a single one.

        That is the one for clear prompts if it is stable, and else that of the others with the best score.
        """
        masks, scores = predictions.masks, predictions.scores
        if multimask:
            return predictions._replace(masks=masks[:, 1:], scores=scores[:, 1:])
        inner, outer = ((masks[:, 0] > offset).sum((1, 2)) for offset in (STABILITY_OFFSET, -STABILITY_OFFSET))
        stable = jnp.where(outer > 0, inner / outer, 1) >= STABILITY
        best = jnp.where(stable, 0, 1 + scores[:, 1:].argmax(1))
        masks = jnp.take_along_axis(masks, best[:, None, None, None], axis=1)
        return predictions._replace(masks=masks, scores=jnp.take_along_axis(scores, best[:, None], axis=1))

    def torch_entries(self) -> TorchEntries:
        """Returns the entries under the names of the reference's `SAM2Base`, without those of the video."""
        modules = {
            "image_encoder": self.image_encoder,
            "sam_prompt_encoder": self.prompt_encoder,
            "sam_mask_decoder": self.mask_decoder,
        }
        return entries_of(modules) | {"no_mem_embed": (self.no_memory, SAME)}
