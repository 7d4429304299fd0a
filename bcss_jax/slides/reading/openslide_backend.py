"""Slides through OpenSlide: SVS, NDPI, MRXS, SCN, BIF, CZI, DICOM, Philips and generic tiled TIFF."""

import os
from pathlib import Path

import numpy as np
import openslide

from bcss_jax.slides.reading.backend import DEFAULT_TILE, Level, Slide, TileError, levels_of, on_white, other_pixels
from bcss_jax.slides.reading.resolution import mpp_from_density

PIXELS_AT_ONCE = 4096 * 4096  # more is read in strips: OpenSlide gives 4 bytes a pixel, and PIL copies them
LISTED = ("aperio", "generic-tiff")  # vendors whose files are TIFFs that list the tiles of each level
FROM_TAGS = ("generic-tiff",)  # vendors whose mpp OpenSlide takes from the TIFF's resolution tags


class OpenSlideSlide(Slide):
    """A slide that OpenSlide knows."""

    def __init__(self, path: Path):
        """Opens it.

        Raises:
          openslide.OpenSlideError: it is damaged.
          ValueError: it is another format, or has an impossible size or too few tiles.
          DataError: its pixels are no colors of 8 bits.
        """
        self.path = path
        try:
            self._slide = openslide.OpenSlide(os.fspath(path))
        except openslide.OpenSlideUnsupportedFormatError as error:
            raise ValueError("another format") from error
        properties = self._slide.properties
        self.format = properties.get("openslide.vendor", "openslide")
        self.levels = levels_of(list(self._slide.level_dimensions))
        if self.format in LISTED:
            _check_tiles(path, self.levels[0])
        self.mpp = _mpp(properties, self.format)
        self.bounds = _bounds(properties)
        # Where a level's pixel lies: OpenSlide's own quotient of the sizes, of which ours keeps the whole number.
        self._downsamples = self._slide.level_downsamples
        self._tiles = [_tile_size(properties, level) for level in range(len(self.levels))]

    def read(self, level: int, x: int, y: int, width: int, height: int) -> np.ndarray:  # noqa: D102
        if self._downsamples[level].is_integer():
            return self._read(level, x, y, width, height)
        # OpenSlide takes positions in level-0 pixels. Between pixels of this level it interpolates, by an amount that
        # differs from region to region; read tile by tile, a pixel is the same in all of them.
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
        """OpenSlide refuses everything after an error; only a new handle reads on."""
        self._slide.close()
        try:
            self._slide = openslide.OpenSlide(os.fspath(self.path))
        except openslide.OpenSlideError as error:
            raise OSError(f"does not open any more ({error})") from error

    def close(self) -> None:  # noqa: D102
        self._slide.close()


def _check_tiles(path: Path, level_0: Level) -> None:
    """What OpenSlide does not say.

    Tiles that a damaged header promises and the file does not list pass for glass; of 16 bits only the upper 8 are given,
    which is black if just 12 of them are used; of channels that are no colors the first one is given as gray.
    """
    import tifffile  # not needed for other formats

    try:
        with tifffile.TiffFile(path) as tiff:
            pages = [
                (page.imagewidth, page.imagelength, page.tilewidth, page.tilelength, len(page.dataoffsets))
                for page in tiff.pages
                if page.is_tiled
            ]
            depths = [
                (int(page.bitspersample), int(page.samplesperpixel))
                for page in tiff.pages
                if (page.imagewidth, page.imagelength) == level_0[:2]
            ]
    except Exception:  # whatever else is odd about it, OpenSlide has opened it
        return
    for width, height, tile_width, tile_height, listed in pages:
        expected = -(-width // tile_width) * -(-height // tile_height)
        if listed < expected:
            raise ValueError(f"{listed} tiles for {width}x{height} pixels, which are {expected}")
    for bits, channels in depths:
        if bits > 8:
            raise other_pixels(path, f"{bits} bits per channel")
        if channels > 4:
            raise other_pixels(path, f"{channels} channels")


def _paste(pixels: np.ndarray, origin: tuple[int, int], tile: np.ndarray, position: tuple[int, int]) -> None:
    """Copies the part of a tile that lies in a region."""
    left, top = position[0] - origin[0], position[1] - origin[1]
    x0, y0 = max(0, left), max(0, top)
    part = tile[y0 - top : pixels.shape[0] - top, x0 - left : pixels.shape[1] - left]
    pixels[y0 : y0 + part.shape[0], x0 : x0 + part.shape[1]] = part


def _mpp(properties, vendor: str) -> tuple[float, float] | None:
    """What the scanner says; else the resolution tags of the TIFF."""
    mpp = _numbers(properties, "openslide.mpp-x", "openslide.mpp-y")
    if mpp is not None and vendor in FROM_TAGS:
        return mpp_from_density(*(10_000 / value if value else 0.0 for value in mpp), "centimeter")
    if mpp is None:
        density = _numbers(properties, "tiff.XResolution", "tiff.YResolution")
        if density is not None:
            mpp = mpp_from_density(*density, properties.get("tiff.ResolutionUnit", ""))
    return mpp


def _bounds(properties) -> tuple[int, int, int, int] | None:
    found = _numbers(properties, *(f"openslide.bounds-{name}" for name in ("x", "y", "width", "height")))
    return None if found is None else tuple(int(value) for value in found)


def _tile_size(properties, level: int) -> tuple[int, int]:
    found = _numbers(properties, *(f"openslide.level[{level}].tile-{name}" for name in ("width", "height")))
    if found is None or not all(16 <= value <= 4096 for value in found):
        return DEFAULT_TILE
    return int(found[0]), int(found[1])


def _numbers(properties, *names: str) -> tuple[float, ...] | None:
    """The numbers under some names, if all are there."""
    try:
        return tuple(float(properties[name]) for name in names)
    except (KeyError, ValueError):
        return None
