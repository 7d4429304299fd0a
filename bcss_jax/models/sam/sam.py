"""SAM: an image is encoded once, and prompts on it are decoded to masks.

Source: Kirillov et al. 2023 (arXiv:2304.02643), github.com/facebookresearch/segment-anything.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from flax.typing import Dtype

from bcss_jax.errors import ConfigError
from bcss_jax.models.arguments import check_counts
from bcss_jax.models.sam.architecture import DecoderForm, ViTForm
from bcss_jax.models.sam.frames import Frame, LongestSide
from bcss_jax.models.sam.image_encoder import ImageEncoder
from bcss_jax.models.sam.mask_decoder import Features, MaskDecoder, Predictions
from bcss_jax.models.sam.prompt_encoder import (
    BACKGROUND,
    BOTTOM_RIGHT,
    FOREGROUND,
    NO_TOKEN,
    NOT_A_POINT,
    TOP_LEFT,
    PromptEncoder,
    Tokens,
)
from bcss_jax.models.weights.torch_layout import TorchEntries, entries_of


class Sam(nnx.Module):
    """SAM, its weights random until some are loaded.

    Attributes:
      image_size: height and width of the network's input, pixels.
      point_labels: labels that points may have.
    """

    point_labels = (NOT_A_POINT, BACKGROUND, FOREGROUND)

    def __init__(
        self,
        form: ViTForm,
        decoder: DecoderForm = DecoderForm(),  # noqa: B008  # frozen
        *,
        image_size: int = 0,
        dtype: Dtype = jnp.float32,
        seed: int = 0,
    ):
        """Builds the network.

        Args:
          form: of the image encoder.
          decoder: form of prompt encoder and mask decoder.
          image_size: if another than that of the table of positions, which is resized then.
          dtype: type of the computation. Weights, masks and scores are float32.
          seed: of the initial weights.

        Raises:
          ConfigError: no network has such a form, or the size is not a multiple of the patch.
        """
        form.check()
        self.image_size = check_image_size("SAM", image_size or form.table * form.patch, form.patch)
        rngs = nnx.Rngs(seed)
        self.image_encoder = ImageEncoder(form, decoder.channels, dtype=dtype, rngs=rngs)
        self.prompt_encoder = PromptEncoder(decoder, dtype=dtype, rngs=rngs)
        self.mask_decoder = MaskDecoder(decoder, version=1, dtype=dtype, rngs=rngs)

    @property
    def embedding_size(self) -> int:
        """Rows (and columns) of the embedding; mask prompts and masks have four times as many."""
        return self.image_size // self.image_encoder.form.stride

    def frame(self, height: int, width: int) -> Frame:
        """Returns where the pixels of an image of this size stand in the network's input."""
        return LongestSide(self.image_size, height, width)

    def encode(self, images: jax.Array) -> Features:
        """Returns what the decoder needs of images.

        Args:
          images: normalized and padded, float (N, image_size, image_size, 3).
        """
        return Features(self.image_encoder(images))

    def tokens(self, points: jax.Array | None, labels: jax.Array | None, boxes: jax.Array | None) -> Tokens:
        """Returns the tokens of P prompts: points, then a token that is no point unless there are boxes, then boxes.

        Args:
          points: (P, N, 2), x and y in pixels of the network's input; None: there are none.
          labels: (P, N), 1: inside of what is meant, 0: outside.
          boxes: (P, 4), x and y of the first and the last corner; None: there are none.
        """
        parts = point_tokens(points, labels)
        if boxes is not None:
            parts.append(box_tokens(boxes))
        elif parts:
            parts.append(padding_token(len(parts[0].labels)))
        return joined(parts)

    def decode(self, features: Features, tokens: Tokens, masks: jax.Array | None = None) -> Predictions:
        """Returns all masks of P prompts.

        Args:
          features: of `encode`, for N images; P is a multiple of N, and prompts of one image come together.
          tokens: of `tokens`; P is 1 and N is 0 if there is only a mask.
          masks: logits (P, 4 * embedding_size, 4 * embedding_size), such as those of an earlier prediction; None:
            there are none.
        """
        return decoded(self.prompt_encoder, self.mask_decoder, features, tokens, masks, self.image_size)

    def select(self, predictions: Predictions, multimask: bool) -> Predictions:
        """Returns the masks for ambiguous prompts, or the single one for clear prompts."""
        chosen = slice(1, None) if multimask else slice(1)
        return predictions._replace(masks=predictions.masks[:, chosen], scores=predictions.scores[:, chosen])

    def torch_entries(self) -> TorchEntries:
        """Returns the entries under the names of the reference's `Sam`."""
        names = ("image_encoder", "prompt_encoder", "mask_decoder")
        return entries_of({name: getattr(self, name) for name in names})


def check_image_size(network: str, size: int, multiple: int) -> int:
    """Returns the size of a network's input; raises ConfigError if it is not a multiple of so many pixels."""
    check_counts(network, image_size=size)
    if size % multiple:
        raise ConfigError(f"{network}: image_size must be a multiple of {multiple}, not {size}")
    return size


def joined(parts: list[Tokens]) -> Tokens:
    """Returns the tokens of the parts after each other; of no part, one prompt of no tokens."""
    if not parts:
        return Tokens(jnp.zeros((1, 0, 2)), jnp.zeros((1, 0), jnp.int32))
    points = jnp.concatenate([jnp.asarray(part.points, jnp.float32) for part in parts], axis=1)
    return Tokens(points, jnp.concatenate([jnp.asarray(part.labels, jnp.int32) for part in parts], axis=1))


def point_tokens(points: jax.Array | None, labels: jax.Array | None) -> list[Tokens]:
    """Returns the tokens of points (P, N, 2) with their labels (P, N), or nothing if there are none."""
    return [] if points is None or labels is None else [Tokens(points, labels)]


def box_tokens(boxes: jax.Array) -> Tokens:
    """Returns the corners of boxes (P, 4)."""
    labels = jnp.array([TOP_LEFT, BOTTOM_RIGHT], jnp.int32)
    return Tokens(jnp.asarray(boxes).reshape(-1, 2, 2), jnp.broadcast_to(labels, (len(boxes), 2)))


def padding_token(prompts: int) -> Tokens:
    """Returns the token that is no point, for so many prompts."""
    return Tokens(jnp.zeros((prompts, 1, 2)), jnp.full((prompts, 1), NOT_A_POINT, jnp.int32))


def decoded(
    prompt_encoder: PromptEncoder,
    mask_decoder: MaskDecoder,
    features: Features,
    tokens: Tokens,
    masks: jax.Array | None,
    image_size: int,
) -> Predictions:
    """Returns what `Sam.decode` does."""
    height, width = features.embedding.shape[1:3]
    prompts = tokens.labels.shape[0] if masks is None else max(tokens.labels.shape[0], len(masks))
    sparse = prompt_encoder.sparse(tokens, (image_size, image_size))
    sparse = jnp.broadcast_to(sparse, (prompts, *sparse.shape[1:]))
    seen = jnp.broadcast_to(tokens.labels != NO_TOKEN, sparse.shape[:2])
    dense = prompt_encoder.dense(masks, height, width)
    return mask_decoder(features, prompt_encoder.positions(height, width), sparse, seen, dense)
