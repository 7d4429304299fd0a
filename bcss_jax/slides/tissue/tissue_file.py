"""Reads tissue that the user provides: a mask image of any scale, or GeoJSON regions as QuPath's (level-0 pixels)."""

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import shapely
from rasterio.features import rasterize
from rasterio.transform import Affine

from bcss_jax.data.image_files import read_tissue_mask
from bcss_jax.data.resolution.check import warn_if_other_size
from bcss_jax.data.resolution.stated import stated_in_file
from bcss_jax.errors import DataError, printable
from bcss_jax.slides.annotations.geojson import read_regions
from bcss_jax.slides.grid import Grid
from bcss_jax.slides.tissue.tissue_mask import Tissue

log = logging.getLogger(__name__)

REGIONS = (".json", ".geojson")  # endings of files of regions; all others are masks
ASPECT = 0.02  # relative difference that is allowed between the aspect ratios of mask and slide
OUTSIDE = 0.01  # share of a region outside the slide from which on it is named
SIDE = 4096  # longest side in pixels of the mask that regions are drawn into


def read_tissue(
    path: Path, grid: Grid, origin: tuple[float, float] = (0, 0), warn: Callable[[str], None] = log.warning
) -> Tissue:
    """Reads a PNG or TIFF that is black where there is no tissue, or a .json or .geojson file of regions.

    Args:
      path: the file.
      grid: the slide's grid.
      origin: level-0 pixel x and y of the point (0, 0) in a file of regions.
      warn: called with one line about everything that is odd but usable.

    Raises:
      DataError: the file cannot be read or belongs to another slide: its proportions differ, or no region is on the
        slide.
    """
    path = Path(path)
    if not path.exists():
        raise DataError(
            f"{printable(path)}: expected a tissue mask or regions, found no such file; "
            "--tissue takes a file, or one of the words colour and all"
        )
    is_regions = path.suffix.lower() in REGIONS
    return Tissue(_draw_regions(path, grid, origin, warn) if is_regions else _read_mask(path, grid, warn), grid)


def _read_mask(path: Path, grid: Grid, warn: Callable[[str], None]) -> np.ndarray:
    """Returns the pixels of a mask that are not black with the slide's proportions, bool [h, w]."""
    mask = read_tissue_mask(path)
    height, width = mask.shape
    # Rounding may have changed each side by one pixel.
    least, most = (width - 1) / (height + 1), (width + 1) / max(height - 1, 1)
    aspect = grid.width / grid.height
    if not least * (1 - ASPECT) <= aspect <= most * (1 + ASPECT):
        raise DataError(
            f"{printable(path)}: expected a tissue mask with the proportions of the slide (width to height "
            f"{aspect:.3f}), found {width}x{height} ({width / height:.3f}); give the mask of this slide"
        )
    if not mask.any():
        raise DataError(f"{printable(path)}: expected tissue, found only 0; check the mask, or leave it out")
    expected = (grid.mpp * grid.width / width, grid.mpp * grid.height / height)
    warn_if_other_size(path, stated_in_file(path), [expected], warn)
    return mask


def _draw_regions(path: Path, grid: Grid, origin: tuple[float, float], warn: Callable[[str], None]) -> np.ndarray:
    """Returns the regions of a GeoJSON file, drawn into a mask of the whole slide, bool [h, w]."""
    shapes = read_regions(path, origin, warn)
    scale = max(1.0, grid.width / SIDE, grid.height / SIDE)
    shape = (int(np.ceil(grid.height / scale)), int(np.ceil(grid.width / scale)))
    x_scale, y_scale = (grid.scale[0] * grid.width / shape[1], grid.scale[1] * grid.height / shape[0])
    slide = shapely.box(0, 0, grid.width * grid.scale[0], grid.height * grid.scale[1])
    if not any(slide.intersection(each).area > 0 for each in shapes):  # it is not enough that they touch its edge
        raise DataError(
            f"{printable(path)}: expected regions on the slide (level-0 pixels, "
            f"{slide.bounds[2]:.0f}x{slide.bounds[3]:.0f}), found all of them outside; give the regions of this slide"
        )
    outside = [share for each in shapes if (share := 1 - each.intersection(slide).area / each.area) > OUTSIDE]
    if outside:
        warn(
            f"{printable(path)}: {len(outside)} of {len(shapes)} regions lie outside the slide with up to "
            f"{100 * max(outside):.0f} % of their area; what is outside is left out"
        )
    drawn = rasterize(shapes, shape, transform=Affine.scale(x_scale, y_scale), all_touched=True, dtype=np.uint8)
    assert drawn is not None  # it is None only where an array to draw into is given
    return drawn > 0
