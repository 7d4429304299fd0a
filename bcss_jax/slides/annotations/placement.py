"""Whether annotations belong to a slide: they lie on it, and are in its pixels."""

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import shapely

from bcss_jax.errors import DataError, printable
from bcss_jax.slides.annotations.annotation import Annotation
from bcss_jax.slides.annotations.coverage import Coverage

log = logging.getLogger(__name__)

_OUTSIDE = 0.01  # share of an annotation outside the slide from which on it is named
_REACH = 0.5  # annotations in um reach at least this far into the part of the slide where um would lie
_ON_TISSUE = 0.5  # share of the annotated area that must be tissue if it is read in the right unit
_UNITS = {"micrometers": 1.0, "millimeters": 1000.0}


def check_placement(
    path: Path,
    annotations: list[Annotation],
    size: tuple[int, int],
    mpp: tuple[float, float] | None = None,
    tissue: np.ndarray | Callable[[], np.ndarray] | None = None,
    warn: Callable[[str], None] = log.warning,
) -> None:
    """Checks that annotations lie on the slide, and warns of what is odd.

    Args:
      path: the file of the annotations.
      annotations: in pixels of level 0.
      size: width and height of level 0.
      mpp: um per pixel of level 0 along x and y, to recognize annotations in micrometers or millimeters.
      tissue: bool [h, w] over the whole slide, which decides whether annotations are in pixels; or a function that
        returns it, which is called only if they may be in another unit.
      warn: called with one line.

    Raises:
      DataError: an annotation lies outside the slide, or all are in micrometers or millimeters.
    """
    areas = np.array([annotation.area for annotation in annotations], object)
    slide = shapely.box(0, 0, *size)
    inside = np.ones(len(areas))
    bounds = shapely.bounds(areas)
    crossing = (bounds[:, :2] < 0).any(1) | (bounds[:, 2:] > size).any(1)
    inside[crossing] = shapely.area(shapely.intersection(areas[crossing], slide)) / shapely.area(areas[crossing])
    if not inside.all():
        first = int(np.argmin(inside))
        left, top, right, bottom = annotations[first].area.bounds
        raise DataError(
            f"{printable(path)}: expected annotations on the slide ({size[0]}x{size[1]} pixels), found "
            f"{np.count_nonzero(inside == 0)} of {len(areas)} outside, for example {annotations[first].place} from "
            f"({left:.0f}, {top:.0f}) to ({right:.0f}, {bottom:.0f}); give the annotations of this slide, in its pixels"
        )
    if mpp is not None:
        _check_unit(path, areas, size, mpp, tissue, warn)
    outside = 1 - inside[1 - inside > _OUTSIDE]
    if len(outside):
        warn(
            f"{printable(path)}: {len(outside)} of {len(areas)} annotations lie outside the slide with up to "
            f"{100 * outside.max():.0f} % of their area; what is outside is left out"
        )


def _check_unit(path, areas, size, mpp, tissue, warn):
    """Refuses annotations that lie on tissue only in another unit; without tissue, warns of what looks like one."""
    reach = shapely.total_bounds(areas)[2:]
    for unit, um in _UNITS.items():
        pixels = np.array(mpp) / um  # units per pixel
        corner = np.array(size) * pixels
        if (pixels >= 1).any() or (reach > corner).any() or (reach < _REACH * corner).any():
            continue
        found = f"all of them within {reach[0]:.0f}x{reach[1]:.0f} at the upper left of {size[0]}x{size[1]} pixels"
        if tissue is None:
            warn(f"{printable(path)}: {found}, as if they were in {unit}; they are taken as pixels, look at them")
            continue
        mask = tissue if isinstance(tissue, np.ndarray) else tissue()
        scaled = shapely.transform(areas, lambda points, pixels=pixels: points / pixels)
        as_pixels, as_unit = (_share_on_tissue(each, size, mask) for each in (areas, scaled))
        if as_unit >= _ON_TISSUE > as_pixels:
            raise DataError(
                f"{printable(path)}: expected annotations in pixels of level 0, found {found}, where "
                f"{100 * as_pixels:.0f} % of their area is tissue; as {unit} it is {100 * as_unit:.0f} %; export them "
                "in pixels"
            )


def _share_on_tissue(areas: np.ndarray, size: tuple[int, int], tissue: np.ndarray) -> float:
    height, width = tissue.shape
    covered = Coverage(list(areas)).block(0, 0, width, height, (size[0] / width, size[1] / height))
    return float(tissue[covered].mean()) if covered.any() else 0.0
