"""Deep zoom tiles of labels: for each class a layer of its own, filled or as outlines, as PNG in the class's colour.

The layers lie over the slide pixel for pixel: they have the slide's deep zoom geometry, with levels above its full size
where the labels are finer than the slide.
"""

import functools
import io
import math

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from PIL import Image

from bcss_jax.slides.grid import Grid
from bcss_jax.viewer.deep_zoom import DeepZoom, Tile
from bcss_jax.viewer.label_file import LabelFile

LINE = 2  # pixels: width of outlines
CACHED = 256  # tiles of labels, 66 kB each; all layers of a tile are made of the same one


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
        self._labels = functools.lru_cache(CACHED)(self._read)

    def labels(self, tile: Tile) -> np.ndarray:
        """The nearest labels to the middles of a tile's pixels.

        Returns:
          uint8 [h, w].

        Raises:
          DataError: the file is damaged there.
        """
        return self._labels(tile)[LINE:-LINE, LINE:-LINE]

    def filled(self, tile: Tile, value: int, colour: tuple[int, int, int]) -> bytes:
        """A tile of a class's pixels as PNG; the others are transparent. Errors as `labels`."""
        return png(self.labels(tile) == value, colour)

    def outlined(self, tile: Tile, value: int, colour: tuple[int, int, int]) -> bytes:
        """A tile of the `LINE` outermost pixels of a class's regions as PNG. Errors as `labels`."""
        of_class = self._labels(tile) == value
        side = 2 * LINE + 1
        deep = sliding_window_view(sliding_window_view(of_class, side, axis=0).all(-1), side, axis=1).all(-1)
        return png(of_class[LINE:-LINE, LINE:-LINE] & ~deep, colour)

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def _read(self, tile):
        """With a margin of `LINE` pixels, for the outlines."""
        columns, rows = self.geometry.size(self.geometry.max_level - tile.step.bit_length() + 1)
        step_x, step_y = (tile.step / self._finer / scale for scale in self._grid.scale)
        x = _middles(tile.x, tile.width, columns, self._grid.width, step_x)
        y = _middles(tile.y, tile.height, rows, self._grid.height, step_y)
        return self._file.sample(x, y, min(step_x, step_y))


def _middles(first, count, level_size, grid_size, step):
    """Where the middles of a tile's pixels and of `LINE` more on both sides lie in the grid, along one axis."""
    pixels = np.arange(first - LINE, first + count + LINE)
    # A middle on the border of two pixels belongs to the second, whatever floats make of it; more than half of a level's
    # last pixel may lie outside.
    middles = np.minimum((pixels + 0.5) * step + 1e-6, grid_size - 0.5)
    return np.where(pixels < level_size, middles, grid_size + pixels)


def png(pixels: np.ndarray, colour: tuple[int, int, int]) -> bytes:
    """Pixels of one colour as PNG.

    Args:
      pixels: bool [h, w]; False is transparent.
      colour: RGB.
    """
    image = Image.fromarray(pixels.astype(np.uint8)).convert("P")
    image.putpalette([255, 255, 255, *colour])
    content = io.BytesIO()
    image.save(content, "PNG", bits=1, transparency=0, compress_level=1)
    return content.getvalue()
