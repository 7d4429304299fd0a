"""Traces exact polygons of the regions in a mask that is in memory."""

import tempfile
from pathlib import Path

import numpy as np

from bcss_jax.slides.regions.polygons import regions

_INSIDE = 1


class MaskRegion:
    """A region of a mask.

    Attributes:
      pixels: number of its pixels.
      rings: the outer ring, then the holes: int32 [n, 2] each, x and y of pixel corners; the first is not repeated.
    """

    def __init__(self, pixels: int, rings: list[np.ndarray]):
        """Stores both."""
        self.pixels, self.rings = pixels, rings


def mask_regions(mask: np.ndarray, min_pixels: float = 0) -> list[MaskRegion]:
    """Returns the regions of a mask bool [h, w], as `polygons.regions` traces them.

    Raises:
      StorageError: no temporary file can be made.
    """
    if not mask.any():
        return []
    found = regions(_OneTile(mask), (_INSIDE,), Path(tempfile.gettempdir()), min_pixels)
    return [MaskRegion(each.pixels, [np.concatenate(list(ring)) for ring in each.rings]) for each in found]


class _OneTile:
    """A mask as a store of labels that has one tile."""

    rows = columns = 1

    def __init__(self, mask: np.ndarray):
        self.height, self.width = mask.shape
        self.tile_size = max(mask.shape) + 1  # so that the lower and right edges lie in the tile
        missing = [(0, self.tile_size - side) for side in mask.shape]
        self._tile = np.pad(mask.astype(np.uint8) * _INSIDE, missing)

    def constant(self, row: int, column: int) -> int | None:
        return None

    def tile(self, row: int, column: int) -> np.ndarray:
        return self._tile
