"""Rows of a TIFF that need not fit into memory: of its tiles or strips, one row at a time is decoded and held."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tifffile

from bcss_jax.errors import first_line

MAX_HELD = 1 << 28  # pixels of a row of tiles, or of a strip: 1,342 rows of a slide that is 200,000 pixels wide


class UnreadableTiff(Exception):
    """What is wrong with the file, in a few words without its name."""


class TiffRows:
    """The first image of a TIFF (level 0 of a pyramid) with one channel.

    Attributes:
      width: pixels.
      height: likewise.
      dtype: of the pixels.
      page: what tifffile knows of the image.
    """

    def __init__(self, path: Path):
        """Opens it; to be closed, or used in a `with` statement.

        Raises:
          UnreadableTiff: it is no TIFF, has several channels, or can only be decoded as a whole and is too large for that.
        """
        with _one_error(), contextlib.ExitStack() as opened:
            self._file = opened.enter_context(open(path, "rb"))
            tiff = opened.enter_context(tifffile.TiffFile(self._file))
            page = self.page = tiff.pages[0]
            if page.samplesperpixel != 1 or page.imagedepth != 1 or page.dtype is None:
                raise ValueError(f"{page.samplesperpixel} channels of {page.bitspersample} bits")
            self.width, self.height = page.imagewidth, page.imagelength
            # Uncompressed, pixels have a known place in the file even if all are one strip.
            self._mapped = page.compression == 1 and not page.is_tiled and page.bitspersample in (8, 16, 32, 64)
            self._mapped &= page.predictor == 1 and page.fillorder == 1 and len(page.dataoffsets) == 1
            self.dtype = np.dtype(page.dtype)
            if page.is_tiled:
                self._high, self._wide = page.tilelength, page.tilewidth
            else:
                self._high, self._wide = min(page.rowsperstrip, self.height), self.width
            if min(self.width, self.height, self._high, self._wide) < 1:
                raise ValueError("an image or tiles without pixels")
            self._columns = -(-self.width // self._wide)
            if not self._mapped and self._columns * self._wide * self._high > MAX_HELD:
                what = f"tiles of {self._wide}x{self._high}" if page.is_tiled else f"strips of {self._high} rows"
                raise ValueError(f"{what} in {self.width}x{self.height} pixels, too large to be decoded one by one")
            pieces = self._columns * -(-self.height // self._high)
            if not pieces == len(page.dataoffsets) == len(page.databytecounts):
                raise ValueError(f"{len(page.dataoffsets)} tiles or strips in place of {pieces}")
            self._close = opened.pop_all().close
        self._held: tuple[int, np.ndarray | None] = (-1, None)

    def __enter__(self) -> "TiffRows":
        """Itself."""
        return self

    def __exit__(self, *_) -> None:
        """Closes the file."""
        self._close()

    def rows(self, start: int, stop: int) -> np.ndarray:
        """The pixels of some rows, [stop - start, width] of `dtype`. Cheap in ascending order: nothing is decoded twice.

        Raises:
          UnreadableTiff: the file is damaged there, or cut off.
        """
        if not 0 <= start < stop <= self.height:
            raise ValueError(f"no rows {start} to {stop} in {self.height}")
        with _one_error():
            if self._mapped:
                return self._from_file(start, stop)
            found = np.empty((stop - start, self.width), self.dtype)
            for number in range(start // self._high, -(-stop // self._high)):
                top = number * self._high
                first, last = max(start, top), min(stop, top + self._high)
                found[first - start : last - start] = self._decoded(number)[first - top : last - top]
            return found

    def _from_file(self, start, stop):
        stride = self.width * self.dtype.itemsize
        order = self.page.parent.byteorder
        content = self._bytes(self.page.dataoffsets[0] + start * stride, (stop - start) * stride)
        return np.frombuffer(content, self.dtype.newbyteorder(order)).reshape(-1, self.width).astype(self.dtype)

    def _decoded(self, number):
        """A row of tiles, or a strip: [up to _high, width]; the last one is kept."""
        if self._held[0] != number:
            self._held = (-1, None)  # two of them need not be held
            pixels = np.empty((min(self._high, self.height - number * self._high), self.width), self.dtype)
            for column in range(self._columns):
                target = pixels[:, column * self._wide : (column + 1) * self._wide]
                target[...] = self._piece(number * self._columns + column, target.shape)
            self._held = (number, pixels)
        return self._held[1]

    def _piece(self, index, shape):
        offset, count = self.page.dataoffsets[index], self.page.databytecounts[index]
        if not offset and not count:  # GDAL's "sparse" files leave out what is empty
            return self.page.nodata
        decoded = self.page.decode(self._bytes(offset, count), index)[0]
        return decoded.reshape(decoded.shape[-3:-1])[: shape[0], : shape[1]]

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
    except Exception as error:  # of a damaged file tifffile and the decoders raise almost anything
        raise UnreadableTiff(first_line(error)) from error
