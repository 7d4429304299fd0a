"""Reads the stored samples of a TIFF by rows: it need not fit into memory.

One row of its tiles or strips is decoded and held at a time.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import numpy as np
import tifffile
from tifffile import COMPRESSION, PLANARCONFIG

from bcss_jax.errors import first_line

LOSSLESS = (
    COMPRESSION.NONE, COMPRESSION.CCITTRLE, COMPRESSION.CCITTFAX3, COMPRESSION.CCITTFAX4, COMPRESSION.LZW,
    COMPRESSION.ADOBE_DEFLATE, COMPRESSION.DEFLATE, COMPRESSION.PACKBITS, COMPRESSION.LZMA, COMPRESSION.ZSTD,
)  # fmt: skip
LOSSY = (COMPRESSION.OJPEG, COMPRESSION.JPEG, COMPRESSION.WEBP)

MAX_HELD = 1 << 28  # pixels of a row of tiles or of a strip: 1,342 pixel rows if the slide is 200,000 pixels wide


class UnreadableTiff(Exception):
    """Raised when a TIFF cannot be read. The message says why in a few words, without the file's name."""


class TiffRows:
    """The stored samples of the first image of a TIFF (level 0 of a pyramid).

    Attributes:
      width: pixels.
      height: pixels.
      channels: samples of a pixel.
      dtype: of the pixels.
      page: tifffile's description of the image.
    """

    def __init__(self, path: Path, *, headers_only: bool = False):
        """Opens the file; use the object in a `with` statement, which closes it.

        Args:
          path: the file.
          headers_only: do not refuse a file because its tiles or strips are too large.

        Raises:
          UnreadableTiff: the file is not a TIFF, its compression is not supported, or it can only be decoded as a whole
            but is too large for that.
        """
        with _one_error(), contextlib.ExitStack() as opened:
            self._file = opened.enter_context(open(path, "rb"))
            tiff = opened.enter_context(tifffile.TiffFile(self._file))
            page = self.page = cast(tifffile.TiffPage, tiff.pages[0])
            if page.imagedepth != 1 or page.dtype is None:
                raise ValueError(f"a depth of {page.imagedepth} and samples of {page.bitspersample} bits")
            if page.compression not in LOSSLESS + LOSSY:
                raise ValueError(f"the compression {getattr(page.compression, 'name', page.compression)}")
            self.width, self.height, self.channels = page.imagewidth, page.imagelength, page.samplesperpixel
            self._planes = 1 if page.planarconfig == PLANARCONFIG.CONTIG else self.channels
            # The position of an uncompressed pixel in the file is known, even if all pixels are in one strip.
            self._mapped = page.compression == 1 and not page.is_tiled and page.bitspersample in (8, 16, 32, 64)
            self._mapped &= page.predictor == 1 and page.fillorder == 1 and len(page.dataoffsets) == 1
            self._mapped &= self.channels == 1
            self.dtype = np.dtype(np.uint8) if page.dtype == bool else np.dtype(page.dtype)
            if page.is_tiled:
                self._high, self._wide = page.tilelength, page.tilewidth
            else:
                self._high, self._wide = min(page.rowsperstrip, self.height), self.width
            if min(self.width, self.height, self._high, self._wide) < 1:
                raise ValueError("an image or tiles without pixels")
            self._columns = -(-self.width // self._wide)
            if not (self._mapped or headers_only) and self._columns * self._wide * self._high > MAX_HELD:
                what = f"tiles of {self._wide}x{self._high}" if page.is_tiled else f"strips of {self._high} rows"
                raise ValueError(f"{what} in {self.width}x{self.height} pixels, too large to be decoded one by one")
            self._pieces = self._columns * -(-self.height // self._high)  # of one plane
            pieces = self._pieces * self._planes
            if not pieces == len(page.dataoffsets) == len(page.databytecounts):
                raise ValueError(f"{len(page.dataoffsets)} tiles or strips instead of {pieces}")
            self._close = opened.pop_all().close
        self._last_decoded: tuple[int, np.ndarray] = (
            -1,
            np.empty((0, 0, 0), self.dtype),
        )  # number of the piece, pixels

    def __enter__(self) -> "TiffRows":
        """Returns the object itself."""
        return self

    def __exit__(self, *_) -> None:
        """Closes the file."""
        self._close()

    def rows(self, start: int, stop: int) -> np.ndarray:
        """Returns the samples of some rows, [stop - start, width] or [stop - start, width, channels] of `dtype`.

        Reading in ascending order is fastest: nothing is decoded twice.

        Raises:
          UnreadableTiff: these rows of the file are damaged or cut off.
        """
        if not 0 <= start < stop <= self.height:
            raise ValueError(f"no rows {start} to {stop} in {self.height}")
        with _one_error():
            if self._mapped:
                return self._from_file(start, stop)
            pixels = np.empty((stop - start, self.width, self.channels), self.dtype)
            for number in range(start // self._high, -(-stop // self._high)):
                top = number * self._high
                first, last = max(start, top), min(stop, top + self._high)
                pixels[first - start : last - start] = self._decoded(number)[first - top : last - top]
            return pixels[..., 0] if self.channels == 1 else pixels

    def block(self, top: int, bottom: int, left: int, right: int) -> np.ndarray:
        """Returns the samples of a block, [bottom - top, right - left(, channels)] of `dtype`.

        Only the tiles that it touches are decoded, and nothing is kept for the next call; of strips, whole rows are.

        Raises:
          UnreadableTiff: these tiles of the file are damaged or cut off.
        """
        if not (0 <= top < bottom <= self.height and 0 <= left < right <= self.width):
            raise ValueError(f"no block ({left}, {top}) to ({right}, {bottom}) in {self.width}x{self.height}")
        if self._columns == 1:
            return self.rows(top, bottom)[:, left:right]
        with _one_error():
            pixels = np.empty((bottom - top, right - left, self.channels), self.dtype)
            for row in range(top // self._high, -(-bottom // self._high)):
                for column in range(left // self._wide, -(-right // self._wide)):
                    y, x = row * self._high, column * self._wide
                    tile = np.empty(
                        (min(self._high, self.height - y), min(self._wide, self.width - x), self.channels), self.dtype
                    )
                    self._decode_tile(tile, row, column)
                    y0, y1, x0, x1 = max(y, top), min(y + self._high, bottom), max(x, left), min(x + self._wide, right)
                    pixels[y0 - top : y1 - top, x0 - left : x1 - left] = tile[y0 - y : y1 - y, x0 - x : x1 - x]
            return pixels[..., 0] if self.channels == 1 else pixels

    def _from_file(self, start, stop):
        stride = self.width * self.dtype.itemsize
        order = self.page.parent.byteorder
        content = self._bytes(self.page.dataoffsets[0] + start * stride, (stop - start) * stride)
        return np.frombuffer(content, self.dtype.newbyteorder(order)).reshape(-1, self.width).astype(self.dtype)

    def _decoded(self, number):
        """Returns a row of tiles or a strip, [up to _high, width, channels], and keeps it for the next call."""
        if self._last_decoded[0] != number:
            self._last_decoded = (-1, np.empty((0, 0, 0), self.dtype))  # freed first: memory for two is not needed
            rows = min(self._high, self.height - number * self._high)
            pixels = np.empty((rows, self.width, self.channels), self.dtype)
            for column in range(self._columns):
                self._decode_tile(pixels[:, column * self._wide : (column + 1) * self._wide], number, column)
            self._last_decoded = (number, pixels)
        return self._last_decoded[1]

    def _decode_tile(self, target, row, column):
        """Writes the samples of a tile or strip into an array [h, w, channels]."""
        for plane in range(self._planes):
            of_plane = target[..., slice(None) if self._planes == 1 else slice(plane, plane + 1)]
            index = plane * self._pieces + row * self._columns + column
            of_plane[...] = self._piece(index, of_plane.shape)

    def _piece(self, index, shape):
        """Returns the samples of one tile or strip that lie in the image, of that shape or one number for all."""
        offset, count = self.page.dataoffsets[index], self.page.databytecounts[index]
        if not offset and not count:  # GDAL's "sparse" files leave out empty tiles
            return self.page.nodata
        content = self._bytes(offset, count)
        decoded = self.page.decode(content, index, jpegtables=self.page.jpegtables, jpegheader=self.page.jpegheader)[0]
        found = None if decoded is None else decoded[0, : shape[0], : shape[1]]
        if found is None or found.shape != shape:
            raise ValueError("a tile or strip with too few pixels")
        return found

    def _bytes(self, offset, count):
        self._file.seek(offset)
        content = self._file.read(count)
        if len(content) != count or not count:
            raise ValueError("a file that ends early")
        return content


@contextlib.contextmanager
def _one_error() -> Iterator[None]:
    try:
        yield
    except UnreadableTiff:
        raise
    except OSError as error:
        raise UnreadableTiff(error.strerror or first_line(error)) from error
    except Exception as error:  # for a damaged file, tifffile and the decoders raise almost anything
        raise UnreadableTiff(first_line(error)) from error
