"""Measures the distance between the outlines of a predicted class and its ground truth, in micrometers.

The border of a mask consists of its pixels with at least one of their four neighbors outside the mask. Two scores
compare the borders of ground truth and prediction:

* HD95: the 95th percentile (linearly interpolated) of the distances from the border pixels of one mask to the nearest
  border pixel of the other mask. The larger of the two directions counts. 0 is perfect.
* NSD, normalized surface Dice: the fraction of all border pixels of both masks that have the other border within a
  tolerance. 1 is perfect.

Where the ground truth is known everywhere, both equal MONAI's `compute_hausdorff_distance(percentile=95)` and
`compute_surface_dice`, which count pixels. DeepMind's surface-distance uses the same formulas, but places its points on
the corners of pixels and weights them by contour length, so its values are close but not equal. In all three, the edge
of the image is a border of the masks that touch it, so two tiles that a class fills completely agree.

Pixels without ground truth are outside both masks, whatever was predicted there. This alone would reward every model
for the outline of the annotated area, which both masks share in any case. A border pixel that exists only because of
neighbors without ground truth is therefore not counted if the other mask contains the same pixel. Distances to it are
still measured. The pixels left out this way have the distance 0 by construction, so no error is hidden.

Sources: Huttenlocher et al. 1993 (Hausdorff distance; the percentile comes from medical practice), Nikolov et al. 2018
(arXiv:1809.04430, normalized surface Dice), MONAI 1.6, google-deepmind/surface-distance.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import ndimage


class SurfaceScore(NamedTuple):
    """Scores of one class in one image, or arrays of such scores.

    Attributes:
      hd95_um: micrometers; NaN where the class is in neither mask.
      nsd: from 0 to 1; NaN where the class is in neither mask.
    """

    hd95_um: float | np.ndarray
    nsd: float | np.ndarray


def surface_score(
    truth: np.ndarray, prediction: np.ndarray, ignored: np.ndarray, *, mpp: float, tolerance_um: float
) -> SurfaceScore:
    """Returns HD95 and NSD of one class in one image.

    Args:
      truth: bool [H, W].
      prediction: bool [H, W].
      ignored: bool [H, W], pixels without ground truth. The values of both masks there do not matter.
      mpp: micrometers per pixel, above 0.
      tolerance_um: micrometers by which outlines may differ, 0 or more.

    Returns:
      NaN for both if the class is in neither mask. If it is in only one of them, HD95 is the diagonal of the image and
      NSD is 0, so that an image with a missed class stays in the mean.

    Raises:
      ValueError: The shapes differ or are not [H, W], or mpp or the tolerance is out of range.
    """
    truth, prediction, ignored = np.asarray(truth, bool), np.asarray(prediction, bool), np.asarray(ignored, bool)
    if truth.ndim != 2 or not truth.shape == prediction.shape == ignored.shape:
        raise ValueError(
            f"masks must be [H, W] and have one shape; found {truth.shape}, {prediction.shape}, {ignored.shape}"
        )
    if not (math.isfinite(mpp) and mpp > 0 and math.isfinite(tolerance_um) and tolerance_um >= 0):
        raise ValueError(f"mpp must be above 0 and the tolerance at least 0; found {mpp} and {tolerance_um} um")
    truth, prediction = truth & ~ignored, prediction & ~ignored
    if not (truth.any() or prediction.any()):
        return SurfaceScore(math.nan, math.nan)
    if not (truth.any() and prediction.any()):
        return SurfaceScore(math.hypot(*truth.shape) * mpp, 0.0)
    borders = [mask & ~np.asarray(ndimage.binary_erosion(mask), bool) for mask in (truth, prediction)]
    box = _bounding_box(borders[0] | borders[1])
    directed = []
    for mask, other, border, other_border in (
        (truth, prediction, *borders),
        (prediction, truth, *reversed(borders)),
    ):
        counted = border & ~(other & ndimage.binary_erosion(mask | ignored))
        distances = np.asarray(ndimage.distance_transform_edt(~other_border[box]))
        directed.append(mpp * distances[counted[box]])
    if not any(map(len, directed)):  # equal masks, surrounded by pixels without ground truth
        return SurfaceScore(0.0, 1.0)
    hd95 = max(float(np.percentile(distances, 95)) for distances in directed if len(distances))
    return SurfaceScore(hd95, float(np.mean(np.concatenate(directed) <= tolerance_um)))


def surface_scores(
    labels: np.ndarray,
    predictions: np.ndarray,
    classes: Sequence[int],
    ignore_index: int | None,
    *,
    mpp: float,
    tolerance_um: float,
) -> SurfaceScore:
    """Returns HD95 and NSD of every class in an image.

    Args:
      labels: integers [H, W], the ground truth.
      predictions: integers [H, W].
      classes: the K labels to score.
      ignore_index: label of pixels without ground truth; None: every pixel has ground truth.
      mpp: as in `surface_score`.
      tolerance_um: as in `surface_score`.

    Returns:
      `SurfaceScore` of float64 [K].

    Raises:
      ValueError: The arguments do not fit, as in `surface_score`.
    """
    labels, predictions = np.asarray(labels), np.asarray(predictions)
    ignored = np.zeros(labels.shape, bool) if ignore_index is None else labels == ignore_index
    scores = [
        surface_score(labels == c, predictions == c, ignored, mpp=mpp, tolerance_um=tolerance_um) for c in classes
    ]
    return SurfaceScore(*np.asarray(scores, np.float64).reshape(-1, 2).T)


def _bounding_box(mask):
    """Returns the slices of the smallest box around a mask that is not empty. Distances within it stay the same."""
    return tuple(slice(indices.min(), indices.max() + 1) for indices in np.nonzero(mask))
