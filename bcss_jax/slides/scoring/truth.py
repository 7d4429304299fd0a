"""The ground truth of a slide: a mask of codes on the slide's grid.

It is read in bands of rows, so that it may have any size.
"""

import contextlib
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from bcss_jax.errors import ConfigError, DataError, printable
from bcss_jax.labels import LabelScheme, lookup_table, readable_codes
from bcss_jax.slides.grid import Grid, nearest_indices
from bcss_jax.slides.reading.mask_file import Mask, labels_of_codes, open_mask

BAND = 1 << 22  # pixels of the mask, or of the grid, that are read at a time


class TruthError(DataError):
    """Raised when the mask does not fit the slide; the slide itself is fine."""


class Truth:
    """The ground truth of a slide.

    Attributes:
      shape: height and width of the grid.
      region: rows and columns of a region to score in addition to the whole slide, or None.
    """

    def __init__(
        self,
        path: Path,
        mask: Mask,
        table: np.ndarray,
        scheme: LabelScheme,
        grid: Grid,
        region: tuple[slice, slice] | None,
    ):
        """Called by `open_truth`; `table` holds the label of each code, `region` rows and columns."""
        self.shape, self.region = (grid.height, grid.width), region
        self._path, self._mask, self._table, self._scheme = path, mask, table, scheme
        self._rows, self._columns = (
            nearest_indices(size, given) for size, given in zip(self.shape, mask.shape, strict=True)
        )

    def bands(self, start: int = 0, stop: int | None = None) -> Iterator[tuple[int, int]]:
        """Yields the first and the last (exclusive) row of each band of the grid, or of a part of it."""
        stop = self.shape[0] if stop is None else stop
        # Pixels of the grid or of the mask, whichever are more, for one row of the grid.
        pixels = max(self.shape[1], math.ceil(self._mask.shape[0] / self.shape[0]) * self._mask.shape[1])
        step = max(1, BAND // pixels)
        for first in range(start, stop, step):
            yield first, min(stop, first + step)

    def rows(self, start: int, stop: int) -> np.ndarray:
        """Returns the labels of some rows of the grid.

        Returns:
          uint8 [stop - start, width]; the scheme's ignored label where nothing is annotated.

        Raises:
          DataError: the mask is damaged there, or holds a value that is not a code.
        """
        # Up to where the next row begins, so that every row of the mask is checked.
        first = self._rows[start] if start else 0
        last = self._rows[stop] if stop < self.shape[0] else self._mask.shape[0]
        last = max(last, self._rows[stop - 1] + 1)
        labels = labels_of_codes(self._path, self._mask.rows(int(first), int(last)), self._table)
        if self._mask.shape != self.shape:
            labels = labels[np.ix_(self._rows[start:stop] - first, self._columns)]
        return labels

    def resized(self, height: int, width: int) -> np.ndarray:
        """Returns the labels at the size of a thumbnail by nearest neighbor: uint8 [height, width].

        Raises what `rows` raises.
        """
        rows, columns = (nearest_indices(new, old) for new, old in zip((height, width), self.shape, strict=True))
        return np.stack([self.rows(row, row + 1)[0, columns] for row in rows.tolist()])

    def check(self) -> None:
        """Reads the whole mask once.

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
        """Returns the error for a mask, or a region of it, that has no pixel of the evaluated classes."""
        return DataError(
            f"{printable(self._path)}: expected pixels of {', '.join(self._scheme.evaluated_names)}, found none in "
            f"{'it' if region is None else 'that region'}; check the mask, its codes (--truth_codes) and the region"
        )


def part_of(band: np.ndarray, start: int, part: tuple[slice, slice] | None) -> np.ndarray:
    """Returns the pixels of a band that lie in a part of the grid.

    Args:
      band: [h, width], rows of the grid.
      start: the first of these rows.
      part: rows and columns; None: the whole grid.
    """
    if part is None:
        return band
    rows, columns = part
    return band[max(0, rows.start - start) : max(0, rows.stop - start), columns]


@contextlib.contextmanager
def open_truth(
    path: Path, scheme: LabelScheme, codes: str, grid: Grid, region: tuple[int, int, int, int] | None
) -> Iterator[Truth]:
    """Opens a mask, which is resampled to the grid by nearest neighbor.

    Args:
      path: PNG or TIFF of codes, of the size of the slide's level 0 or of the grid.
      scheme: of the model.
      codes: code book of the mask, for example "bcss22".
      grid: of the slide.
      region: x, y, width, height in level-0 pixels to score in addition to the whole slide, or None.

    Raises:
      DataError: the mask cannot be read, or has another size.
      ConfigError: the codes cannot express the scheme, or the region does not lie on the slide.
    """
    try:
        table = lookup_table(scheme, codes)
    except ValueError as error:
        raise ConfigError(f"--truth_codes={codes}: {error}") from error
    width, height = (round(size * scale) for size, scale in zip((grid.width, grid.height), grid.scale, strict=True))
    with open_mask(path, readable_codes(scheme, codes)) as mask:
        if mask.shape not in ((height, width), (grid.height, grid.width)):
            raise DataError(
                f"{printable(path)}: expected {width}x{height} pixels as the slide has (or {grid.width}x{grid.height} "
                f"at {grid.mpp:g} um/px), found {mask.shape[1]}x{mask.shape[0]}; give the mask of this slide"
            )
        rectangle = None if region is None else _rectangle(region, grid, width, height)
        yield Truth(path, mask, table, scheme, grid, rectangle)


def check_truth(
    path: Path, scheme: LabelScheme, codes: str, grid: Grid, region: tuple[int, int, int, int] | None
) -> None:
    """Reads a mask once, so that hours of labeling do not begin with a mask that cannot be used.

    Args:
      path: as in `open_truth`, like the other arguments.
      scheme: of the model.
      codes: code book of the mask.
      grid: of the slide.
      region: to score in addition to the whole slide, or None.

    Raises:
      TruthError: the mask cannot be read, does not belong to this slide, or has nothing to score.
      ConfigError: as `open_truth`.
    """
    try:
        with open_truth(path, scheme, codes, grid, region) as truth:
            truth.check()
    except DataError as error:
        raise TruthError(str(error)) from error


def _rectangle(region, grid, width, height):
    """The rows and columns of the grid whose pixels begin in a region of level 0."""
    x, y, w, h = region
    if not (0 <= x < x + w <= width and 0 <= y < y + h <= height):
        raise ConfigError(f"--truth_region={x},{y},{w},{h}: does not lie on the slide of {width}x{height} pixels")
    rows, columns = (
        slice(math.ceil(start / scale), min(whole, math.ceil((start + size) / scale)))
        for start, size, scale, whole in ((y, h, grid.scale[1], grid.height), (x, w, grid.scale[0], grid.width))
    )
    return rows, columns
