"""The truth of a slide: a mask of codes on the slide's grid, read in bands of rows, so that it may have any size."""

import contextlib
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from bcss_jax.errors import ConfigError, DataError, printable
from bcss_jax.labels import LabelScheme, lookup_table
from bcss_jax.slides.grid import Grid, nearest_indices
from bcss_jax.slides.reading.mask_file import Mask, open_mask

BAND = 1 << 22  # pixels that are read at a time, of the mask and of the grid


class TruthError(DataError):
    """A mask that cannot be the truth of a slide, with which nothing is wrong."""


class Truth:
    """What is known of a slide.

    Attributes:
      shape: height and width of the grid.
      region: rows and columns of a region to score besides, or None.
    """

    def __init__(
        self, path: Path, mask: Mask, table: np.ndarray, scheme: LabelScheme, grid: Grid, region: tuple | None
    ):
        """As `open_truth` makes it; `table` gives the label of a code, `region` rows and columns."""
        self.shape, self.region = (grid.height, grid.width), region
        self._path, self._mask, self._table, self._scheme = path, mask, table, scheme
        self._rows, self._columns = (
            nearest_indices(size, given) for size, given in zip(self.shape, mask.shape, strict=True)
        )

    def bands(self, start: int = 0, stop: int | None = None) -> Iterator[tuple[int, int]]:
        """First and last (exclusive) rows of the bands to read the grid in, or a part of it."""
        stop = self.shape[0] if stop is None else stop
        # A row of the grid comes from so many pixels of the mask.
        pixels = max(self.shape[1], math.ceil(self._mask.shape[0] / self.shape[0]) * self._mask.shape[1])
        step = max(1, BAND // pixels)
        for first in range(start, stop, step):
            yield first, min(stop, first + step)

    def rows(self, start: int, stop: int) -> np.ndarray:
        """The labels of some rows of the grid: uint8 [stop - start, width], the scheme's ignored label where nothing is known.

        Raises:
          DataError: the mask is damaged there, or holds a value that is no code.
        """
        # To where the next row begins, so that no row of the mask is passed over unchecked.
        first = self._rows[start] if start else 0
        last = self._rows[stop] if stop < self.shape[0] else self._mask.shape[0]
        last = max(last, self._rows[stop - 1] + 1)
        codes = self._mask.rows(int(first), int(last))
        if self._mask.shape != self.shape:
            codes = codes[np.ix_(self._rows[start:stop] - first, self._columns)]
        return self._table[codes]

    def resized(self, height: int, width: int) -> np.ndarray:
        """The labels at the size of a thumbnail, by nearest neighbor: uint8 [height, width]; errors as `rows`."""
        rows, columns = (nearest_indices(new, old) for new, old in zip((height, width), self.shape, strict=True))
        return np.stack([self.rows(row, row + 1)[0, columns] for row in rows.tolist()])

    def check(self) -> None:
        """Reads all of it once.

        Raises:
          DataError: as `rows`, or there is nothing to score.
        """
        parts = [None] if self.region is None else [None, self.region]
        found = np.zeros((len(parts), 256), bool)
        for start, stop in self.bands():
            labels = self.rows(start, stop)
            for seen, part in zip(found, parts, strict=True):
                seen |= np.bincount(part_of(labels, start, part).ravel(), minlength=256) > 0
        for seen, part in zip(found, parts, strict=True):
            if not seen[list(self._scheme.evaluated)].any():
                raise self.nothing_to_score(part)

    def nothing_to_score(self, region: tuple | None) -> DataError:
        """The error for a mask, or a region of it, without a pixel of the classes."""
        return DataError(
            f"{printable(self._path)}: expected pixels of {', '.join(self._scheme.evaluated_names)}, found none in "
            f"{'it' if region is None else 'that region'}; check the mask, its codes (--truth_codes) and the region"
        )


def part_of(band: np.ndarray, start: int, part: tuple[slice, slice] | None) -> np.ndarray:
    """The pixels of a band, which begins at row `start`, that lie in a part of the grid (None: all of it)."""
    if part is None:
        return band
    rows, columns = part
    return band[max(0, rows.start - start) : max(0, rows.stop - start), columns]


@contextlib.contextmanager
def open_truth(
    path: Path, scheme: LabelScheme, codes: str, grid: Grid, region: tuple[int, int, int, int] | None
) -> Iterator[Truth]:
    """Opens a mask, to be brought onto the grid by nearest neighbor.

    Args:
      path: PNG or TIFF of codes, of the size of the slide's level 0 or of the grid.
      scheme: of the model.
      codes: its code book, "bcss22" or "kaggle3".
      grid: the slide's.
      region: x, y, width, height in level-0 pixels to be scored besides the whole, or None.

    Raises:
      DataError: it cannot be read, or has another size.
      ConfigError: the codes cannot express the scheme, or the region does not lie on the slide.
    """
    try:
        table = lookup_table(scheme, codes)
    except ValueError as error:
        raise ConfigError(f"--truth_codes={codes}: {error}") from error
    width, height = (round(size * along) for size, along in zip((grid.width, grid.height), grid.scale, strict=True))
    with open_mask(path, codes) as mask:
        if mask.shape not in ((height, width), (grid.height, grid.width)):
            raise DataError(
                f"{printable(path)}: expected {width}x{height} pixels as the slide has (or {grid.width}x{grid.height} at "
                f"{grid.mpp:g} um/px), found {mask.shape[1]}x{mask.shape[0]}; give the mask of this very slide"
            )
        rectangle = None if region is None else _rectangle(region, grid, width, height)
        yield Truth(path, mask, table, scheme, grid, rectangle)


def check_truth(
    path: Path, scheme: LabelScheme, codes: str, grid: Grid, region: tuple[int, int, int, int] | None
) -> None:
    """Reads a mask once, before hours of labeling begin.

    Args:
      path: as the others, of `open_truth`.
      scheme: of the model.
      codes: the code book.
      grid: the slide's.
      region: to be scored besides.

    Raises:
      TruthError: it cannot be read, is not of this slide, or there is nothing to score.
      ConfigError: as `open_truth`.
    """
    try:
        with open_truth(path, scheme, codes, grid, region) as truth:
            truth.check()
    except DataError as error:
        raise TruthError(str(error)) from error


def _rectangle(region, grid, width, height):
    """Rows and columns of the grid whose pixels begin in a region of level 0."""
    x, y, w, h = region
    if not (0 <= x < x + w <= width and 0 <= y < y + h <= height):
        raise ConfigError(f"--truth_region={x},{y},{w},{h}: does not lie on the slide of {width}x{height} pixels")
    return tuple(
        slice(math.ceil(start / along), min(whole, math.ceil((start + size) / along)))
        for start, size, along, whole in ((y, h, grid.scale[1], grid.height), (x, w, grid.scale[0], grid.width))
    )
