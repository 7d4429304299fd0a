"""Computes all scores of one model on one set of images, as JSON, from its results on each image."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from bcss_jax import metrics
from bcss_jax.errors import DataError
from bcss_jax.evaluation.per_image_csv import PerImageScores, per_image_scores
from bcss_jax.evaluation.statistics import bootstrap
from bcss_jax.evaluation.statistics.calibration import ConfidenceCounts, reliability
from bcss_jax.labels import LabelScheme


@dataclasses.dataclass(frozen=True)
class ImageResults:
    """Results of a model on N images, from which `scores` computes everything.

    Attributes:
      images: N dicts with `key`, `patient` and `institute`, in the order of evaluation.
      confusion: integers [N, C, C], as `metrics.confusion` returns them. Predictions are among the evaluated classes.
      hd95_um: [N, K] micrometers over the K evaluated classes, NaN where there is no score (see `surface_distance`).
      nsd: [N, K], NaN where there is no score.
      confidence: counts [N, B] of `calibration.confidence_counts`.
      scheme: the label scheme.
    """

    images: Sequence[dict]
    confusion: np.ndarray
    hd95_um: np.ndarray
    nsd: np.ndarray
    confidence: ConfidenceCounts
    scheme: LabelScheme

    def per_image(self) -> PerImageScores:
        """Returns the scores of each image.

        Raises:
          DataError: There are no images, or an image occurs twice.
          ValueError: The shapes do not fit.
        """
        return per_image_scores(self.images, self.confusion, self.hd95_um, self.nsd, self.scheme)


def scores(results: ImageResults, *, batch_size: int, tolerance_um: float, seed: int = 0) -> dict:
    """Returns the scores of a set of images.

    Args:
      results: results of each image.
      batch_size: images per batch, for the `_batch` scores.
      tolerance_um: tolerance that `nsd` was computed with, micrometers.
      seed: seed of the bootstrap.

    Returns:
      JSON, with None where there is no score. CLASSES stands for a dict with the names of the evaluated classes and
      "macro", their mean:

      * `number`: number of images, patients, institutes, and pixels with ground truth.
      * `scores`: `metrics.scores`; `metrics.report_scores` as well, if the task is that of the report's own code.
      * `precision`, `recall`: CLASSES, from the pixels of all images.
      * `confusion`: `{"truth": names of the rows, "prediction": names of the columns, "pixels": rows}`.
      * `by_patient`, `by_institute`: name -> `{"images", "dice_global": CLASSES, "iou_global": CLASSES}`.
      * `surface`: `{"tolerance_um", "hd95_um": CLASSES, "nsd": CLASSES, "images": class -> numbers}`. Means over the
        images that have a score. A class that was missed or falsely predicted counts with the diagonal of the image and
        0. `images`, as in `metrics.scores`, says how often that happened.
      * `calibration`: `calibration.reliability`.
      * `intervals`: `{"level", "over": "patients" or "images", "n", "resamples", "seed", NAME: {class: [low, high]}}`,
        where NAME is dice_global, iou_global, dice_image, iou_image, hd95_um and nsd.

    Raises:
      DataError: There are no images, an image occurs twice, or no pixel has ground truth.
      NumericalError: A confidence is not finite.
      ValueError: The shapes do not fit, or pixels have classes that are not evaluated.
    """
    scheme = results.scheme
    rows = results.per_image()
    confusion = np.asarray(results.confusion, np.int64)
    total = confusion.sum(0)
    evaluated = total[np.ix_(scheme.evaluated, scheme.evaluated)]
    if not total.any():
        raise DataError(
            f"evaluation: expected pixels with ground truth under the label scheme {scheme.name}, found none in "
            f"{len(results.images)} images; check the masks and the label scheme"
        )
    if evaluated.sum() != total.sum():
        raise ValueError(f"{total.sum() - evaluated.sum()} pixels have classes that {scheme.name} does not evaluate")
    named = metrics.scores(confusion, batch_size, scheme.class_names, scheme.evaluated)
    of_report = scheme.report_classes
    reported = metrics.report_scores(confusion, scheme.class_names, of_report) if of_report else {}
    return {
        "number": {
            "images": len(results.images),
            "patients": len(set(rows.patient)),
            "institutes": len(set(rows.institute)),
            "pixels": int(total.sum()),
        },
        "scores": named | reported,
        "precision": _by_class(scheme, _with_macro(metrics.precision(total, scheme.evaluated))),
        "recall": _by_class(scheme, _with_macro(metrics.recall(total, scheme.evaluated))),
        "confusion": {
            "truth": list(scheme.evaluated_names),
            "prediction": list(scheme.evaluated_names),
            "pixels": evaluated.tolist(),
        },
        "by_patient": _by_group(rows.patient, confusion, scheme),
        "by_institute": _by_group(rows.institute, confusion, scheme),
        "surface": {
            "tolerance_um": tolerance_um,
            "hd95_um": _by_class(scheme, _with_macro(metrics.mean_of_known(rows.hd95_um, axis=0))),
            "nsd": _by_class(scheme, _with_macro(metrics.mean_of_known(rows.nsd, axis=0))),
            "images": named["images"],
        },
        "calibration": reliability(results.confidence),
        "intervals": _intervals(rows, confusion, scheme, seed),
    }


def global_dice(totals: np.ndarray, scheme: LabelScheme) -> np.ndarray:
    """Returns `dice_global` as a statistic for `bootstrap`: totals [R, C, C] -> Dice per class and macro [R, K + 1]."""
    return _with_macro(metrics.dice(totals, scheme.evaluated))


def _intervals(rows, confusion, scheme, seed):
    """Returns the intervals of the summed counts and of the means over images. Both use the same draws."""

    def of_counts(totals):
        return np.stack([global_dice(totals, scheme), _with_macro(metrics.iou(totals, scheme.evaluated))], axis=1)

    values = np.stack([rows.dice, rows.iou, rows.hd95_um, rows.nsd], axis=1)
    counted = bootstrap.interval(confusion, rows.patient, of_counts, seed)
    averaged = bootstrap.interval(
        bootstrap.mean_sums(values),
        rows.patient,
        lambda totals: _with_macro(bootstrap.mean_of_sums(totals)),
        seed,
    )
    result = {
        "level": bootstrap.LEVEL,
        "over": counted.over,
        "n": counted.n,
        "resamples": bootstrap.RESAMPLES,
        "seed": seed,
    }
    for found, measures in (
        (counted, ("dice_global", "iou_global")),
        (averaged, ("dice_image", "iou_image", "hd95_um", "nsd")),
    ):
        for i, measure in enumerate(measures):
            lows, highs = np.asarray(found.low)[i], np.asarray(found.high)[i]
            ends = [[_number(low), _number(high)] for low, high in zip(lows, highs, strict=True)]
            result[measure] = dict(zip([*scheme.evaluated_names, "macro"], ends, strict=True))
    return result


def _by_group(groups, confusion, scheme):
    """Returns the scores of the images of each patient or institute, sorted by name."""
    result = {}
    for group in sorted(set(groups)):
        members = confusion[[each == group for each in groups]]
        named = metrics.scores(members, len(members), scheme.class_names, scheme.evaluated)
        result[group] = {"images": len(members), **{name: named[name] for name in ("dice_global", "iou_global")}}
    return result


def _with_macro(values):
    """Appends the mean of the known values to values per class [..., K]."""
    return np.concatenate([values, metrics.mean_of_known(values, axis=-1)[..., None]], axis=-1)


def _by_class(scheme, values):
    return dict(zip([*scheme.evaluated_names, "macro"], map(_number, values), strict=True))


def _number(value):
    """Returns the value for JSON, which has no NaN: None means that there is no score."""
    return None if math.isnan(value) else float(value)
