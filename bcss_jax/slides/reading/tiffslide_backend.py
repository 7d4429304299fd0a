"""Reads TIFFs that OpenSlide does not open (JPEG 2000 tiles, strips, a damaged end) with tiffslide, in pieces."""

import math
import os
from pathlib import Path

import numpy as np
import tiffslide

from bcss_jax.data.resolution.check import StatedMpp
from bcss_jax.data.resolution.stated import stated_in_tiff
from bcss_jax.slides.reading.backend import Level, Slide, TileError, levels_of, unsupported_pixels

MAX_CHUNK_PIXELS = 4096 * 4096  # of one tile or strip, which is decoded as a whole
AXES = ("YXS", "CYX", "YX")
PLAIN_PHOTOMETRICS = ("RGB", "YCBCR", "MINISBLACK")  # interpretations that need no palette and no inversion


class TiffSlideSlide(Slide):
    """A TIFF with 8-bit RGB or gray, in tiles, in strips, or uncompressed in one piece."""

    format = "tiffslide"

    def __init__(self, path: Path):
        """Opens the slide.

        Raises:
          ValueError: the file is not a TIFF that can be read in parts; the message says what was found.
          DataError: the pixels are not 8-bit colors.
          Exception: tifffile can raise anything for a damaged file.
        """
        self.path = path
        # An open file instead of its name: tiffslide takes names with "::" or "://" for URLs.
        self._file = open(path, "rb")
        try:
            # tiffslide accepts any binary file; its type hints name only fsspec's.
            self._slide = tiffslide.TiffSlide(self._file)  # pyright: ignore[reportArgumentType]
            if not len(self._slide.ts_tifffile.pages):
                raise ValueError("a TIFF file without an image (cut off?)")
            properties = self._slide.properties
            pages = self._slide.ts_tifffile.series[properties["tiffslide.series-index"]].levels
            _require_rgb(path, pages[0].keyframe, properties["tiffslide.series-axes"])
            self.levels = levels_of(list(self._slide.level_dimensions))
            self._pages = [level.keyframe for level in pages[: len(self.levels)]]
            for page in self._pages:
                _require_pieces(page)
            self.stated_mpp = _stated_mpp(self._slide.ts_tifffile, properties, self.levels[0])
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
        except Exception as error:  # every codec raises its own errors; all mean that pixels cannot be decoded
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
        """Returns the level-0 position that tiffslide converts to this position of a level."""
        downsample = self._slide.level_downsamples[level]
        location = math.ceil(position * downsample)
        while int(location / downsample) < position:
            location += 1
        return location

    def _uncompressed(self, page, x: int, y: int, width: int, height: int) -> np.ndarray:
        """Reads a region directly from the file. A memory map is avoided: a failing disk would end the process."""
        channels = page.samplesperpixel
        pixels = np.empty((height, width, channels), np.uint8)
        full_width = x == 0 and width == page.imagewidth
        for rows, top in [(pixels, y)] if full_width else zip(pixels, range(y, y + height), strict=True):
            self._fill(rows, page.dataoffsets[0] + (top * page.imagewidth + x) * channels)
        return pixels

    def _fill(self, array: np.ndarray, offset: int) -> None:
        unread = array.data.cast("B")
        while unread:
            count = os.preadv(self._file.fileno(), [unread], offset)
            if not count:
                raise EOFError("the file ends before its pixels")
            unread, offset = unread[count:], offset + count


def _require_rgb(path: Path, page, axes: str) -> None:
    found = None
    if axes not in AXES:
        found = f"the axes {axes}"
    elif page.dtype != np.uint8:
        found = f"pixels of {page.dtype}"
    elif page.samplesperpixel not in (1, 3, 4):
        found = f"{page.samplesperpixel} channels"
    elif page.photometric.name not in PLAIN_PHOTOMETRICS:
        found = f"the colors {page.photometric.name}"
    elif page.photometric.name == "YCBCR" and page.compression.name == "NONE":
        found = "YCbCr without compression"
    if found is not None:
        raise unsupported_pixels(path, found)


def _require_pieces(page) -> None:
    width, height = page.tags["ImageWidth"].value, page.tags["ImageLength"].value
    if (width, height) != (page.imagewidth, page.imagelength):  # tifffile replaces sizes that are impossible
        raise ValueError(f"a size of {width}x{height} pixels")
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
    """Returns which tiles the file leaves out, bool [rows, columns], or None; tifffile returns such tiles as black."""
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


def _stated_mpp(tiff, properties, level_0: Level) -> tuple[StatedMpp, ...]:
    """Returns what the file says, or else the um per pixel that tiffslide finds in the metadata of other scanners."""
    vendor = properties.get("tiffslide.vendor")
    if vendor not in (None, "generic-tiff", "aperio"):
        try:
            x, y = float(properties.get("tiffslide.mpp-x")), float(properties.get("tiffslide.mpp-y"))
            return (StatedMpp((x, y), f"{vendor}'s metadata"),)
        except (TypeError, ValueError):
            pass
    return stated_in_tiff(tiff, level_0.width, level_0.height)


def _on_white(pixels: np.ndarray) -> np.ndarray:
    """Converts gray, RGB or RGBA pixels, uint8 [H, W, 1, 3 or 4], to RGB over white, uint8 [H, W, 3]."""
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
