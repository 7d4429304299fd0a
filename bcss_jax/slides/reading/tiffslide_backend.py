"""TIFFs that OpenSlide does not open (JPEG 2000 tiles, strips, a damaged end) through tiffslide, piece by piece."""

import math
import os
from pathlib import Path

import numpy as np
import tiffslide

from bcss_jax.slides.reading.backend import Slide, TileError, levels_of, other_pixels
from bcss_jax.slides.reading.resolution import mpp_from_density

MAX_CHUNK_PIXELS = 4096 * 4096  # of one tile or strip, which has to be decoded whole
AXES = ("YXS", "CYX", "YX")
CODED_AS_IS = ("RGB", "YCBCR", "MINISBLACK")  # photometric interpretations that need no palette and no inversion


class TiffSlideSlide(Slide):
    """A TIFF with 8-bit RGB or gray, tiled, in strips, or uncompressed in one piece."""

    format = "tiffslide"

    def __init__(self, path: Path):
        """Opens it.

        Raises:
          ValueError: it is no TIFF that can be read in parts; the message says what was found.
          DataError: its pixels are no colors of 8 bits.
          Exception: whatever tifffile raises at a damaged file.
        """
        self.path = path
        self._file = open(path, "rb")  # a file rather than its name: names with "::" or "://" are URLs to tiffslide
        try:
            self._slide = tiffslide.TiffSlide(self._file)
            if not len(self._slide.ts_tifffile.pages):
                raise ValueError("a TIFF file without an image (cut off?)")
            properties = self._slide.properties
            pages = self._slide.ts_tifffile.series[properties["tiffslide.series-index"]].levels
            _require_rgb(path, pages[0].keyframe, properties["tiffslide.series-axes"])
            self.levels = levels_of(list(self._slide.level_dimensions))
            self._pages = [level.keyframe for level in pages[: len(self.levels)]]
            for page in self._pages:
                _require_pieces(page)
            self.mpp = _mpp(properties)
            composed = "tiffslide.series-composition" in properties
            self._missing = [None if composed else _missing_tiles(page) for page in self._pages]
        except BaseException:
            self._file.close()
            raise

    @property
    def tiled(self) -> bool:
        """Whether level 0 is stored in tiles."""
        return self._pages[0].is_tiled

    def read(self, level: int, x: int, y: int, width: int, height: int) -> np.ndarray:  # noqa: D102
        page = self._pages[level]
        try:
            if _in_one_piece(page):
                return _on_white(self._uncompressed(page, x, y, width, height))
            location = self._location(level, x), self._location(level, y)
            pixels = self._slide.read_region(location, level, (width, height), as_array=True, padding=False)
        except Exception as error:  # each codec has errors of its own; all mean the pixels
            raise TileError(" ".join(str(error).split())) from error
        if pixels.shape[:2] != (height, width):
            raise TileError(f"{pixels.shape[1]}x{pixels.shape[0]} of {width}x{height} pixels")
        pixels = _on_white(pixels)
        missing = self._missing[level]
        if missing is not None:
            _whiten(pixels, missing, page, x, y)
        return pixels

    def tile_size(self, level: int) -> tuple[int, int]:  # noqa: D102
        page = self._pages[level]
        if page.is_tiled:
            return page.tilewidth, page.tilelength
        if _in_one_piece(page):
            return page.imagewidth, 16
        return page.imagewidth, max(1, page.rowsperstrip)

    def close(self) -> None:  # noqa: D102
        self._slide.close()
        self._file.close()

    def _location(self, level: int, position: int) -> int:
        """The level-0 position that tiffslide turns into this position of a level."""
        downsample = self._slide.level_downsamples[level]
        location = math.ceil(position * downsample)
        while int(location / downsample) < position:
            location += 1
        return location

    def _uncompressed(self, page, x: int, y: int, width: int, height: int) -> np.ndarray:
        """The region straight from the file, which is not mapped: where a disk fails, that would end the process."""
        channels = page.samplesperpixel
        pixels = np.empty((height, width, channels), np.uint8)
        whole = x == 0 and width == page.imagewidth
        for part, row in [(pixels, y)] if whole else zip(pixels, range(y, y + height), strict=True):
            self._fill(part, page.dataoffsets[0] + (row * page.imagewidth + x) * channels)
        return pixels

    def _fill(self, array: np.ndarray, offset: int) -> None:
        left = memoryview(array).cast("B")
        while left:
            count = os.preadv(self._file.fileno(), [left], offset)
            if not count:
                raise EOFError("the file ends before its pixels")
            left, offset = left[count:], offset + count


