"""Objects of a tile and clicks on them by fixed rules, to measure how many clicks a network needs.

Source: the protocol of interactive segmentation as in RITM (Sofiiuk et al. 2021, arXiv:2102.06583): the first click is
in the middle of the object, each further one in the middle of the largest error, both by the distance to the border.
"""

from typing import NamedTuple

import numpy as np
from scipy import ndimage

from bcss_jax.prompting.simulation.training_prompts import MIN_AREA


class LabeledRegion(NamedTuple):
    """A connected region of one class in a tile.

    Attributes:
      label: of the class.
      mask: bool (H, W).
    """

    label: int
    mask: np.ndarray


class Click(NamedTuple):
    """A click.

    Attributes:
      x: column in pixels.
      y: row.
      inside: whether the pixel belongs to the object.
    """

    x: int
    y: int
    inside: bool


def regions_of(labels: np.ndarray, classes: tuple[int, ...]) -> list[LabeledRegion]:
    """Returns the connected regions of a tile, of at least `MIN_AREA` pixels, class by class.

    Args:
      labels: integer (H, W).
      classes: labels whose regions are objects. Pixels are connected over their edges.
    """
    found = []
    for label in classes:
        regions = np.empty(labels.shape, np.int32)
        count = int(ndimage.label(labels == label, output=regions))  # pyright: ignore[reportArgumentType]
        areas = np.bincount(regions.ravel(), minlength=count + 1)
        found += [LabeledRegion(label, regions == i) for i in range(1, count + 1) if areas[i] >= MIN_AREA]
    return found


def next_click(mask: np.ndarray, known: np.ndarray, predicted: np.ndarray, clicked: list[Click]) -> Click | None:
    """Returns where a user would click next; None if no pixel is wrong that was not clicked before.

    Args:
      mask: bool (H, W), the object.
      known: bool (H, W), pixels with ground truth. Others are never wrong.
      predicted: bool (H, W); empty before the first click.
      clicked: clicks so far.
    """
    free = np.ones(mask.shape, bool)
    for click in clicked:
        free[click.y, click.x] = False
    missed, added = (_depth(wrong & known) * free for wrong in (mask & ~predicted, ~mask & predicted))
    depth = missed if missed.max() > added.max() else added
    if depth.max() <= 0:
        return None
    y, x = np.unravel_index(depth.argmax(), depth.shape)
    return Click(int(x), int(y), bool(mask[y, x]))


def box_of(mask: np.ndarray) -> np.ndarray:
    """Returns the box around bool (H, W): float64 (4,), x and y of the first and of the last pixel."""
    rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    return np.array([columns[0], rows[0], columns[-1], rows[-1]], np.float64)


def _depth(region: np.ndarray) -> np.ndarray:
    """Returns the distance of each pixel of a region to the nearest pixel outside; the tile ends at its border."""
    return np.asarray(ndimage.distance_transform_edt(np.pad(region, 1)))[1:-1, 1:-1]
