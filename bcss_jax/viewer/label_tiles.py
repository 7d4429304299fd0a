"""Deep zoom tiles of labels: the label values, which the page paints in the colors of the classes.

One response serves all classes, areas and outlines, so switching them on the page does not need the server. The tiles
match the slide pixel for pixel: they have its deep zoom geometry, with additional levels where the labels are finer.
"""

import functools
import gzip
import math

import numpy as np

from bcss_jax.slides.grid import Grid
from bcss_jax.viewer.deep_zoom import DeepZoom, Tile
from bcss_jax.viewer.label_file import LabelFile

MARGIN = 2  # pixels that are sent around each tile, for outlines; the same value is in viewer.js
CACHED_TILES = 512  # about 1 kB each


def geometry(width: int, height: int, grid: Grid) -> DeepZoom:
    """Returns the geometry of the labels over a slide.

    Args:
      width: of the slide's level 0, pixels.
      height: of the slide's level 0, pixels.
      grid: of the labels.

    Returns:
      The size of the slide, times a power of two where the grid is finer than the slide.
    """
    finer = 1 << max(0, math.ceil(math.log2(1 / min(grid.scale)) - 0.1))
    return DeepZoom(width * finer, height * finer)


class LabelTiles:
    """Makes the tiles of one file of labels."""

    def __init__(self, file: LabelFile, width: int, height: int, grid: Grid):
        """Takes the file, the size of the slide's level 0, and the grid of the labels."""
        self.geometry = geometry(width, height, grid)
        self._file, self._grid, self._finer = file, grid, self.geometry.width // width
        self.gzipped = functools.lru_cache(CACHED_TILES)(self._gzipped)

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def labels(self, tile: Tile) -> np.ndarray:
        """Returns the nearest label at the center of each pixel of a tile, and of `MARGIN` pixels more on all sides.

        Returns:
          uint8 [h + 2 MARGIN, w + 2 MARGIN]; 0 outside the slide.

        Raises:
          DataError: the file is damaged there.
        """
        columns, rows = self.geometry.size(self.geometry.max_level - tile.step.bit_length() + 1)
        step_x, step_y = (tile.step / self._finer / scale for scale in self._grid.scale)
        x = _centers(tile.x, tile.width, columns, self._grid.width, step_x)
        y = _centers(tile.y, tile.height, rows, self._grid.height, step_y)
        return self._file.sample(x, y, min(step_x, step_y))

    def _gzipped(self, tile: Tile) -> bytes:
        """Returns the bytes of `labels`, compressed."""
        return gzip.compress(self.labels(tile).tobytes(), 1, mtime=0)


def _centers(first, count, level_size, grid_size, step):
    """Returns where the centers of a tile's pixels lie in the grid along one axis.

    Includes `MARGIN` more pixels on both sides.
    """
    pixels = np.arange(first - MARGIN, first + count + MARGIN)
    # A center on the border of two pixels belongs to the second one, despite rounding. More than half of the last pixel
    # of a level may lie outside the grid.
    centers = np.minimum((pixels + 0.5) * step + 1e-6, grid_size - 0.5)
    return np.where(pixels < level_size, centers, grid_size + pixels)
