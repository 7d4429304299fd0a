"""Counts the pixels of each image on the devices. All scores of an evaluation are computed from these counts."""

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
def count_pixels(
    scheme: LabelScheme, log_probabilities: jax.Array, labels: jax.Array, positions: jax.Array
) -> dict[str, jax.Array]:
    """Returns the predictions and the pixel counts of each image.

    Args:
      scheme: the label scheme.
      log_probabilities: [N, H, W, C].
      labels: uint8 [N, H, W], the ground truth.
      positions: int32 [N, P], positions in the flattened images of the pixels whose logits are returned.

    Returns:
      `predictions` uint8 [N, H, W]; `finite` bool [N], False if `log_probabilities` of the image are not finite, so
      that all else is meaningless; `confusion` int32 [N, C, C]; `pixels`, `correct`, `confidence` [N, B] (see
      `calibration.ConfidenceCounts`); `logits` float32 [N, P, C], up to a constant per pixel, and `labels` [N, P] of
      the pixels at `positions`.
    """
    predictions = metrics.predict(log_probabilities, scheme.evaluated)
    confidence = confidence_counts(jnp.exp(log_probabilities), labels, scheme.evaluated, scheme.ignore_index)
    flat = log_probabilities.reshape(len(labels), -1, scheme.num_classes)
    return {
        "predictions": predictions.astype(jnp.uint8),
        "finite": jnp.isfinite(log_probabilities[..., np.asarray(scheme.evaluated)]).all((1, 2, 3)),
        "confusion": metrics.confusion(predictions, labels, scheme.num_classes, scheme.ignore_index),
        **confidence._asdict(),
        "logits": jnp.take_along_axis(flat, positions[..., None], axis=1),
        "labels": jnp.take_along_axis(labels.reshape(len(labels), -1), positions, axis=1),
    }


class ImageCounter:
    """Counts the pixels of batches for one model, or for an ensemble of models with the same label scheme.

    Attributes:
      scheme: the label scheme.
    """

    def __init__(self, members: Sequence[Member], scheme: LabelScheme, mesh: Mesh):
        """Takes models whose arrays are on all devices of the mesh."""
        self.scheme = scheme
        self._members, self._mesh = list(members), mesh

    def __call__(self, images: np.ndarray, labels: np.ndarray, positions: np.ndarray) -> dict[str, jax.Array]:
        """Starts `count_pixels` on a batch and returns without waiting for the result."""
        placed = sharding.place_batch({"images": images, "labels": labels, "positions": positions}, self._mesh)
        predicted = [member(placed["images"]) for member in self._members]
        joined = predicted[0] if len(predicted) == 1 else mean_log_probabilities(predicted)
        return count_pixels(self.scheme, joined, placed["labels"], placed["positions"])
