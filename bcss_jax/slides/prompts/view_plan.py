"""Which views of a slide show its objects: each at a resolution that suits it, and as few as possible."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from bcss_jax.slides.grid import grid_of
from bcss_jax.slides.prompts.prompt_file import SlideObject
from bcss_jax.slides.prompts.view import MOST_ENLARGED, View, view_at

SHARE = 0.5  # of a view's side that the longer side of a box takes
MARGIN = 0.35  # of the longer side of a box that is seen on each side of it; around points a quarter of the view
MOST_SHARE = 0.9  # at a resolution that is given
POINT_MPP = 0.5  # um per pixel for points, whose object may have any size
STEP = math.sqrt(2)  # between the resolutions that are chosen from, so that objects of similar size share views


class PlannedView(NamedTuple):
    """A view with the objects that are answered on it.

    Attributes:
      view: of the slide.
      objects: their positions in the list of all objects.
    """

    view: View
    objects: list[int]


class Plan(NamedTuple):
    """All views.

    Attributes:
      views: from the finest resolution to the coarsest, each from top to bottom.
      coarser: how many objects are too large for the resolution that was given.
    """

    views: list[PlannedView]
    coarser: int


def plan_views(
    objects: Sequence[SlideObject], size: tuple[int, int], mpp: tuple[float, float], side: int, given: float | None
) -> Plan:
    """Returns views that show each object in one of them, with its surroundings.

    A box takes about `SHARE` of a view's side, between a factor of 0.84 and 1.19. Points are seen at `POINT_MPP`, or
    coarser if they lie further apart.

    Args:
      objects: with their extents.
      size: width and height of level 0.
      mpp: um per pixel of level 0 along x and y.
      side: pixels of a view.
      given: um per pixel for all objects that fit into a view at that resolution; None: chosen for each object.
    """
    extents = np.array([each.extent for each in objects])  # level-0 pixels
    longest = ((extents[:, 2:] - extents[:, :2]) * mpp).max(1)  # um
    coarsest = max(along * each for along, each in zip(size, mpp, strict=True)) / side
    is_points = np.array([each.prompt.box is None for each in objects])
    if given is not None:
        coarser = (longest > MOST_SHARE * side * given) & (given < coarsest)
        resolutions = np.full(len(objects), given)
    else:
        needed = np.maximum(longest / (SHARE * side), np.where(is_points, POINT_MPP, 0))
        finest = max(mpp) / MOST_ENLARGED
        resolutions = _steps(np.clip(needed, finest, max(finest, coarsest)), np.round)
        coarser = np.zeros(len(objects), bool)
    small = (longest > MOST_SHARE * side * resolutions) & (resolutions < coarsest)
    resolutions[small] = _steps(np.minimum(longest[small] / (MOST_SHARE * side), coarsest), np.ceil)
    views = []
    for resolution in np.unique(resolutions).tolist():
        numbers = np.flatnonzero(resolutions == resolution)
        margin = np.where(is_points[numbers], side * resolution / 4, MARGIN * longest[numbers])  # um on each side
        margin = np.clip(np.minimum(margin, (side * resolution - longest[numbers]) / 2), 0, None)
        around = extents[numbers] + margin[:, None] * np.array([-1, -1, 1, 1]) / np.array([*mpp, *mpp])
        around = around.clip(0, [*size, *size])
        grid = grid_of(*size, mpp, resolution)
        fits = np.array([side * scale for scale in grid.scale])
        for group in _groups(around, fits):
            union = np.concatenate([around[group, :2].min(0), around[group, 2:].max(0)])
            center = ((union[0] + union[2]) / 2, (union[1] + union[3]) / 2)
            views.append(PlannedView(view_at(grid, center, side), numbers[group].tolist()))
    return Plan(views, int(coarser.sum()))


def _steps(resolutions: np.ndarray, rounding) -> np.ndarray:
    return STEP ** rounding(np.log(np.maximum(resolutions, 1e-9)) / math.log(STEP))


def _groups(boxes: np.ndarray, fits: np.ndarray) -> list[np.ndarray]:
    """Returns boxes [n, 4] in groups whose common bounding box has at most the size `fits`, near ones together."""
    left = np.lexsort((boxes[:, 0], boxes[:, 1]))
    centers = (boxes[:, :2] + boxes[:, 2:]) / 2
    groups = []
    while len(left):
        first = left[0]
        near = left[np.argsort(np.abs(centers[left] - centers[first]).max(1), kind="stable")]
        low = np.minimum.accumulate(boxes[near, :2])
        high = np.maximum.accumulate(boxes[near, 2:])
        inside = ((high - low) <= fits + 1e-6).all(1)
        count = max(1, int(np.argmin(inside)) if not inside.all() else len(near))
        groups.append(near[:count])
        left = left[~np.isin(left, near[:count])]
    return groups
