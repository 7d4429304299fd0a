"""A mask of codes, row by row: TIFFs in tiles or strips of any size, other files as a whole."""

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import numpy as np
from tifffile import COMPRESSION, PHOTOMETRIC

from bcss_jax.data.image_files import MAX_PIXELS, TooManyPixelsError, checked_codes, read_mask, warn_of_name
from bcss_jax.errors import DataError, printable
from bcss_jax.slides.reading.tiff_rows import TiffRows, UnreadableTiff

WITHOUT_LOSS = {
    COMPRESSION.NONE, COMPRESSION.LZW, COMPRESSION.ADOBE_DEFLATE, COMPRESSION.DEFLATE, COMPRESSION.PACKBITS,
    COMPRESSION.LZMA, COMPRESSION.ZSTD,
}  # fmt: skip
log = logging.getLogger(__name__)


class Mask(Protocol):
    """Codes of a mask.

    Attributes:
      shape: height and width, pixels.
    """

    shape: tuple[int, int]

    def rows(self, start: int, stop: int) -> np.ndarray:
        """The codes of some rows: uint8 [stop - start, width].

        Raises:
          DataError: the file is damaged there, or a value is no code.
        """


@contextlib.contextmanager
def open_mask(path: Path, codes: str) -> Iterator[Mask]:
    """Opens a mask; what is accepted and refused, and how, is as of `tiles.read_mask`.

    A TIFF of one channel with 8 or 16 bits (of a pyramid the full size) is never read as a whole, and may have any size.
    Whatever else there is goes through `read_mask`, which has a bound.

    Args:
      path: a PNG or TIFF file.
      codes: its code book, a key of `labels.CODE_BOOKS`.

    Raises:
      DataError: as `read_mask`.
    """
    with contextlib.ExitStack() as opened:
        try:
            tiff = opened.enter_context(TiffRows(path))
            odd = _odd(tiff.page)
        except UnreadableTiff as error:
            odd = str(error)
        if odd:
            yield _Whole(_read_whole(path, codes, odd))
        else:
            warn_of_name(path, "TIFF", log.warning)
            yield _Rows(path, tiff, codes)


def _odd(page) -> str | None:
    """What of a TIFF is left to Pillow to understand: inverted or turned pixels, other types, lossy codecs."""
    if page.sampleformat != 1 or page.bitspersample not in (8, 16):
        return f"{page.dtype} pixels of {page.bitspersample} bits"
    if page.photometric != PHOTOMETRIC.MINISBLACK and (page.photometric, page.bitspersample) != (
        PHOTOMETRIC.PALETTE,
        8,
    ):
        return f"the color mode {getattr(page.photometric, 'name', page.photometric)}"
    orientation = page.tags.valueof("Orientation", 1)
    if orientation != 1 or page.fillorder != 1:
        return f"the orientation {orientation} and fill order {int(page.fillorder)}"
    if page.compression not in WITHOUT_LOSS:
        return f"the compression {getattr(page.compression, 'name', page.compression)}"
    return None


def _read_whole(path, codes, odd):
    try:
        return read_mask(path, codes)
    except TooManyPixelsError as error:
        raise DataError(
            f"{printable(path)}: expected a TIFF with one channel of 8 or 16 bits in tiles or strips, without loss, as it must be "
            f"above {MAX_PIXELS} pixels, found {odd}; save the mask like that"
        ) from error


class _Whole:
    def __init__(self, mask):
        self.shape, self._mask = mask.shape, mask

    def rows(self, start, stop):
        return self._mask[start:stop]


class _Rows:
    def __init__(self, path, tiff, codes):
        self.shape, self._path, self._tiff, self._codes = (tiff.height, tiff.width), path, tiff, codes

    def rows(self, start, stop):
        try:
            pixels = self._tiff.rows(start, stop)
        except UnreadableTiff as error:
            raise DataError(
                f"{printable(self._path)}: expected a readable PNG or TIFF file, found {error}; fetch or export the file again"
            ) from error
        return checked_codes(self._path, pixels, self._codes)
