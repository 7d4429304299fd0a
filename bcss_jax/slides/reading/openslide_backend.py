"""Reads slides with OpenSlide: SVS, NDPI, MRXS, SCN, BIF, CZI, DICOM, Philips and generic tiled TIFF."""

import os
from pathlib import Path
from typing import cast

import numpy as np
import openslide

from bcss_jax.data.resolution.check import StatedMpp, mpp_from_density, remark_on_power
from bcss_jax.data.resolution.stated import TAGS, stated_in_tiff_file
from bcss_jax.slides.reading.backend import (
    DEFAULT_TILE,
    Level,
    Slide,
    TileError,
    levels_of,
    on_white,
)

PIXELS_AT_ONCE = (
    4096 * 4096
)  # larger regions are read in strips: OpenSlide returns 4 bytes a pixel, and PIL copies them
TIFF_VENDORS = ("aperio", "generic-tiff")  # their files are TIFFs that list the tiles of each level
OTHER_POWERS = ("mirax",)  # vendors whose cameras magnify too, so that the objective does not tell the size of pixels


class OpenSlideSlide(Slide):
    """A slide in a format that OpenSlide reads."""

    def __init__(self, path: Path):
        """Opens the slide.

        Raises:
          openslide.OpenSlideError: the file is damaged.
          ValueError: the file has another format, an impossible size or too few tiles.
        """
        self.path = path
        try:
            self._slide = openslide.OpenSlide(os.fspath(path))
        except openslide.OpenSlideUnsupportedFormatError as error:
            raise ValueError("another format") from error
        properties = self._slide.properties
        self.format = properties.get("openslide.vendor", "openslide")
        self.levels = levels_of(list(self._slide.level_dimensions))
        if self.format in TIFF_VENDORS:
            _check_tiles(path)
        self.stated_mpp = _stated_mpp(path, properties, self.format, self.levels[0])
        self.bounds = _bounds(properties)
        # OpenSlide's own ratios of the sizes, which give the positions of pixels; `levels` may hold rounded ratios.
        self._downsamples = self._slide.level_downsamples
        self._tiles = [_tile_size(properties, level) for level in range(len(self.levels))]

    def read(self, level: int, x: int, y: int, width: int, height: int) -> np.ndarray:  # noqa: D102
        if self._downsamples[level].is_integer():
            return self._read(level, x, y, width, height)
        # OpenSlide takes positions in level-0 pixels. At positions between pixels of this level it interpolates, by an
        # amount that depends on the region. Reading tile by tile makes a pixel the same in all regions.
        tile_width, tile_height = self._tiles[level]
        size = self.levels[level]
        pixels = np.empty((height, width, 3), np.uint8)
        for top in range(y - y % tile_height, y + height, tile_height):
            for left in range(x - x % tile_width, x + width, tile_width):
                tile = self._read(
                    level, left, top, min(tile_width, size.width - left), min(tile_height, size.height - top)
                )
                _paste(pixels, (x, y), tile, (left, top))
        return pixels

    def _read(self, level: int, x: int, y: int, width: int, height: int) -> np.ndarray:
        rows = max(1, PIXELS_AT_ONCE // width)
        if height > rows:
            parts = [
                self._read(level, x, top, width, min(rows, y + height - top)) for top in range(y, y + height, rows)
            ]
            return np.concatenate(parts)
        downsample = self._downsamples[level]
        try:
            image = self._slide.read_region((round(x * downsample), round(y * downsample)), level, (width, height))
        except openslide.OpenSlideError as error:
            raise TileError(str(error)) from error
        return on_white(image)

    def tile_size(self, level: int) -> tuple[int, int]:  # noqa: D102
        return self._tiles[level]

    def reopen(self) -> None:
        """Opens the file again: after an error, an OpenSlide handle refuses all further reads."""
        self._slide.close()
        try:
            self._slide = openslide.OpenSlide(os.fspath(self.path))
        except openslide.OpenSlideError as error:
            raise OSError(f"does not open any more ({error})") from error

    def close(self) -> None:  # noqa: D102
        self._slide.close()


def _check_tiles(path: Path) -> None:
    """Refuses TIFFs with fewer tiles than their size needs: OpenSlide returns glass in place of those.

    Raises:
      ValueError: the file lists too few tiles.
    """
    import tifffile  # imported here: other formats do not need it

    try:
        with tifffile.TiffFile(path) as tiff:
            pages = [cast(tifffile.TiffPage, page) for page in tiff.pages]
            tilings = [
                (page.imagewidth, page.imagelength, page.tilewidth, page.tilelength, len(page.dataoffsets))
                for page in pages
                if page.is_tiled
            ]
    except Exception:  # tifffile objects to something else, but OpenSlide has opened the file
        return
    for width, height, tile_width, tile_height, listed in tilings:
        expected = -(-width // tile_width) * -(-height // tile_height)
        if listed < expected:
            raise ValueError(f"{listed} tiles for {width}x{height} pixels, which need {expected}")


def _paste(pixels: np.ndarray, origin: tuple[int, int], tile: np.ndarray, position: tuple[int, int]) -> None:
    """Copies the overlap of a tile with a region into the region's `pixels`."""
    left, top = position[0] - origin[0], position[1] - origin[1]
    x0, y0 = max(0, left), max(0, top)
    part = tile[y0 - top : pixels.shape[0] - top, x0 - left : pixels.shape[1] - left]
    pixels[y0 : y0 + part.shape[0], x0 : x0 + part.shape[1]] = part


def _stated_mpp(path: Path, properties, vendor: str, level_0: Level) -> tuple[StatedMpp, ...]:
    """Returns what the slide says: everything in TIFFs of Aperio and of no vendor, else the scanner's value or tags."""
    if vendor in TIFF_VENDORS:
        stated = stated_in_tiff_file(path, level_0.width, level_0.height)
        if stated is not None:
            return stated
    mpp = _numbers(properties, "openslide.mpp-x", "openslide.mpp-y")
    if mpp is not None:
        power = None if vendor in OTHER_POWERS else _numbers(properties, "openslide.objective-power")
        remark = "" if power is None else remark_on_power((mpp[0], mpp[1]), power[0])
        return (StatedMpp((mpp[0], mpp[1]), f"{vendor}'s metadata", remark),)
    density = _numbers(properties, "tiff.XResolution", "tiff.YResolution")
    if density is None:
        return ()
    x, y = density
    return (StatedMpp(mpp_from_density(x, y, properties.get("tiff.ResolutionUnit", "")), TAGS),)


def _bounds(properties) -> tuple[int, int, int, int] | None:
    numbers = _numbers(properties, *(f"openslide.bounds-{name}" for name in ("x", "y", "width", "height")))
    if numbers is None:
        return None
    x, y, width, height = (int(value) for value in numbers)
    return x, y, width, height


def _tile_size(properties, level: int) -> tuple[int, int]:
    size = _numbers(properties, *(f"openslide.level[{level}].tile-{name}" for name in ("width", "height")))
    if size is None or not all(16 <= value <= 4096 for value in size):
        return DEFAULT_TILE
    return int(size[0]), int(size[1])


def _numbers(properties, *names: str) -> tuple[float, ...] | None:
    """Returns the properties of these names as numbers, or None if one is missing or not a number."""
    try:
        return tuple(float(properties[name]) for name in names)
    except (KeyError, ValueError):
        return None
