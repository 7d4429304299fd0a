"""Whether a model's confidence is to be believed: calibration error, reliability curve, temperature.

The confidence of a pixel is the probability of its predicted class given that it is one of the evaluated classes, as
`metrics.predict` chooses among these. Pixels are counted in equal bins of confidence, (0, 1/B], (1/B, 2/B], ...; in each
the share of correct pixels should equal the mean confidence. Counts are made on the device per image
(`confidence_counts`) and added up on the host in int64 and float64.

Source: Guo et al. 2017 (arXiv:1706.04599), 15 bins as there.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy import optimize, special

from bcss_jax import metrics
from bcss_jax.errors import DataError, NumericalError

BINS = 15
HIGHEST_TEMPERATURE = 100.0  # and 1/100 the lowest: for logits that carry no information, or separate all pixels


class ConfidenceCounts(NamedTuple):
    """Pixels by confidence: arrays of one shape, [B] or with images in front.

    Attributes:
      pixels: in each bin.
      correct: those of them whose prediction is right.
      confidence: the sum of their confidences.
    """

    pixels: jax.Array | np.ndarray
    correct: jax.Array | np.ndarray
    confidence: jax.Array | np.ndarray


def confidence_counts(
    probabilities: jax.Array, labels: jax.Array, classes: Sequence[int], ignore_index: int | None
) -> ConfidenceCounts:
    """Counts the pixels of each image by the confidence of the predicted class; can be jitted.

    Args:
      probabilities: [N, H, W, C] floats, 0 or more.
      labels: [N, H, W] integers.
      classes: the evaluated labels, among which the prediction is chosen.
      ignore_index: label without truth; None: every pixel counts.

    Returns:
      int32, int32 and float32 [N, BINS]. float32 holds the sum over one image to about 1e-6 of its value. Where a
      probability is NaN the first bin's sum is NaN, so that it cannot pass unnoticed.
    """
    classes = np.asarray(classes, np.int32)
    evaluated = probabilities[..., classes].astype(jnp.float32)
    total = evaluated.sum(-1)
    # All mass on classes that are not evaluated: nothing is known of the others.
    confidence = jnp.where(total == 0, 1 / len(classes), evaluated.max(-1) / jnp.where(total == 0, 1, total))
    correct = metrics.predict(probabilities, classes) == labels
    known = jnp.ones(labels.shape, bool) if ignore_index is None else labels != ignore_index
    number = jnp.clip(jnp.ceil(jnp.nan_to_num(confidence) * BINS) - 1, 0, BINS - 1).astype(jnp.int32)
    inside = jnp.where(known, number, -1)[..., None] == jnp.arange(BINS)  # [N, H, W, BINS]
    return ConfidenceCounts(
        inside.sum((1, 2), dtype=jnp.int32),
        (inside & correct[..., None]).sum((1, 2), dtype=jnp.int32),
        # Row by row: float32 adds few numbers well and many badly.
        jnp.where(inside, confidence[..., None], 0).sum(2).sum(1),
    )


def reliability(counts: ConfidenceCounts) -> dict:
    """Expected calibration error and reliability curve.

    Args:
      counts: of one image or, with images in front, of many.

    Returns:
      JSON: `{"ece": value, "curve": {"confidence": [...], "accuracy": [...], "pixels": [...]}}`, a value per bin, None
      in bins without a pixel. The error is the mean over pixels of the distance between both in the pixel's bin.

    Raises:
      DataError: no pixel at all.
      NumericalError: a confidence is not a finite number.
    """
    pixels, correct = (np.asarray(each, np.int64).reshape(-1, BINS).sum(0) for each in (counts.pixels, counts.correct))
    confidence = np.asarray(counts.confidence, np.float64).reshape(-1, BINS).sum(0)
    if not pixels.any():
        raise DataError("calibration: expected pixels with truth, found none; check the masks and the label scheme")
    if not np.isfinite(confidence).all():
        raise NumericalError("calibration: the model's probabilities are not finite; evaluate another checkpoint")
    return {
        "ece": float(np.abs(correct - confidence).sum() / pixels.sum()),
        "curve": {
            "confidence": [float(s / n) if n else None for s, n in zip(confidence, pixels, strict=True)],
            "accuracy": [float(c / n) if n else None for c, n in zip(correct, pixels, strict=True)],
            "pixels": pixels.tolist(),
        },
    }


def fit_temperature(logits: np.ndarray, labels: np.ndarray, classes: Sequence[int]) -> float:
    """The temperature T that makes softmax(logits / T) over the evaluated classes fit the labels best.

    It minimizes the mean negative log-likelihood, which is convex in 1/T: its derivative, the mean over pixels of
    (expected logit - logit of the label), has one zero.

    Args:
      logits: [M, C] finite floats of a sample of pixels, of data that were not trained on.
      labels: [M] integers; pixels of other labels than `classes` carry no truth and are left out.
      classes: the evaluated labels.

    Returns:
      T between 1/HIGHEST_TEMPERATURE and HIGHEST_TEMPERATURE; above 1 the model was too confident.

    Raises:
      DataError: no pixel has an evaluated label.
      NumericalError: a logit is not finite.
    """
    classes, labels = np.asarray(classes), np.asarray(labels)
    known = np.isin(labels, classes)
    if not known.any():
        raise DataError("temperature: expected pixels with truth, found none; check the masks and the label scheme")
    logits = np.asarray(logits)[known][:, classes].astype(np.float64)
    if not np.isfinite(logits).all():
        raise NumericalError("temperature: the model's logits are not finite; evaluate another checkpoint")
    of_label = logits[labels[known][:, None] == classes]

    def slope(log_inverse):
        expected = (special.softmax(np.exp(log_inverse) * logits, axis=1) * logits).sum(1)
        return np.mean(expected - of_label)

    end = np.log(HIGHEST_TEMPERATURE)
    if slope(-end) >= 0:
        return HIGHEST_TEMPERATURE
    if slope(end) <= 0:
        return 1 / HIGHEST_TEMPERATURE
    return float(np.exp(-optimize.brentq(slope, -end, end, xtol=1e-12)))
