"""Deep zoom tiles of labels: the values themselves, which the page paints in the classes' colors.

So one answer serves all classes, areas and outlines, and no switch of the page asks for anything. The tiles lie over the
slide pixel for pixel: they have its deep zoom geometry, with levels above its full size where the labels are finer.
"""

import functools
import gzip
import math

import numpy as np

from bcss_jax.slides.grid import Grid
from bcss_jax.viewer.deep_zoom import DeepZoom, Tile
from bcss_jax.viewer.label_file import LabelFile

MARGIN = 2  # pixels around a tile that come with it, for outlines; viewer.js knows it too
CACHED = 512  # tiles, about 1 kB each


def geometry(width: int, height: int, grid: Grid) -> DeepZoom:
    """The deep zoom image of labels over a slide.

    Args:
      width: of the slide's level 0, pixels.
      height: likewise.
      grid: of the labels.

    Returns:
      The slide's own size, or the power of two times it that a finer grid needs.
    """
    finer = 1 << max(0, math.ceil(math.log2(1 / min(grid.scale)) - 0.1))
    return DeepZoom(width * finer, height * finer)


class LabelTiles:
    """Makes the tiles of one file of labels."""

    def __init__(self, file: LabelFile, width: int, height: int, grid: Grid):
        """Takes the file, the slide's size at level 0 and the grid of the labels."""
        self.geometry = geometry(width, height, grid)
        self._file, self._grid, self._finer = file, grid, self.geometry.width // width
        self.gzipped = functools.lru_cache(CACHED)(self._gzipped)

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def labels(self, tile: Tile) -> np.ndarray:
        """The nearest labels to the middles of a tile's pixels, and of `MARGIN` more on all sides.

        Returns:
          uint8 [h + 2 MARGIN, w + 2 MARGIN]; 0 outside the slide.

        Raises:
          DataError: the file is damaged there.
        """
        columns, rows = self.geometry.size(self.geometry.max_level - tile.step.bit_length() + 1)
        step_x, step_y = (tile.step / self._finer / scale for scale in self._grid.scale)
        x = _middles(tile.x, tile.width, columns, self._grid.width, step_x)
        y = _middles(tile.y, tile.height, rows, self._grid.height, step_y)
        return self._file.sample(x, y, min(step_x, step_y))

    def _gzipped(self, tile: Tile) -> bytes:
        """`labels`, row by row, compressed."""
        return gzip.compress(self.labels(tile).tobytes(), 1, mtime=0)


def _middles(first, count, level_size, grid_size, step):
    """Where the middles of a tile's pixels and of `MARGIN` more on both sides lie in the grid, along one axis."""
    pixels = np.arange(first - MARGIN, first + count + MARGIN)
    # A middle on the border of two pixels belongs to the second, whatever floats make of it; more than half of a level's
    # last pixel may lie outside.
    middles = np.minimum((pixels + 0.5) * step + 1e-6, grid_size - 0.5)
    return np.where(pixels < level_size, middles, grid_size + pixels)
