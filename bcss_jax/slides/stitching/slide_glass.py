"""Finds the glass inside a slide's tissue while the slide is labeled: row by row, on a grid of its own.

The grid has about 1 to 2 um per pixel, and its pixels span whole pixels of a level of the slide. It is divided into
square cells. A cell is read with the margin that the rule needs (`tissue.glass`), from pixels that lie on the grid
itself; so the glass does not depend on the cells, the windows of the network, or the number of reader processes.
"""

import math

import numpy as np
from scipy import ndimage

from bcss_jax.slides.grid import Grid
from bcss_jax.slides.reading.backend import Level
from bcss_jax.slides.stitching.block_cache import BlockCache
from bcss_jax.slides.tissue.glass import COARSEST_MPP, FINEST_MPP, find_glass, margin_um
from bcss_jax.slides.tissue.tissue_mask import Tissue
from bcss_jax.slides.windows import Windows

CELL = 512  # pixels along a side
AHEAD = 4  # blocks that are requested before they are needed


def glass_grid(levels: tuple[Level, ...], mpp: tuple[float, float]) -> Grid:
    """Returns the grid that glass is searched for on; it may extend beyond the slide by part of a pixel.

    Args:
      levels: of the slide, level 0 first.
      mpp: um per level-0 pixel along x and y.

    Returns:
      The grid of the coarsest level that is fine enough, or a whole number of its pixels in one.
    """
    fitting = [level.downsample for level in levels if level.downsample * max(mpp) <= COARSEST_MPP]
    downsample = max(fitting, default=1.0)
    x, y = (downsample * max(1, round(FINEST_MPP / (along * downsample))) for along in mpp)
    width, height = levels[0][:2]
    return Grid(math.ceil(width / x), math.ceil(height / y), math.sqrt(x * mpp[0] * y * mpp[1]), (x, y))


class SlideGlass:
    """The glass of a slide, for pixels that are requested from top to bottom."""

    def __init__(self, pool, tissue: Tissue, mpp: tuple[float, float], color: np.ndarray | None):
        """Reads nothing yet.

        Args:
          pool: the `ReaderPool` of the slide.
          tissue: on the grid that is labeled.
          mpp: um per level-0 pixel along x and y.
          color: of the slide's glass, float [3]; None if it is unknown.
        """
        self._pool, self._tissue, self._color = pool, tissue, color
        grid = self._grid = glass_grid(pool.info.levels, mpp)
        self._mpp = grid.scale[0] * mpp[0], grid.scale[1] * mpp[1]
        self._margin = math.ceil(margin_um() / min(self._mpp)) + 1
        self._cells = Windows(grid.height, grid.width, CELL + 2 * self._margin, CELL)
        # This grid may end a little beyond the other one; so that no tissue falls between cells, its mask is widened.
        self._chosen = Tissue(ndimage.maximum_filter(tissue.mask, 3), grid).windows(self._cells)
        self._blocks: BlockCache | None = None
        self._next = 0  # the row of cells that is computed next
        self._found: dict[tuple[int, int], np.ndarray] = {}  # cells with glass, bool [<= CELL, <= CELL]

    def pixels(self, top: int, bottom: int, left: int, right: int) -> np.ndarray:
        """Returns the glass in a rectangle of the grid that is labeled, bool [bottom - top, right - left].

        Raises:
          DataError: the slide cannot be read there.
        """
        labeled, grid = self._tissue.grid, self._grid
        rows = _under(top, bottom, labeled.scale[1] / grid.scale[1], grid.height)
        columns = _under(left, right, labeled.scale[0] / grid.scale[0], grid.width)
        self._find(int(rows[0]) // CELL, int(rows[-1]) // CELL)
        y0, x0 = int(rows[0]), int(columns[0])
        glass = np.zeros((int(rows[-1]) + 1 - y0, int(columns[-1]) + 1 - x0), bool)
        for row in range(y0 // CELL, (y0 + glass.shape[0] - 1) // CELL + 1):
            for column in range(x0 // CELL, (x0 + glass.shape[1] - 1) // CELL + 1):
                cell = self._found.get((row, column))
                if cell is not None:
                    _paste(glass, cell, row * CELL - y0, column * CELL - x0)
        return glass[np.ix_(rows - y0, columns - x0)]

    def forget_above(self, y: int) -> None:
        """Drops what lies above pixel row `y` of the grid that is labeled; it is not requested again."""
        row = int(y * self._tissue.grid.scale[1] / self._grid.scale[1]) // CELL
        for key in [key for key in self._found if key[0] < row]:
            del self._found[key]

    def _find(self, first: int, last: int) -> None:
        """Computes the rows of cells up to row `last`, and none above row `first` that were not computed before."""
        if self._blocks is None:
            self._next = first
            self._blocks = BlockCache(self._pool, self._grid, self._cells, self._chosen, first, AHEAD)
        for row in range(self._next, last + 1):
            for column in np.flatnonzero(self._chosen[row]).tolist():
                self._find_in_cell(self._blocks, row, column)
            above = self._cells.corner(row + 1, 0)[0]
            self._blocks.forget(above, self._grid.width)
            self._blocks.forget_unreadable_above(above)
            self._next = row + 1

    def _find_in_cell(self, blocks: BlockCache, row: int, column: int) -> None:
        pixels, (top, left) = blocks.window(row, column)
        height, width = pixels.shape[:2]
        unreadable = blocks.unreadable_in(top, top + height, left, left + width)
        glass = find_glass(pixels, self._mpp, self._color, unreadable)
        y, x = row * CELL - top, column * CELL - left
        glass = glass[y : y + CELL, x : x + CELL]
        if glass.any():
            self._found[row, column] = glass.copy()


def _under(start: int, stop: int, scale: float, size: int) -> np.ndarray:
    """Returns which of `size` coarse pixels lies under the center of each pixel, int64 [stop - start]."""
    return np.minimum(((np.arange(start, stop) + 0.5) * scale).astype(np.int64), size - 1)


def _paste(array: np.ndarray, part: np.ndarray, top: int, left: int) -> None:
    """Copies the part that begins at (top, left) of an array, and may extend beyond it."""
    y, x = max(top, 0), max(left, 0)
    part = part[y - top : array.shape[0] - top, x - left : array.shape[1] - left]
    array[y : y + part.shape[0], x : x + part.shape[1]] = part
