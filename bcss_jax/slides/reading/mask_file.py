"""Reads the codes of a mask row by row: TIFFs of any size in tiles or strips, other files as a whole."""

import contextlib
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

import numpy as np

from bcss_jax.data import mask_codes
from bcss_jax.data.decoding.open_image import open_image
from bcss_jax.data.decoding.stored_image import StoredImage, unusable
from bcss_jax.data.decoding.tiff_rows import TiffRows, UnreadableTiff
from bcss_jax.data.image_files import (
    MAX_PIXELS,
    TooManyPixelsError,
    checked_codes,
    number_of_codes,
    read_mask,
    warn_of_file,
)
from bcss_jax.data.mask_codes import PaletteColors
from bcss_jax.errors import DataError, printable
from bcss_jax.labels import IGNORED, OWN_CODES, UNMAPPED

BAND = 1 << 24  # pixels that are read at a time to find the indices of a palette
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

    def block(self, top: int, bottom: int, left: int, right: int) -> np.ndarray:
        """Returns the codes of a block: uint8 [bottom - top, right - left]; of a tiled TIFF, only its tiles are read.

        Raises:
          DataError: as `rows`.
        """
        ...


@contextlib.contextmanager
def open_mask(
    path: Path, codes: str | int, colors: PaletteColors | None = None, warn: Callable[[str], None] = log.warning
) -> Iterator[Mask]:
    """Opens a mask; it accepts and refuses the same files as `image_files.read_mask`, with the same messages.

    A TIFF with one channel may have any size, because it is never read as a whole; of a pyramid, the full resolution is
    read. All other files go through `read_mask`, which limits their size.

    Args:
      path: a PNG or TIFF file.
      codes: its code book, a key of `labels.CODE_BOOKS`, or the number of codes (`labels.readable_codes`).
      colors: what colors stand for in the masks of other slides.
      warn: called with one line about something unusual but usable.

    Raises:
      DataError: as raised by `read_mask`.
    """
    with contextlib.ExitStack() as opened:
        stored = open_image(path)
        mask_codes.check_one_channel(stored)
        tiff, unsupported = None, None
        if stored.format != "TIFF":
            unsupported = f"not a TIFF but a {stored.format}"
        elif stored.orientation != 1:
            unsupported = f"the orientation {stored.orientation}"
        else:
            try:
                tiff = opened.enter_context(TiffRows(path))
            except UnreadableTiff as error:
                unsupported = str(error)
        if tiff is None:
            yield _WholeMask(_read_whole(path, codes, unsupported, colors, warn))
        else:
            warn_of_file(stored, warn)
            yield _MaskRows(stored, tiff, codes, colors, warn)


def labels_of_codes(path: Path, codes: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Returns the labels of codes that `Mask` has read: uint8 of the same shape.

    Args:
      path: of the mask, for messages.
      codes: uint8.
      table: of `labels.lookup_table`.

    Raises:
      DataError: a number is no code: one that a scheme's own codes leave out.
    """
    found = table[codes]
    if (found == UNMAPPED).any():
        known = np.flatnonzero(table != UNMAPPED).tolist()
        values, counts = np.unique(codes[found == UNMAPPED], return_counts=True)
        histogram = ", ".join(f"{value}: {count}" for value, count in zip(values[:8], counts[:8], strict=True))
        raise unusable(
            path,
            f"the codes of the label scheme ({', '.join(map(str, known))})",
            f"{counts.sum()} of {codes.size} pixels with other values (value: pixels = {histogram})",
            f"list them in the scheme's table [{OWN_CODES}], for example as {IGNORED}, or correct the mask",
        )
    return found


def _read_whole(path, codes, unsupported, colors, warn):
    try:
        return read_mask(path, codes, warn, colors)
    except TooManyPixelsError as error:
        raise DataError(
            f"{printable(path)}: expected a TIFF with one channel in tiles or strips, without loss, "
            f"which is required above {MAX_PIXELS} pixels, found {unsupported}; save the mask in this format"
        ) from error


class _WholeMask:
    def __init__(self, mask):
        self.shape, self._mask = mask.shape, mask

    def rows(self, start, stop):
        return self._mask[start:stop]

    def block(self, top, bottom, left, right):
        return self._mask[top:bottom, left:right]


class _MaskRows:
    def __init__(self, stored: StoredImage, tiff: TiffRows, codes: str | int, colors, warn):
        self.shape, self._path, self._tiff, self._codes = (tiff.height, tiff.width), stored.path, tiff, codes
        self._table = None
        if mask_codes.needs_table(stored):
            self._table = mask_codes.code_table(stored, self._used(), number_of_codes(codes), warn, colors)

    def rows(self, start, stop):
        return self.block(start, stop, 0, self.shape[1])

    def block(self, top, bottom, left, right):
        samples = self._samples(top, bottom, left, right)
        return checked_codes(self._path, samples if self._table is None else self._table[samples], self._codes)

    def _used(self) -> np.ndarray:
        """Returns the different samples of the mask, which takes one pass over the file."""
        height, width = self.shape
        step = max(1, BAND // width)
        bands = [
            np.unique(self._samples(start, min(height, start + step), 0, width)) for start in range(0, height, step)
        ]
        return np.unique(np.concatenate(bands))

    def _samples(self, top, bottom, left, right):
        try:
            if (left, right) == (0, self.shape[1]):
                return self._tiff.rows(top, bottom)
            return self._tiff.block(top, bottom, left, right)
        except UnreadableTiff as error:
            expected, remedy = "a readable PNG or TIFF file", "fetch or export the file again"
            raise unusable(self._path, expected, str(error), remedy) from error
