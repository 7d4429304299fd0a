"""Reads regions of a labels.ome.tif, a tiled pyramid whose smaller levels are SubIFDs of the first one."""

import contextlib
import os
import threading
import zlib
from pathlib import Path

import numpy as np
import tifffile

from bcss_jax.common.regular_file import check_regular_file
from bcss_jax.errors import DataError, first_line, printable
from bcss_jax.slides.classes import BACKGROUND
from bcss_jax.slides.grid import Grid

MAX_TILE = 4096  # pixels of a side; a tile is decoded whole, and larger ones are not usual
MAX_TOP = 8192  # pixels of a side of the smallest level, which may be read whole
COMPRESSIONS = (tifffile.COMPRESSION.NONE, tifffile.COMPRESSION.ADOBE_DEFLATE, tifffile.COMPRESSION.DEFLATE)
MAX_ENCODED = 2  # bytes of a compressed tile for each pixel; incompressible tiles grow by less than a thousandth
EXPECTED, REMEDY = "the labels of a slide as a tiled pyramid", "segment the slide again"
COARSER = 1.1  # a level may be coarser than the requested resolution by this factor


class LabelFile:
    """The labels of a slide.

    Tiles are decoded one at a time, so memory does not depend on the size of the slide. Threads may read at the same
    time.
    """

    def __init__(self, path: Path, grid: Grid):
        """Opens the file.

        Args:
          path: of the file.
          grid: its first level must have the size of this grid.

        Raises:
          DataError: the file is missing or damaged, or does not hold the labels of this grid.
        """
        self._path, self._lock = path, threading.Lock()
        check_regular_file(path, EXPECTED, REMEDY)
        with _as_data_error(path), contextlib.ExitStack() as opened:
            self._file = opened.enter_context(open(path, "rb"))
            tiff = opened.enter_context(tifffile.TiffFile(self._file))
            self._levels = [_level(level.keyframe, grid) for level in tiff.series[0].levels]
            (width, height), (_, last) = (grid.width, grid.height), self._levels[-1]
            if self._levels[0][1].shape != (height, width):
                found = " x ".join(map(str, reversed(self._levels[0][1].shape)))
                raise ValueError(f"{found} pixels, but the summary says {width} x {height}")
            if max(last.shape) > MAX_TOP:
                raise ValueError(f"no level smaller than {last.shape[1]} x {last.shape[0]} pixels")
            opened.pop_all()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def sample(self, x: np.ndarray, y: np.ndarray, step: float) -> np.ndarray:
        """Returns the nearest labels at points of the grid.

        Args:
          x: float [w], ascending, in pixels of the grid: pixel 0 covers [0, 1).
          y: float [h], ascending, in pixels of the grid.
          step: distance of neighboring points in pixels of the grid; the level of about that resolution is read.

        Returns:
          uint8 [h, w]; 0 outside the grid.

        Raises:
          DataError: the file is damaged there.
        """
        factor, page = max(
            (level for level in self._levels if level[0] <= max(1, step * COARSER)), key=lambda level: level[0]
        )
        columns, rows = np.floor(x / factor).astype(int), np.floor(y / factor).astype(int)
        labels = np.full((len(y), len(x)), BACKGROUND, np.uint8)
        with _as_data_error(self._path):
            for of_rows, tile_row in _by_tile(rows, page.imagelength, page.tilelength):
                for of_columns, tile_column in _by_tile(columns, page.imagewidth, page.tilewidth):
                    tile = self._tile(page, tile_row, tile_column)
                    inside = np.ix_(rows[of_rows] % page.tilelength, columns[of_columns] % page.tilewidth)
                    labels[of_rows, of_columns] = tile[inside]
        return labels

    def _tile(self, page, row, column) -> np.ndarray:
        """Returns a tile, uint8 [tilelength, tilewidth]. Raises ValueError if it is missing: it is not background."""
        index = row * -(-page.imagewidth // page.tilewidth) + column
        offset, count = page.dataoffsets[index], page.databytecounts[index]
        if not count:
            raise ValueError("a tile is missing")
        if count > MAX_ENCODED * page.tilelength * page.tilewidth:
            raise ValueError(f"a tile of {count} bytes")
        with self._lock:
            self._file.seek(offset)
            encoded = self._file.read(count)
        if len(encoded) != count:
            raise ValueError("the file ends early")
        if page.compression != tifffile.COMPRESSION.NONE:
            # One byte more than there should be shows a tile that would unpack to more.
            encoded = zlib.decompressobj().decompress(encoded, page.tilelength * page.tilewidth + 1)
        if len(encoded) != page.tilelength * page.tilewidth:
            raise ValueError(f"a tile that does not have {page.tilelength * page.tilewidth} pixels")
        return np.frombuffer(encoded, np.uint8).reshape(page.tilelength, page.tilewidth)


def _level(page, grid: Grid) -> tuple[int, tifffile.TiffPage]:
    """Returns the side of a level's pixels in pixels of the grid, and its page.

    Raises ValueError if it is not as expected.
    """
    if not page.is_tiled or page.dtype != np.uint8 or page.samplesperpixel != 1:
        raise ValueError("an image that is not tiled with one channel of 8 bits")
    if page.compression not in COMPRESSIONS or page.predictor != tifffile.PREDICTOR.NONE:
        raise ValueError(f"the compression {page.compression.name}, which bcss_jax.segment does not write")
    if max(page.tilewidth, page.tilelength) > MAX_TILE:
        raise ValueError(f"tiles of {page.tilewidth} x {page.tilelength} pixels")
    factor = 1 << max(0, round(np.log2(grid.width * grid.height / (page.imagewidth * page.imagelength)) / 2))
    for full, size in ((grid.width, page.imagewidth), (grid.height, page.imagelength)):
        if not full // factor <= size <= -(-full // factor) and size != 1:
            raise ValueError(
                f"a level of {page.imagewidth} x {page.imagelength} pixels, which is not the full size divided by a "
                "power of two"
            )
    return factor, page


def _by_tile(pixels, size, tile):
    """Yields slices of the ascending `pixels` that lie in the same tile, with its number.

    Pixels outside are left out.
    """
    first, last = np.searchsorted(pixels, [0, size])
    if first == last:
        return
    numbers = pixels[first:last] // tile
    starts = np.flatnonzero(np.diff(numbers, prepend=-1)) + first
    for start, end in zip(starts, [*starts[1:], last], strict=True):
        yield slice(start, end), int(pixels[start] // tile)


@contextlib.contextmanager
def _as_data_error(path: Path):
    try:
        yield
    except Exception as error:  # tifffile and the decoders raise many kinds of errors for a damaged file
        found = error.strerror if isinstance(error, OSError) and error.strerror else first_line(error)
        raise DataError(f"{printable(os.fspath(path))}: expected {EXPECTED}, found: {found}; {REMEDY}") from error
