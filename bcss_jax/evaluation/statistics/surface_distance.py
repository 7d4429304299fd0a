"""How far the outline of a predicted class lies from the true one, in micrometers.

The border of a mask are its pixels that have one of their four neighbors outside of it. Two measures compare the
borders of truth and prediction:

* HD95: the 95th percentile (linearly interpolated) of the distances from the border pixels of one mask to the nearest
  border pixel of the other; of the two directions the larger. 0 is perfect.
* NSD, normalized surface Dice: the fraction of all border pixels, of both masks, that have the other border within a
  tolerance. 1 is perfect.

Where truth is known everywhere both equal MONAI's `compute_hausdorff_distance(percentile=95)` and
`compute_surface_dice`, which count pixels. DeepMind's surface-distance has the same formulas, but puts its points on
the corners of pixels and weights them by contour length, so that its values are close but not equal. All three take
the image's edge for the border of what touches it: two tiles that are filled by a class agree.

Pixels without truth are outside of both masks, whatever was predicted there. That alone would reward every model for
the outline of the known area, which both masks share without any merit. Hence a border pixel that is one only because
of neighbors without truth is not counted if the other mask holds the same pixel; it remains something to measure
distances to. What is left out in this way has the distance 0 by construction, so no error is ever hidden.

Sources: Huttenlocher et al. 1993 (Hausdorff distance; the percentile is of medical practice), Nikolov et al. 2018
(arXiv:1809.04430, normalized surface Dice), MONAI 1.6, google-deepmind/surface-distance.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import ndimage


class SurfaceScore(NamedTuple):
    """Of one class in one image, or arrays of them.

    Attributes:
      hd95_um: micrometers; NaN where the class is in neither mask.
      nsd: 0 to 1; NaN likewise.
    """

    hd95_um: float | np.ndarray
    nsd: float | np.ndarray


def surface_score(
    truth: np.ndarray, prediction: np.ndarray, ignored: np.ndarray, *, mpp: float, tolerance_um: float
) -> SurfaceScore:
    """HD95 and NSD of one class in one image.

    Args:
      truth: bool [H, W].
      prediction: bool [H, W].
      ignored: bool [H, W], pixels without truth; nothing depends on the two masks there.
      mpp: micrometers per pixel, above 0.
      tolerance_um: micrometers by which outlines may differ, 0 or more.

    Returns:
      NaN twice if the class is in neither mask. If it is in one of them only, HD95 is the image's diagonal and NSD 0,
      so that an image in which a class was missed does not drop out of a mean.

    Raises:
      ValueError: shapes that differ or are not [H, W], or an mpp or tolerance that cannot be.
    """
    truth, prediction, ignored = (np.asarray(mask, bool) for mask in (truth, prediction, ignored))
    if truth.ndim != 2 or not truth.shape == prediction.shape == ignored.shape:
        raise ValueError(f"masks must be [H, W] of one shape; found {truth.shape}, {prediction.shape}, {ignored.shape}")
    if not (math.isfinite(mpp) and mpp > 0 and math.isfinite(tolerance_um) and tolerance_um >= 0):
        raise ValueError(f"mpp must be above 0 and the tolerance at least 0; found {mpp} and {tolerance_um} um")
    truth, prediction = truth & ~ignored, prediction & ~ignored
    if not (truth.any() or prediction.any()):
        return SurfaceScore(math.nan, math.nan)
    if not (truth.any() and prediction.any()):
        return SurfaceScore(math.hypot(*truth.shape) * mpp, 0.0)
    borders = [mask & ~ndimage.binary_erosion(mask) for mask in (truth, prediction)]
    box = _bounding_box(borders[0] | borders[1])
    directed = []
    for mask, other, border, other_border in (
        (truth, prediction, *borders),
        (prediction, truth, *reversed(borders)),
    ):
        counted = border & ~(other & ndimage.binary_erosion(mask | ignored))
        directed.append(mpp * ndimage.distance_transform_edt(~other_border[box])[counted[box]])
    if not any(map(len, directed)):  # equal masks, surrounded by pixels without truth
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
    """HD95 and NSD of every class of an image.

    Args:
      labels: integers [H, W].
      predictions: integers [H, W].
      classes: the K labels to score.
      ignore_index: the label without truth; None: every pixel has one.
      mpp: as in `surface_score`.
      tolerance_um: as in `surface_score`.

    Returns:
      `SurfaceScore` of float64 [K].

    Raises:
      ValueError: as `surface_score`.
    """
    labels, predictions = np.asarray(labels), np.asarray(predictions)
    ignored = np.zeros(labels.shape, bool) if ignore_index is None else labels == ignore_index
    scores = [
        surface_score(labels == c, predictions == c, ignored, mpp=mpp, tolerance_um=tolerance_um) for c in classes
    ]
    return SurfaceScore(*np.asarray(scores, np.float64).reshape(-1, 2).T)


def _bounding_box(mask):
    """Slices of the smallest box that holds all of a mask that is not empty; distances within it are the same."""
    return tuple(slice(indices.min(), indices.max() + 1) for indices in np.nonzero(mask))
