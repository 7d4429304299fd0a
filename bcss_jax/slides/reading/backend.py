"""The interface of every backend that reads slides: levels, resolution, and 8-bit RGB pixels on white."""

import abc
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from bcss_jax.data.resolution.check import StatedMpp, first_stated
from bcss_jax.errors import DataError, printable

MAX_SIDE = 8_000_000  # pixels, a meter at 0.125 um; a header that claims more is damaged
PALETTE_NOTE = "its colors are those of a palette, which scans do not have: is it a mask of labels?"
DEFAULT_TILE = (256, 256)  # size of the pieces in which a damaged region is retried if the format has no tiles


class TileError(Exception):
    """Raised when a region of a level holds pixels that cannot be decoded. The message is the library's."""


class Level(NamedTuple):
    """One resolution of a slide: its size in pixels, and how many level-0 pixels one of its pixels spans."""

    width: int
    height: int
    downsample: float


class Slide(abc.ABC):
    """An open slide.

    Attributes:
      path: the slide's file.
      format: for example "aperio", "generic-tiff", "tiffslide" or "png".
      levels: level 0 first, each coarser than the one before.
      stated_mpp: what the slide says about the um per pixel of level 0, unchecked, the source to believe first.
      bounds: x, y, width, height of the scanned area in level-0 pixels; None if the slide does not store it.
      notes: what a user should know of how the slide is read, a line each without the slide's name.
      in_memory: whether the whole decoded image is held in memory, so that each further process would need a copy.
    """

    path: Path
    format: str
    levels: tuple[Level, ...]
    stated_mpp: tuple[StatedMpp, ...] = ()
    bounds: tuple[int, int, int, int] | None = None
    notes: tuple[str, ...] = ()
    in_memory: bool = False

    @property
    def mpp(self) -> tuple[float, float] | None:
        """What the source to believe first states: um per pixel along x and y, unchecked; None if none is stated."""
        return first_stated(self.stated_mpp)

    @abc.abstractmethod
    def read(self, level: int, x: int, y: int, width: int, height: int) -> np.ndarray:
        """Returns the pixels of a region that lies within a level.

        Args:
          level: index into `levels`.
          x: left edge in pixels of that level.
          y: top edge in pixels of that level.
          width: in pixels of that level.
          height: in pixels of that level.

        Returns:
          uint8 [height, width, 3]; transparent and missing areas are white. A pixel has the same value in every region
          that contains it.

        Raises:
          TileError: part of the region cannot be decoded. Call `reopen` before the next read.
        """

    def tile_size(self, level: int) -> tuple[int, int]:
        """Returns the width and height of the tiles that a level is stored in; damage affects whole tiles."""
        return DEFAULT_TILE

    def reopen(self) -> None:  # noqa: B027  most backends have nothing to do
        """Makes the slide readable after a `TileError`."""

    @abc.abstractmethod
    def close(self) -> None:
        """Closes the file; the slide cannot be read afterward."""


def unsupported_pixels(path: Path, found: str) -> DataError:
    """Returns the error for a slide whose pixels are not 8-bit colors."""
    return DataError(f"{printable(path)}: expected a slide with 8-bit RGB or gray, found {found}; save it as 8-bit RGB")


def on_white(image: Image.Image) -> np.ndarray:
    """Returns an RGBA image over white: uint8 [H, W, 3]."""
    alpha = image.getchannel("A")
    extrema = alpha.getextrema()
    if extrema == (255, 255):
        return np.asarray(image.convert("RGB"))
    if extrema == (0, 0):  # nothing was scanned here; this is most of a sparse slide
        return np.full((image.height, image.width, 3), 255, np.uint8)
    white = Image.new("RGB", image.size, "white")
    white.paste(image, mask=alpha)
    return np.asarray(white)


def levels_of(sizes: list[tuple[int, int]]) -> tuple[Level, ...]:
    """Returns the levels of a slide, given their sizes in pixels.

    The first size that is not a coarser copy of level 0 is left out, and so are all sizes after it. Downsample factors
    are whole numbers where the sizes allow it: half of an odd size is rounded to whole pixels, but a pixel of that
    level still spans exactly two level-0 pixels.

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
        longer = (width, level_width) if width >= height else (height, level_height)  # gives the more precise ratio
        ratio = longer[0] / longer[1]
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
