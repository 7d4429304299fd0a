"""The tissue of a slide as a mask: which windows hold tissue, and which pixels are tissue."""

import dataclasses

import numpy as np

from bcss_jax.slides.grid import Grid
from bcss_jax.slides.windows import Windows


@dataclasses.dataclass(frozen=True)
class Tissue:
    """The tissue on a slide's grid, stored as a small mask.

    Attributes:
      mask: bool [h, w], stretched over the whole grid.
      grid: the slide's grid.
    """

    mask: np.ndarray
    grid: Grid

    def windows(self, windows: Windows) -> np.ndarray:
        """Returns which windows to compute, bool [rows, columns]: those with tissue in their cell."""
        summed = np.pad(np.cumsum(np.cumsum(self.mask, axis=0, dtype=np.int64), axis=1), ((1, 0), (1, 0)))
        (top, bottom), (left, right) = (
            _covered(count, windows.stride, length, size)
            for count, length, size in zip(
                (windows.rows, windows.columns), (self.grid.height, self.grid.width), self.mask.shape, strict=True
            )
        )
        inside = summed[np.ix_(bottom, right)] - summed[np.ix_(top, right)]
        inside -= summed[np.ix_(bottom, left)] - summed[np.ix_(top, left)]
        return inside > 0

    def pixels(self, top: int, bottom: int, left: int, right: int) -> np.ndarray:
        """Returns the tissue in a rectangle of the grid, bool [bottom - top, right - left]."""
        rows = self._nearest(np.arange(top, bottom), self.grid.height, 0)
        columns = self._nearest(np.arange(left, right), self.grid.width, 1)
        return self.mask[np.ix_(rows, columns)]

    def area(self) -> int:
        """Returns how many pixels of the grid are tissue, as `pixels` tells it."""
        counts = self.mask
        for axis, length in enumerate((self.grid.height, self.grid.width)):
            spans = np.bincount(self._nearest(np.arange(length), length, axis), minlength=self.mask.shape[axis])
            counts = np.tensordot(counts, spans, axes=(0, 0))
        return int(counts)

    def _nearest(self, pixels, length, axis):
        return pixels * self.mask.shape[axis] // length

    @property
    def share(self) -> float:
        """Fraction of the slide that is tissue."""
        return float(self.mask.mean())


def _covered(count, stride, length, size):
    """Returns the first and last + 1 mask pixel of each cell along an axis."""
    start = np.arange(count) * stride
    end = np.minimum(start + stride, length)
    return start * size // length, (end - 1) * size // length + 1
