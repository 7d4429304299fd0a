"""Everything that the report of one model on one set of images says, as JSON, from counts per image."""

import math
from collections.abc import Sequence

import numpy as np

from bcss_jax import metrics
from bcss_jax.errors import DataError
from bcss_jax.evaluation.per_image_csv import per_image
from bcss_jax.evaluation.statistics import bootstrap
from bcss_jax.evaluation.statistics.calibration import ConfidenceCounts, reliability
from bcss_jax.labels import LabelScheme


def scores(
    images: Sequence[dict],
    confusion: np.ndarray,
    hd95_um: np.ndarray,
    nsd: np.ndarray,
    confidence: ConfidenceCounts,
    scheme: LabelScheme,
    *,
    batch_size: int,
    tolerance_um: float,
    seed: int = 0,
) -> dict:
    """Scores of a set of images.

    Args:
      images: N dicts with `key`, `patient` and `institute`, in the order of evaluation.
      confusion: integers [N, C, C], as `metrics.confusion` gives them, predictions among the evaluated classes.
      hd95_um: [N, K] micrometers over the K evaluated classes, NaN where there is no score (`surface_distance`).
      nsd: [N, K], likewise.
      confidence: counts [N, B] of `calibration.confidence_counts`.
      scheme: the label scheme.
      batch_size: images in a batch, for the `_batch` scores.
      tolerance_um: with which `nsd` was computed, micrometers.
      seed: of the bootstrap.

    Returns:
      JSON, None where there is no score. Where it says CLASSES stand the names of the evaluated classes and "macro",
      their mean:

      * `number`: of images, patients, institutes, and pixels with truth.
      * `scores`: `metrics.scores`.
      * `precision`, `recall`: CLASSES; from the pixels of all images.
      * `confusion`: `{"truth": names of the rows, "prediction": names of the columns, "pixels": rows}`.
      * `by_patient`, `by_institute`: name -> `{"images", "dice_global": CLASSES, "iou_global": CLASSES}`.
      * `surface`: `{"tolerance_um", "hd95_um": CLASSES, "nsd": CLASSES, "images": class -> numbers}`. Means over the
        images that have a score; a class that was missed, or invented, counts there with the image's diagonal and 0.
        How often that was: `images`, as in `metrics.scores`.
      * `calibration`: `calibration.reliability`.
      * `intervals`: `{"level", "over": "patients" or "images", "n", "resamples", "seed", NAME: {class: [low, high]}}`
        with NAME dice_global, iou_global, dice_image, iou_image, hd95_um, nsd.

    Raises:
      DataError: no images, an image twice, or no pixel with truth.
      NumericalError: a confidence is not a finite number.
      ValueError: shapes that do not fit, or pixels of classes that are not evaluated.
    """
    rows = per_image(images, confusion, hd95_um, nsd, scheme)
    confusion = np.asarray(confusion, np.int64)
    total = confusion.sum(0)
    evaluated = total[np.ix_(scheme.evaluated, scheme.evaluated)]
    if not total.any():
        raise DataError(
            f"evaluation: expected pixels with truth under the scheme {scheme.name}, found none in {len(images)} images; "
            "check the masks and the scheme"
        )
    if evaluated.sum() != total.sum():
        raise ValueError(f"{total.sum() - evaluated.sum()} pixels are of classes that {scheme.name} does not evaluate")
    named = metrics.scores(confusion, batch_size, scheme.class_names, scheme.evaluated)
    return {
        "number": {
            "images": len(images),
            "patients": len(set(rows.patient)),
            "institutes": len(set(rows.institute)),
            "pixels": int(total.sum()),
        },
        "scores": named,
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
        "calibration": reliability(confidence),
        "intervals": _intervals(rows, confusion, scheme, seed),
    }


def global_dice(totals: np.ndarray, scheme: LabelScheme) -> np.ndarray:
    """`dice_global` as a statistic for `bootstrap`: totals [R, C, C] -> per class and macro [R, K + 1]."""
    return _with_macro(metrics.dice(totals, scheme.evaluated))


def _intervals(rows, confusion, scheme, seed):
    """Two bootstraps with the same draws: of the summed counts, and of the means over images."""

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
            ends = [[_number(low), _number(high)] for low, high in zip(found.low[i], found.high[i], strict=True)]
            result[measure] = dict(zip([*scheme.evaluated_names, "macro"], ends, strict=True))
    return result


def _by_group(groups, confusion, scheme):
    """Scores of the images of each patient or institute, sorted by name."""
    result = {}
    for group in sorted(set(groups)):
        members = confusion[[each == group for each in groups]]
        named = metrics.scores(members, len(members), scheme.class_names, scheme.evaluated)
        result[group] = {"images": len(members), **{name: named[name] for name in ("dice_global", "iou_global")}}
    return result


def _with_macro(values):
    """Values per class [..., K] and, last, the mean of those that there are."""
    return np.concatenate([values, metrics.mean_of_known(values, axis=-1)[..., None]], axis=-1)


def _by_class(scheme, values):
    return dict(zip([*scheme.evaluated_names, "macro"], map(_number, values), strict=True))


def _number(value):
    """JSON has no NaN: None says that there is no score."""
    return None if math.isnan(value) else float(value)
