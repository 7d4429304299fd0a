"""From a mask of a view to outlines on the slide, and back."""

import math
from collections.abc import Sequence

import cv2
import numpy as np
import shapely
from shapely.geometry.base import BaseGeometry

from bcss_jax.slides.annotations.coverage import Coverage
from bcss_jax.slides.prompts.view import View
from bcss_jax.slides.regions.mask_regions import mask_regions

DETAIL = 256  # pixels that the longer side of an object is drawn with, at least


def outlines(mask: np.ndarray, view: View, min_pixels: float = 0) -> list[shapely.Polygon]:
    """Returns the regions of a mask as valid polygons with holes, in pixels of level 0.

    Regions are pixels that are connected by their sides. The edges run along the pixels, so that `mask_of` the polygons
    is the mask again. Coordinates have two decimals, more if a pixel of the view is that small on level 0.

    Args:
      mask: bool [height, width] of the view.
      view: of the slide.
      min_pixels: regions with fewer pixels of the view are left out.
    """
    lines = [
        _rounded((np.arange(count + 1) + first) * scale, scale)
        for first, count, scale in zip((view.left, view.top), (view.width, view.height), view.grid.scale, strict=True)
    ]
    found = []
    for region in mask_regions(np.asarray(mask, bool), min_pixels):
        shell, *holes = (np.stack([lines[0][ring[:, 0]], lines[1][ring[:, 1]]], 1) for ring in region.rings)
        found.append(shapely.Polygon(shell, holes))
    return found


def smooth_outlines(logits: np.ndarray, view: View, min_pixels: float = 0) -> list[shapely.Polygon]:
    """Returns where logits are above 0 as `outlines` does, small regions on finer pixels: logits know more than masks.

    Args:
      logits: float32 [height, width] of the view, for the centers of its pixels.
      view: of the slide.
      min_pixels: regions with fewer pixels of the view are left out.
    """
    place = place_of(logits)
    if place is None:
        return []
    part, shown = logits[place], view_of_place(view, place)
    times = max(1, math.ceil(DETAIL / max(part.shape)))
    if times > 1:
        part, shown = cv2.resize(part, None, fx=times, fy=times, interpolation=cv2.INTER_LINEAR), shown.finer(times)
    return outlines(part > 0, shown, min_pixels * times**2)


def place_of(logits: np.ndarray) -> tuple[slice, slice] | None:
    """Returns the rows and columns where logits are above 0, and one pixel around; None if they are nowhere."""
    rows, columns = (np.flatnonzero((logits > 0).any(axis)) for axis in (1, 0))
    if not len(rows):
        return None
    down, across = (
        slice(max(0, each[0] - 1), min(side, each[-1] + 2))
        for each, side in zip((rows, columns), logits.shape, strict=True)
    )
    return down, across


def view_of_place(view: View, place: tuple[slice, slice]) -> View:
    """Returns the view of some rows and columns of a view."""
    down, across = place
    return view.part(across.start, down.start, across.stop - across.start, down.stop - down.start)


def mask_of(areas: Sequence[BaseGeometry], view: View) -> np.ndarray:
    """Returns which pixels of a view valid areas in pixels of level 0 cover, by their centers: bool [height, width]."""
    return Coverage(areas).block(*view.box[:2], view.width, view.height, view.grid.scale)


def _rounded(positions: np.ndarray, scale: float) -> np.ndarray:
    """Returns positions with as few decimals as keep neighbors apart, so that polygons stay valid."""
    return np.round(positions, max(2, 1 - math.floor(math.log10(scale))))
