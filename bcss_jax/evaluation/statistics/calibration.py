"""Measures how far a model's confidence can be trusted: calibration error, reliability curve, temperature.

The confidence of a pixel is the probability of its predicted class, given that the pixel belongs to one of the
evaluated classes, because `metrics.predict` chooses among these. Pixels are counted in equal bins of confidence,
(0, 1/B], (1/B, 2/B], and so on. In each bin the share of correct pixels should equal the mean confidence. The devices
count per image (`confidence_counts`), and the host adds the counts up in int64 and float64.

Source: Guo et al. 2017 (arXiv:1706.04599), with the same 15 bins.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy import optimize, special

from bcss_jax import metrics
from bcss_jax.errors import DataError, NumericalError
from bcss_jax.labels import LabelScheme

BINS = 15
# Bound for logits that carry no information, or that separate all pixels. The lower bound is its inverse.
HIGHEST_TEMPERATURE = 100.0


class ConfidenceCounts(NamedTuple):
    """Pixels by confidence: arrays of the same shape, [B] or [N, B] for N images.

    Attributes:
      pixels: number of pixels in each bin.
      correct: number of those pixels with a correct prediction.
      confidence: sum of the confidences of those pixels.
    """

    pixels: jax.Array | np.ndarray
    correct: jax.Array | np.ndarray
    confidence: jax.Array | np.ndarray


def confidence_counts(
    probabilities: jax.Array, labels: jax.Array, classes: Sequence[int], ignore_index: int | None
) -> ConfidenceCounts:
    """Counts the pixels of each image by the confidence of the predicted class. Can be jitted.

    Args:
      probabilities: [N, H, W, C] floats, 0 or more.
      labels: [N, H, W] integers.
      classes: the evaluated labels. The prediction is one of them.
      ignore_index: label of pixels without ground truth; None: every pixel counts.

    Returns:
      int32, int32 and float32 [N, BINS]. float32 holds the sum over one image to about 1e-6 of its value. Where a
      probability is NaN, the sum of the first bin is NaN, so that it is noticed.
    """
    evaluated_classes = np.asarray(classes, np.int32)
    evaluated = probabilities[..., evaluated_classes].astype(jnp.float32)
    total = evaluated.sum(-1)
    # Where all mass is on classes that are not evaluated, the evaluated ones are equally likely.
    confidence = jnp.where(total == 0, 1 / len(evaluated_classes), evaluated.max(-1) / jnp.where(total == 0, 1, total))
    correct = metrics.predict(probabilities, classes) == labels
    known = jnp.ones(labels.shape, bool) if ignore_index is None else labels != ignore_index
    number = jnp.clip(jnp.ceil(jnp.nan_to_num(confidence) * BINS) - 1, 0, BINS - 1).astype(jnp.int32)
    inside = jnp.where(known, number, -1)[..., None] == jnp.arange(BINS)  # [N, H, W, BINS]
    return ConfidenceCounts(
        inside.sum((1, 2), dtype=jnp.int32),
        (inside & correct[..., None]).sum((1, 2), dtype=jnp.int32),
        # Summed row by row, because float32 is accurate for few numbers only.
        jnp.where(inside, confidence[..., None], 0).sum(2).sum(1),
    )


def reliability(counts: ConfidenceCounts) -> dict:
    """Returns the expected calibration error and the reliability curve.

    Args:
      counts: counts of one image, or of many along the first axis.

    Returns:
      JSON: `{"ece": value, "curve": {"confidence": [...], "accuracy": [...], "pixels": [...]}}`, with one value per
      bin, None in bins without pixels. The error is the mean, over pixels, of the difference between confidence and
      accuracy in the pixel's bin.

    Raises:
      DataError: There are no pixels.
      NumericalError: A confidence is not finite.
    """
    pixels, correct = (np.asarray(each, np.int64).reshape(-1, BINS).sum(0) for each in (counts.pixels, counts.correct))
    confidence = np.asarray(counts.confidence, np.float64).reshape(-1, BINS).sum(0)
    if not pixels.any():
        raise DataError(
            "calibration: expected pixels with ground truth, found none; check the masks and the label scheme"
        )
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
    """Returns the temperature T for which softmax(logits / T) over the evaluated classes fits the labels best.

    It minimizes the mean negative log-likelihood, which is convex in 1/T. Its derivative, the mean over pixels of
    (expected logit - logit of the label), has one zero.

    Args:
      logits: [M, C] finite floats of a sample of pixels, from data that the model was not trained on.
      labels: [M] integers. Pixels whose label is not in `classes` have no ground truth and are left out.
      classes: the evaluated labels.

    Returns:
      T between 1/HIGHEST_TEMPERATURE and HIGHEST_TEMPERATURE. Above 1 the model was overconfident.

    Raises:
      DataError: No pixel has an evaluated label.
      NumericalError: A logit is not finite.
    """
    evaluated, labels = np.asarray(classes), np.asarray(labels)
    known = np.isin(labels, evaluated)
    if not known.any():
        raise DataError(
            "temperature: expected pixels with ground truth, found none; check the masks and the label scheme"
        )
    logits = np.asarray(logits)[known][:, evaluated].astype(np.float64)
    if not np.isfinite(logits).all():
        raise NumericalError("temperature: the model's logits are not finite; evaluate another checkpoint")
    logits_of_labels = logits[labels[known][:, None] == evaluated]

    def slope(log_inverse):
        expected = (special.softmax(np.exp(log_inverse) * logits, axis=1) * logits).sum(1)
        return np.mean(expected - logits_of_labels)

    end = float(np.log(HIGHEST_TEMPERATURE))
    if slope(-end) >= 0:
        return HIGHEST_TEMPERATURE
    if slope(end) <= 0:
        return 1 / HIGHEST_TEMPERATURE
    root: float = optimize.brentq(slope, -end, end, xtol=1e-12)  # pyright: ignore[reportAssignmentType]
    return float(np.exp(-root))


def temperature_summary(
    logits: np.ndarray, labels: np.ndarray, scheme: LabelScheme, *, fitted_on: str, in_sample: bool
) -> dict | None:
    """Fits the temperature to a sample of pixels and returns it with the calibration before and after, as JSON.

    Args:
      logits: [..., C] floats of the sampled pixels.
      labels: [...] integers.
      scheme: the label scheme.
      fitted_on: name of the split that the pixels come from.
      in_sample: whether they come from the evaluated images. Then the error after scaling is too optimistic.

    Returns:
      `{"value", "fitted_on", "in_sample", "pixels", "ece_before", "ece_after", "curve_after"}`, with errors and curve
      (see `reliability`) of the same pixels; None if no pixel has ground truth.

    Raises:
      NumericalError: A logit is not finite.
    """
    logits, labels = logits.reshape(-1, scheme.num_classes), labels.reshape(-1)
    known = np.isin(labels, scheme.evaluated)
    if not known.any():
        return None
    logits, labels = logits[known], labels[known]
    value = fit_temperature(logits, labels, scheme.evaluated)
    before_and_after = []
    for temperature in (1.0, value):
        probabilities = jax.nn.softmax(logits / np.float32(temperature))[None, None]
        counts = confidence_counts(
            probabilities, jnp.asarray(labels)[None, None], scheme.evaluated, scheme.ignore_index
        )
        before_and_after.append(reliability(counts))
    before, after = before_and_after
    return {
        "value": value,
        "fitted_on": fitted_on,
        "in_sample": in_sample,
        "pixels": len(labels),
        "ece_before": before["ece"],
        "ece_after": after["ece"],
        "curve_after": after["curve"],
    }
