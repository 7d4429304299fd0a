"""The network behind the prompts: what it keeps of an image, and what it answers to prompts on it."""

from collections.abc import Mapping
from typing import Any, Protocol

import jax.numpy as jnp
import numpy as np

from bcss_jax.models.sam.mask_decoder import Features
from bcss_jax.models.sam.weights.loading import LoadedSam
from bcss_jax.prompting import Prediction, Predictor
from bcss_jax.slides.prompts.object_prompt import INSIDE, ObjectPrompt, arguments_in_view
from bcss_jax.slides.prompts.view import View

Embedding = Mapping[str, np.ndarray]  # what a network has computed of an image, by name


class Segmenter(Protocol):
    """A network with weights.

    Attributes:
      side: pixels of the image that it takes.
      identity: of its weights, a text that may be part of a path.
    """

    side: int
    identity: str

    def encode(self, image: np.ndarray) -> Embedding:
        """Returns what is kept of an image, RGB uint8 (H, W, 3)."""
        ...

    def predict(
        self, embedding: Embedding, view: View, prompt: ObjectPrompt, mask: np.ndarray | None, several: bool
    ) -> Prediction:
        """Returns logits of a prompt, float32 (M, H, W) of the view, in the place of masks, with scores and `low_res`.

        Args:
          embedding: of the view.
          view: of the slide.
          prompt: on the slide.
          mask: logits of a former prediction in the same view, to be corrected; None: there is none.
          several: three masks instead of one.
        """
        ...

    def prepare(self, embedding: Embedding, view: View) -> None:
        """Compiles what all kinds of prompts need, so that the first click need not wait for it."""
        ...


class SamSegmenter:
    """SAM or SAM 2.1; see `Segmenter`. One thread may encode while another predicts."""

    def __init__(self, loaded: LoadedSam):
        """Takes a network with its weights."""
        self.side, self.identity = loaded.model.image_size, loaded.sha256
        self._encoding, self._predicting = Predictor(loaded.model), Predictor(loaded.model)

    def encode(self, image: np.ndarray) -> Embedding:
        """See `Segmenter`."""
        self._encoding.set_image(image)
        features = self._encoding.features
        finer = {f"finer{number}": np.asarray(each) for number, each in enumerate(features.finer)}
        return {"embedding": np.asarray(features.embedding), **finer}

    def predict(
        self, embedding: Embedding, view: View, prompt: ObjectPrompt, mask: np.ndarray | None, several: bool
    ) -> Prediction:
        """See `Segmenter`."""
        finer = tuple(jnp.asarray(embedding[f"finer{number}"]) for number in range(len(embedding) - 1))
        features = Features(jnp.asarray(embedding["embedding"]), finer)
        self._predicting.set_features(features, view.height, view.width)
        arguments: dict[str, Any] = arguments_in_view(prompt, view, self._predicting.model)
        if mask is not None:
            arguments["mask"] = mask
        return self._predicting.predict(**arguments, multimask=several, logits=True)

    def prepare(self, embedding: Embedding, view: View) -> None:
        """See `Segmenter`."""
        x0, y0, x1, y1 = view.box
        points, labels = np.array([[(x0 + x1) / 2, (y0 + y1) / 2]]), np.array([INSIDE])
        for box in (None, view.box):
            found = self.predict(embedding, view, ObjectPrompt(points, labels, box), None, True)
            self.predict(embedding, view, ObjectPrompt(points, labels, box), found.low_res[0], True)
