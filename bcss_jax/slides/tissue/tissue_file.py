"""Tissue that the user gives: a mask image of any scale, or regions as GeoJSON (QuPath's, in level-0 pixels)."""

from pathlib import Path

import numpy as np
import shapely
from rasterio.features import rasterize
from rasterio.transform import Affine

from bcss_jax.data.image_files import read_mask
from bcss_jax.errors import DataError, printable
from bcss_jax.slides.grid import Grid
from bcss_jax.slides.reading.geojson_regions import read_regions
from bcss_jax.slides.tissue.tissue_mask import Tissue

ASPECT = 0.02  # by which a mask's width to height may differ from the slide's
SIDE = 4096  # pixels of the mask that regions are drawn into, at most


def read_tissue(path: Path, grid: Grid, origin: tuple[float, float] = (0, 0)) -> Tissue:
    """Reads a PNG or TIFF whose pixels above 0 are tissue, or a .json or .geojson of regions.

    Args:
      path: the file.
      grid: the slide's.
      origin: level-0 pixels x and y that are 0 in a file of regions.

    Raises:
      DataError: it cannot be read, or is not of this slide: other proportions, or regions that lie beside it.
    """
    path = Path(path)
    if not path.exists():
        raise DataError(
            f"{printable(path)}: expected a tissue mask or regions, found no such file; --tissue takes a file, or the words "
            "color and all"
        )
    regions = path.suffix.lower() in (".json", ".geojson")
    return Tissue(_drawn(path, grid, origin) if regions else _mask(path, grid), grid)


def _mask(path, grid):
    mask = read_mask(path, 256) > 0
    height, width = mask.shape
    # A pixel more or less is rounding.
    least, most = (width - 1) / (height + 1), (width + 1) / max(height - 1, 1)
    aspect = grid.width / grid.height
    if not least * (1 - ASPECT) <= aspect <= most * (1 + ASPECT):
        raise DataError(
            f"{printable(path)}: expected a tissue mask with the proportions of the slide (width to height {aspect:.3f}), found "
            f"{width}x{height} ({width / height:.3f}); give the mask of this very slide"
        )
    if not mask.any():
        raise DataError(f"{printable(path)}: expected tissue, found only 0; check the mask, or leave it out")
    return mask


def _drawn(path, grid, origin):
    shapes = read_regions(path, origin)
    scale = max(1.0, grid.width / SIDE, grid.height / SIDE)
    shape = (int(np.ceil(grid.height / scale)), int(np.ceil(grid.width / scale)))
    x_scale, y_scale = (grid.scale[0] * grid.width / shape[1], grid.scale[1] * grid.height / shape[0])
    slide = shapely.box(0, 0, grid.width * grid.scale[0], grid.height * grid.scale[1])
    if not any(slide.intersects(each) for each in shapes):
        raise DataError(
            f"{printable(path)}: expected regions on the slide (level-0 pixels, {slide.bounds[2]:.0f}x{slide.bounds[3]:.0f}), "
            "found all beside it; give the regions of this very slide"
        )
    return rasterize(shapes, shape, transform=Affine.scale(x_scale, y_scale), all_touched=True, dtype=np.uint8) > 0