def _require_rgb(path: Path, page, axes: str) -> None:
    found = None
    if axes not in AXES:
        found = f"the axes {axes}"
    elif page.dtype != np.uint8:
        found = f"pixels of {page.dtype}"
    elif page.samplesperpixel not in (1, 3, 4):
        found = f"{page.samplesperpixel} channels"
    elif page.photometric.name not in CODED_AS_IS:
        found = f"the colors {page.photometric.name}"
    elif page.photometric.name == "YCBCR" and page.compression.name == "NONE":
        found = "YCbCr without compression"
    if found is not None:
        raise other_pixels(path, found)


def _require_pieces(page) -> None:
    said = page.tags["ImageWidth"].value, page.tags["ImageLength"].value
    if said != (page.imagewidth, page.imagelength):  # tifffile makes the best of it
        raise ValueError(f"a size of {said[0]}x{said[1]} pixels")
    if _in_one_piece(page):
        return
    rows, columns = (page.tilelength, page.tilewidth) if page.is_tiled else (page.rowsperstrip, page.imagewidth)
    if not (rows > 0 and columns > 0):
        raise ValueError(f"tiles of {columns}x{rows} pixels")
    rows = min(rows, page.imagelength) if not page.is_tiled else rows
    if rows * columns > MAX_CHUNK_PIXELS:
        raise ValueError(
            f"tiles or strips of {columns}x{rows} pixels, which cannot be read in parts; "
            "store it in tiles (vips tiffsave --tile --pyramid)"
        )


def _in_one_piece(page) -> bool:
    return not page.is_tiled and page.is_memmappable and page.planarconfig.name == "CONTIG"


def _missing_tiles(page) -> np.ndarray | None:
    """bool [rows, columns] of tiles that the file leaves out, which tifffile would give as black."""
    if not page.is_tiled:
        return None
    rows, columns = -(-page.imagelength // page.tilelength), -(-page.imagewidth // page.tilewidth)
    counts = np.asarray(page.databytecounts, np.int64)[: rows * columns]
    if counts.size < rows * columns:
        raise ValueError(f"{counts.size} of {rows * columns} tiles")
    missing = (counts == 0).reshape(rows, columns)
    return missing if missing.any() else None


def _whiten(pixels: np.ndarray, missing: np.ndarray, page, x: int, y: int) -> None:
    height, width = pixels.shape[:2]
    tile_rows = np.arange(y, y + height) // page.tilelength
    tile_columns = np.arange(x, x + width) // page.tilewidth
    pixels[missing[np.ix_(tile_rows, tile_columns)]] = 255


def _mpp(properties) -> tuple[float, float] | None:
    """What the scanner says; else the resolution tags, which also hold what programs write for screens."""
    found = properties.get("tiffslide.mpp-x"), properties.get("tiffslide.mpp-y")
    try:
        mpp = float(found[0]), float(found[1])
    except (TypeError, ValueError):
        return None
    if properties.get("tiffslide.vendor") in (None, "generic-tiff"):
        return mpp_from_density(*(10_000 / value if value else 0.0 for value in mpp), "centimeter")
    return mpp


def _on_white(pixels: np.ndarray) -> np.ndarray:
    """Gray, RGB or RGBA uint8 [H, W, 1, 3 or 4] as RGB uint8 [H, W, 3] over white."""
    channels = pixels.shape[-1]
    if channels == 1:
        return np.repeat(pixels, 3, axis=-1)
    if channels == 3:
        return np.ascontiguousarray(pixels)
    color, alpha = pixels[..., :3], pixels[..., 3:]
    if alpha.min() == 255:
        return np.ascontiguousarray(color)
    weight = alpha.astype(np.uint16)
    return ((color * weight + 255 * (255 - weight) + 127) // 255).astype(np.uint8)
