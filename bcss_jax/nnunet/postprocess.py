"""nnU-Net's postprocessing: keeps only the largest component where cross-validation shows that this helps.

The decision uses the predictions of the validation cases of all folds:

1. All foreground classes together: only the largest component is kept if that raises the mean foreground Dice and
lowers
   the Dice of no class.
2. Then each class, in order and on top of the earlier decisions: only its largest component is kept if that raises its
   Dice.

Later predictions go through the steps that were decided.

Postprocessing is off by default for tissue. The rule was designed for organs: a body has one liver, so a second one is
a mistake. Tumor and stroma have many components, and keeping only the largest would remove true ones. On such data the
rule decides against it, or, with few cases, in favor of it by chance. It is therefore applied only on request.

Components are connected over edges and corners (8 neighbors). If several components are the largest, all of them are
kept. Pixels without ground truth do not count for the Dice, but they belong to components like all other pixels.
Source: Isensee et al. 2021 (doi:10.1038/s41592-020-01008-z), nnU-Net 2.8.1 (`nnUNetv2_determine_postprocessing`).
"""

import math
import warnings
from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from bcss_jax.errors import DataError

_BACKGROUND = 0
_EDGES_AND_CORNERS = np.ones((3, 3), int)


def keep_largest(labels: np.ndarray, classes: Sequence[int]) -> np.ndarray:
    """Sets all components except the largest to background.

    Args:
      labels: integers [H, W].
      classes: labels that together form the components; other labels do not change.

    Returns:
      A new array like `labels`.
    """
    mask = np.isin(labels, classes)
    components, count = _components(mask)
    result = np.array(labels)
    if count > 1:
        sizes = np.bincount(components.ravel())
        sizes[0] = 0  # pixels outside all components
        result[mask & (sizes < sizes.max())[components]] = _BACKGROUND
    return result


def _components(mask: np.ndarray) -> tuple[np.ndarray, int]:
    """Returns the number of the component of each pixel (0: none) and the number of components."""
    components = np.zeros(mask.shape, np.int32)
    count = ndimage.label(mask, _EDGES_AND_CORNERS, output=components)
    assert isinstance(count, int)
    return components, count


def apply_postprocessing(labels: np.ndarray, decision: dict) -> np.ndarray:
    """Returns labels [H, W] after the steps that `determine_postprocessing` decided."""
    for classes in decision["keep_largest"]:
        labels = keep_largest(labels, classes)
    return labels


def determine_postprocessing(
    predictions: Sequence[np.ndarray],
    truths: Sequence[np.ndarray],
    classes: Sequence[int],
    ignore: int | None = None,
) -> dict:
    """Decides which steps to apply, based on the predictions of the cross-validation.

    Args:
      predictions: integer labels [H, W] of all validation cases. They are read several times, in order and one at a
        time, so a sequence that loads them lazily works.
      truths: the same for the ground truth.
      classes: foreground labels; 0, the background, is ignored.
      ignore: label of ground truth pixels that do not count; None: all count.

    Returns:
      JSON: `keep_largest`, the steps in order, each a list of classes that together form the components;
      `dice_before` and `dice_after`, the mean Dice over cases of each class by its label (null if the class never
      occurs).

    Raises:
      DataError: there are no cases, the numbers of predictions and truths differ, or a prediction and its truth have
        different sizes.
    """
    if not len(predictions) or len(predictions) != len(truths):
        raise DataError(
            f"postprocessing needs pairs of a prediction and its ground truth; found {len(predictions)} predictions "
            f"and {len(truths)} ground truths"
        )
    classes = [int(label) for label in classes if label != _BACKGROUND]

    def dice(steps):
        return _mean_dice(predictions, truths, classes, ignore, steps)

    before = dice([])
    steps, scores = [], before
    everything = dice([classes])
    # If a class has no score (NaN), neither have the means, and this step is not applied, as in nnU-Net.
    if everything.mean() > before.mean() and not (everything < before).any():
        steps, scores = [classes], everything
    for i, label in enumerate(classes if len(classes) > 1 else ()):  # with one class, this would repeat the first step
        one = dice([*steps, [label]])
        if one[i] > scores[i]:
            steps, scores = [*steps, [label]], one
    return {"keep_largest": steps, "dice_before": _json(classes, before), "dice_after": _json(classes, scores)}


def _mean_dice(predictions, truths, classes, ignore, steps) -> np.ndarray:
    """Returns the Dice of each class, the mean over cases with it in truth or prediction; NaN if there are none."""
    scores = np.full((len(predictions), len(classes)), np.nan)
    for case in range(len(predictions)):
        truth, prediction = np.asarray(truths[case]), np.asarray(predictions[case])
        if truth.shape != prediction.shape:
            raise DataError(f"case {case}: the prediction has the shape {prediction.shape}, its truth {truth.shape}")
        prediction = apply_postprocessing(prediction, {"keep_largest": steps})
        counted = np.ones(truth.shape, bool) if ignore is None else truth != ignore
        truth, prediction = truth[counted], prediction[counted]
        for i, label in enumerate(classes):
            sizes = (truth == label).sum() + (prediction == label).sum()
            if sizes:
                scores[case, i] = 2 * ((truth == label) & (prediction == label)).sum() / sizes
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # NumPy warns if no case has a class
        return np.nanmean(scores, axis=0)


def _json(classes, scores) -> dict:
    numbers = [None if math.isnan(score) else float(score) for score in scores]
    return dict(zip(map(str, classes), numbers, strict=True))
