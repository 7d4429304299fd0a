"""Counts per image, on the devices, from which all scores of an evaluation are computed."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from bcss_jax import metrics
from bcss_jax.evaluation.statistics.calibration import confidence_counts
from bcss_jax.inference.predict import Member, mean_log_probabilities
from bcss_jax.labels import LabelScheme
from bcss_jax.training import sharding


@functools.partial(jax.jit, static_argnums=0)
def counts(scheme: LabelScheme, log_probabilities: jax.Array, labels: jax.Array, positions: jax.Array) -> dict:
    """What is kept of each image.

    Args:
      scheme: the label scheme.
      log_probabilities: [N, H, W, C].
      labels: uint8 [N, H, W], the truth.
      positions: int32 [N, P], pixels by their place in the flattened image, whose logits are wanted.

    Returns:
      `predictions` uint8 [N, H, W]; `confusion` int32 [N, C, C]; `pixels`, `correct`, `confidence` [N, B]
      (`calibration.ConfidenceCounts`); `logits` float32 [N, P, C], but for a constant per pixel, and `labels` [N, P]
      of the pixels at `positions`.
    """
    predictions = metrics.predict(log_probabilities, scheme.evaluated)
    confidence = confidence_counts(jnp.exp(log_probabilities), labels, scheme.evaluated, scheme.ignore_index)
    flat = log_probabilities.reshape(len(labels), -1, scheme.num_classes)
    return {
        "predictions": predictions.astype(jnp.uint8),
        "confusion": metrics.confusion(predictions, labels, scheme.num_classes, scheme.ignore_index),
        **confidence._asdict(),
        "logits": jnp.take_along_axis(flat, positions[..., None], axis=1),
        "labels": jnp.take_along_axis(labels.reshape(len(labels), -1), positions, axis=1),
    }


class Predictor:
    """One model, or several as an ensemble, of one label scheme."""

    def __init__(self, members: Sequence[Member], scheme: LabelScheme, mesh: Mesh):
        """Takes models whose arrays lie on all devices of the mesh."""
        self.scheme = scheme
        self._members, self._mesh = list(members), mesh

    def __call__(self, images: np.ndarray, labels: np.ndarray, positions: np.ndarray) -> dict[str, jax.Array]:
        """Starts to compute `counts` of a batch, and returns at once."""
        placed = sharding.place_batch({"images": images, "labels": labels, "positions": positions}, self._mesh)
        each = [member(placed["images"]) for member in self._members]
        joined = each[0] if len(each) == 1 else mean_log_probabilities(each)
        return counts(self.scheme, joined, placed["labels"], placed["positions"])
