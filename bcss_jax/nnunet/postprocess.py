"""nnU-Net's post-processing: keep the largest component only, where cross-validation shows that it helps.

Two questions are put to the predictions of the held-back cases of all folds. (a) All foreground as one: is the mean
foreground Dice higher when all but the largest component become background, and no class's lower? (b) Then class by
class, in order, on top of what was decided before: is that class's Dice higher? Every yes becomes a step that later
predictions go through.

Off by default for tissue. The rule is made for organs, of which a body has one: a second liver is a mistake. Tumor and
stroma come in many pieces, and keeping the largest would throw away true ones. On such data both questions are answered
with no, or, on few cases, with yes by luck; so it is decided only when asked for.

Components touch over edges and corners (8 neighbors); of several largest ones all stay. Pixels without truth are left
out of the Dice, but belong to components like all others.
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
    """Makes background of all but the largest component.

    Args:
      labels: integers [H, W].
      classes: labels that count as one for the components; others stay as they are.

    Returns:
      A new array like `labels`.
    """
    mask = np.isin(labels, classes)
    components, count = ndimage.label(mask, _EDGES_AND_CORNERS)
    result = np.array(labels)
    if count > 1:
        sizes = np.bincount(components.ravel())
        sizes[0] = 0  # what is in no component
        result[mask & (sizes < sizes.max())[components]] = _BACKGROUND
    return result


def apply_postprocessing(labels: np.ndarray, decision: dict) -> np.ndarray:
    """Labels [H, W] after the steps of a decision that `determine_postprocessing` came to."""
    for classes in decision["keep_largest"]:
        labels = keep_largest(labels, classes)
    return labels


def determine_postprocessing(
    predictions: Sequence[np.ndarray],
    truths: Sequence[np.ndarray],
    classes: Sequence[int],
    ignore: int | None = None,
) -> dict:
    """Decides on the predictions of the cross-validation which steps to take.

    Args:
      predictions: integer labels [H, W] of every held-back case. Read several times in order, one at a time, so it may
        be an object that loads them.
      truths: the same of the truth.
      classes: foreground labels; 0, the background, is passed over.
      ignore: label of the truth's pixels that do not count; None: all count.

    Returns:
      JSON: `keep_largest`, the steps in order, each a list of classes that are taken as one; `dice_before` and
      `dice_after`, mean over cases of each class by its label (null where it never occurs).

    Raises:
      DataError: there are no cases, or not as many truths, or a prediction has not the size of its truth.
    """
    if not len(predictions) or len(predictions) != len(truths):
        raise DataError(
            f"post-processing is decided on pairs of prediction and truth; found {len(predictions)} predictions and "
            f"{len(truths)} truths"
        )
    classes = [int(label) for label in classes if label != _BACKGROUND]

    def dice(steps):
        return _mean_dice(predictions, truths, classes, ignore, steps)

    before = dice([])
    steps, scores = [], before
    everything = dice([classes])
    # Where a class has no score (NaN) the means have none either, and nothing is kept, as in nnU-Net.
    if everything.mean() > before.mean() and not (everything < before).any():
        steps, scores = [classes], everything
    for i, label in enumerate(classes if len(classes) > 1 else ()):  # of one class (a) was the same question
        one = dice([*steps, [label]])
        if one[i] > scores[i]:
            steps, scores = [*steps, [label]], one
    return {"keep_largest": steps, "dice_before": _json(classes, before), "dice_after": _json(classes, scores)}


def _mean_dice(predictions, truths, classes, ignore, steps) -> np.ndarray:
    """Dice per class, mean over the cases that have the class in truth or prediction; NaN if none has."""
    scores = np.full((len(predictions), len(classes)), np.nan)
    for case in range(len(predictions)):
        truth, prediction = np.asarray(truths[case]), np.asarray(predictions[case])
        if truth.shape != prediction.shape:
            raise DataError(f"case {case}: the prediction is {prediction.shape}, its truth {truth.shape}")
        prediction = apply_postprocessing(prediction, {"keep_largest": steps})
        counted = np.ones(truth.shape, bool) if ignore is None else truth != ignore
        truth, prediction = truth[counted], prediction[counted]
        for i, label in enumerate(classes):
            sizes = (truth == label).sum() + (prediction == label).sum()
            if sizes:
                scores[case, i] = 2 * ((truth == label) & (prediction == label)).sum() / sizes
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # NumPy's, where no case has a class
        return np.nanmean(scores, axis=0)


def _json(classes, scores) -> dict:
    numbers = [None if math.isnan(score) else float(score) for score in scores]
    return dict(zip(map(str, classes), numbers, strict=True))
