"""Reads the pages that `main_picture` chose, in tiles or strips, with tifffile's decoders.

It serves TIFFs whose slide other readers do not choose, or whose pixels they misread (`storage`).
"""

from pathlib import Path

import numpy as np
import tifffile

from bcss_jax.data.resolution.stated import stated_in_tiff
from bcss_jax.slides.reading.backend import Slide, TileError, levels_of
from bcss_jax.slides.reading.tiff.inventory import Picture, open_tiff
from bcss_jax.slides.reading.tiff.main_picture import MainPicture, main_picture
from bcss_jax.slides.reading.tiff.storage import PALETTE, meaning_of_alpha

MAX_CHUNK_PIXELS = 4096 * 4096  # of one tile or strip, which is decoded as a whole
INVERTED = 0  # value of the tag PhotometricInterpretation: 0 is white


class TiffPagesSlide(Slide):
    """The pictures of a TIFF that make up the slide, as they are stored (not turned)."""

    format = "tifffile"

    def __init__(self, path: Path):
        """Opens the file, which `contents.contents_of` has accepted.

        Raises:
          ValueError: the picture cannot be read in parts; the message says what was found.
          Exception: tifffile can raise anything for a damaged file.
        """
        self.path, self._tiff = path, open_tiff(path)
        try:
            self._prepare(main_picture(path, self._tiff))
        except BaseException:
            self._tiff.close()
            raise

    def _prepare(self, chosen: MainPicture) -> None:
        _require_chunks(chosen.picture.page)
        levels = [chosen.planes, *((level,) for level in chosen.levels if _alike(level, chosen.picture))]
        self.levels = levels_of([(planes[0].width, planes[0].height) for planes in levels])
        self._pages = [[plane.page for plane in planes] for planes in levels[: len(self.levels)]]
        picture = chosen.picture
        self.stated_mpp = stated_in_tiff(self._tiff, picture.width, picture.height, picture.page)

    def read(self, level: int, x: int, y: int, width: int, height: int) -> np.ndarray:  # noqa: D102
        pages = self._pages[level]
        try:
            parts = [self._stored(page, x, y, width, height) for page in pages]
        except Exception as error:  # every codec raises its own errors; all mean that pixels cannot be decoded
            raise TileError(" ".join(str(error).split())) from error
        pixels = np.concatenate([_colors(page, part) for page, (part, _) in zip(pages, parts, strict=True)], axis=-1)
        pixels = pixels if pixels.shape[-1] == 3 else np.repeat(pixels, 3, axis=-1)
        pixels[np.any([missing for _, missing in parts], axis=0)] = 255
        return pixels

    def tile_size(self, level: int) -> tuple[int, int]:  # noqa: D102
        high, wide = _chunk(self._pages[level][0])
        return wide, high

    def close(self) -> None:  # noqa: D102
        self._tiff.close()

    def _stored(self, page: tifffile.TiffPage, x: int, y: int, width: int, height: int):
        """Returns the stored values of a region, [height, width, channels], and where the file leaves tiles out."""
        high, wide = _chunk(page)
        columns, rows = -(-page.imagewidth // wide), -(-page.imagelength // high)
        pixels = np.empty((height, width, page.samplesperpixel), np.uint8)
        missing = np.zeros((height, width), bool)
        separate = page.planarconfig != 1
        for row in range(y // high, -(-(y + height) // high)):
            for column in range(x // wide, -(-(x + width) // wide)):
                top, left = max(y, row * high), max(x, column * wide)
                bottom, right = min(y + height, (row + 1) * high), min(x + width, (column + 1) * wide)
                inside = np.s_[top - row * high : bottom - row * high, left - column * wide : right - column * wide]
                target = np.s_[top - y : bottom - y, left - x : right - x]
                for plane in range(page.samplesperpixel if separate else 1):
                    decoded = self._decoded(page, (plane * rows + row) * columns + column)
                    if decoded is None:
                        missing[target] = True
                    else:
                        pixels[target][..., plane : plane + decoded.shape[-1]] = decoded[inside]
        return pixels, missing

    def _decoded(self, page: tifffile.TiffPage, index: int) -> np.ndarray | None:
        """Returns a tile or strip, [rows, columns, channels], or None if the file leaves it out."""
        offset, count = page.dataoffsets[index], page.databytecounts[index]
        if not count:
            return None
        file = self._tiff.filehandle
        file.seek(offset)
        content = file.read(count)
        if len(content) != count:
            raise EOFError("the file ends before its pixels")
        decoded = page.decode(content, index, jpegtables=page.jpegtables)[0]
        return None if decoded is None else decoded.reshape(decoded.shape[-3:])


def _chunk(page: tifffile.TiffPage) -> tuple[int, int]:
    """Returns the rows and columns of a tile or strip."""
    if page.is_tiled:
        return page.tilelength, page.tilewidth
    return max(1, min(page.rowsperstrip, page.imagelength)), page.imagewidth


def _require_chunks(page: tifffile.TiffPage) -> None:
    high, wide = _chunk(page)
    if not 0 < high * wide <= MAX_CHUNK_PIXELS:
        raise ValueError(
            f"tiles or strips of {wide}x{high} pixels, which cannot be read in parts; "
            "store it in tiles (vips tiffsave --tile --pyramid)"
        )
    planes = page.samplesperpixel if page.planarconfig != 1 else 1
    expected = planes * -(-page.imagewidth // wide) * -(-page.imagelength // high)
    if len(page.dataoffsets) < expected:
        raise ValueError(f"{len(page.dataoffsets)} of {expected} tiles")


def _alike(picture: Picture, slide: Picture) -> bool:
    """Returns whether a level is stored as the slide is, so that its pixels mean the same."""
    return all(
        getattr(picture.page, name) == getattr(slide.page, name)
        for name in ("samplesperpixel", "bitspersample", "photometric", "extrasamples", "sampleformat")
    ) and picture.page.tags.valueof("Orientation", 1) == slide.page.tags.valueof("Orientation", 1)


def _colors(page: tifffile.TiffPage, stored: np.ndarray) -> np.ndarray:
    """Converts stored values, uint8 [H, W, channels], to gray or RGB over white, uint8 [H, W, 1 or 3]."""
    if page.photometric == PALETTE:
        assert page.colormap is not None  # `storage_of` has looked at it
        return (np.moveaxis(page.colormap, 0, -1)[stored[..., 0]] >> 8).astype(np.uint8)
    if page.samplesperpixel == 1:
        scaled = stored * np.uint8(255 // (2**page.bitspersample - 1))
        return 255 - scaled if page.photometric == INVERTED else scaled
    color, alpha = stored[..., :3], stored[..., 3:].astype(np.uint16)
    meaning = meaning_of_alpha(page) if page.samplesperpixel == 4 else None
    if meaning is None:
        return np.ascontiguousarray(color)
    weighted = color.astype(np.uint16) if meaning == "associated" else (color * alpha + 127) // 255
    return np.minimum(weighted + 255 - alpha, 255).astype(np.uint8)
