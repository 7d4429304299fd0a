"""Reads the codes of a mask row by row: TIFFs of any size in tiles or strips, other files as a whole."""

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

LOSSLESS = {
    COMPRESSION.NONE, COMPRESSION.LZW, COMPRESSION.ADOBE_DEFLATE, COMPRESSION.DEFLATE, COMPRESSION.PACKBITS,
    COMPRESSION.LZMA, COMPRESSION.ZSTD,
}  # fmt: skip
log = logging.getLogger(__name__)


class Mask(Protocol):
    """The codes of a mask.

    Attributes:
      shape: height and width in pixels.
    """

    shape: tuple[int, int]

    def rows(self, start: int, stop: int) -> np.ndarray:
        """Returns the codes of some rows: uint8 [stop - start, width].

        Raises:
          DataError: these rows of the file are damaged, or a value is not a code.
        """
        ...


@contextlib.contextmanager
def open_mask(path: Path, codes: str) -> Iterator[Mask]:
    """Opens a mask; it accepts and refuses the same files as `image_files.read_mask`, with the same messages.

    A TIFF with one channel of 8 or 16 bits may have any size, because it is never read as a whole; of a pyramid, the
    full resolution is read. All other files go through `read_mask`, which limits their size.

    Args:
      path: a PNG or TIFF file.
      codes: its code book, a key of `labels.CODE_BOOKS`.

    Raises:
      DataError: as raised by `read_mask`.
    """
    with contextlib.ExitStack() as opened:
        try:
            tiff = opened.enter_context(TiffRows(path))
            unsupported = _unsupported(tiff.page)
        except UnreadableTiff as error:
            tiff, unsupported = None, str(error)
        if tiff is None or unsupported:
            yield _WholeMask(_read_whole(path, codes, unsupported))
        else:
            warn_of_name(path, "TIFF", log.warning)
            yield _MaskRows(path, tiff, codes)


def _unsupported(page) -> str | None:
    """Returns why a TIFF is left to Pillow, or None: inverted or turned pixels, other types and lossy codecs."""
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
    if page.compression not in LOSSLESS:
        return f"the compression {getattr(page.compression, 'name', page.compression)}"
    return None


def _read_whole(path, codes, unsupported):
    try:
        return read_mask(path, codes)
    except TooManyPixelsError as error:
        raise DataError(
            f"{printable(path)}: expected a TIFF with one channel of 8 or 16 bits in tiles or strips, without loss, "
            f"which is required above {MAX_PIXELS} pixels, found {unsupported}; save the mask in this format"
        ) from error


class _WholeMask:
    def __init__(self, mask):
        self.shape, self._mask = mask.shape, mask

    def rows(self, start, stop):
        return self._mask[start:stop]


class _MaskRows:
    def __init__(self, path, tiff, codes):
        self.shape, self._path, self._tiff, self._codes = (tiff.height, tiff.width), path, tiff, codes

    def rows(self, start, stop):
        try:
            pixels = self._tiff.rows(start, stop)
        except UnreadableTiff as error:
            raise DataError(
                f"{printable(self._path)}: expected a readable PNG or TIFF file, found {error}; "
                "fetch or export the file again"
            ) from error
        return checked_codes(self._path, pixels, self._codes)
