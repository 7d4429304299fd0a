"""What every backend of the slide reader gives: levels, resolution, and 8-bit RGB pixels of a level on white."""

import abc
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from bcss_jax.errors import DataError, printable

MAX_SIDE = 8_000_000  # pixels; a meter at 0.125 um. What says more is a damaged header
DEFAULT_TILE = (256, 256)  # pieces in which a damaged region is tried where the format has no tiles


class TileError(Exception):
    """A region of a level holds pixels that cannot be decoded. The message is the library's."""


class Level(NamedTuple):
    """One resolution of a slide: its size in pixels and how many level-0 pixels one of its pixels spans."""

    width: int
    height: int
    downsample: float


class Slide(abc.ABC):
    """An open slide.

    Attributes:
      path: of its file.
      format: e.g. "aperio", "generic-tiff", "tiffslide", "png".
      levels: level 0 first, each coarser than the one before.
      mpp: um per pixel of level 0 along x and y as the slide says it, unchecked; None if it says nothing.
      bounds: x, y, width, height of the scanned area in level-0 pixels; None if the slide does not say.
      in_memory: the whole image is held decoded, so that several processes would hold it several times.
    """

    path: Path
    format: str
    levels: tuple[Level, ...]
    mpp: tuple[float, float] | None = None
    bounds: tuple[int, int, int, int] | None = None
    in_memory: bool = False

    @abc.abstractmethod
    def read(self, level: int, x: int, y: int, width: int, height: int) -> np.ndarray:
        """Pixels of a region which lies within a level.

        Args:
          level: index into `levels`.
          x: left edge in pixels of that level.
          y: top edge, likewise.
          width: in pixels of that level.
          height: likewise.

        Returns:
          uint8 [height, width, 3]; transparent and missing parts are white. The same pixel has the same value in every
          region that holds it.

        Raises:
          TileError: something in the region cannot be decoded. `reopen` before the next read.
        """

    def tile_size(self, level: int) -> tuple[int, int]:
        """Width and height of the tiles that a level is stored in: what can be damaged as a whole."""
        return DEFAULT_TILE

    def reopen(self) -> None:  # noqa: B027  most backends need nothing
        """Makes the slide readable again after a `TileError`."""

    @abc.abstractmethod
    def close(self) -> None:
        """Gives the file back; the slide cannot be read any more."""


def other_pixels(path: Path, found: str) -> DataError:
    """The error for a slide whose pixels are no colors of 8 bits."""
    return DataError(f"{printable(path)}: expected a slide with 8-bit RGB or gray, found {found}; save it as 8-bit RGB")


def on_white(image: Image.Image) -> np.ndarray:
    """An RGBA image as uint8 [H, W, 3] over white."""
    alpha = image.getchannel("A")
    extrema = alpha.getextrema()
    if extrema == (255, 255):
        return np.asarray(image.convert("RGB"))
    if extrema == (0, 0):  # nothing was scanned here: most of a sparse slide
        return np.full((image.height, image.width, 3), 255, np.uint8)
    white = Image.new("RGB", image.size, "white")
    white.paste(image, mask=alpha)
    return np.asarray(white)


def levels_of(sizes: list[tuple[int, int]]) -> tuple[Level, ...]:
    """Levels from their sizes in pixels. What is no coarser copy of level 0 is left out, with all that follows.

    The spans are whole numbers where the sizes allow it: a level of half the size is rounded down to whole pixels, but
    its pixels span exactly two.

    Raises:
      ValueError: level 0 has no pixels, or more than a slide can have.
    """
    width, height = sizes[0]
    if not (0 < width <= MAX_SIDE and 0 < height <= MAX_SIDE):
        raise ValueError(f"a size of {width}x{height} pixels")
    levels = [Level(width, height, 1.0)]
    for level_width, level_height in sizes[1:]:
        if level_width < 1 or level_height < 1:
            break
        along = (width, level_width) if width >= height else (height, level_height)  # the longer side tells it best
        ratio = along[0] / along[1]
        whole = round(ratio)
        if _fits(width, level_width, whole) and _fits(height, level_height, whole):
            ratio = float(whole)
        same_picture = all(
            abs(level_size * ratio - size) <= 2 * ratio + 0.01 * size
            for level_size, size in ((level_width, width), (level_height, height))
        )
        if ratio <= levels[-1].downsample or not same_picture:
            break
        levels.append(Level(level_width, level_height, ratio))
    return tuple(levels)


def _fits(size: int, level_size: int, span: int) -> bool:
    return span > 0 and level_size in (max(1, size // span), -(-size // span))
