"""Where a slide has tissue: by the colour of a thumbnail, or by a mask or regions that are given.

Glass is bright and without colour. A pixel's score is the optical density of its darkest channel, in which haematoxylin and
eosin both are strong and glass is not; Otsu's threshold (scikit-image) parts the two. On slides that are all tissue, or
all glass, it would cut through the one that there is, so it is kept between `LEAST` and `MOST`: fainter is glass
everywhere, stronger is tissue everywhere. Green and blue ink is told by red being darker than green, which no H&E stain
makes it; red and black ink is taken for tissue.
"""

import dataclasses

import numpy as np
from scipy import ndimage
from skimage.filters import threshold_otsu

from bcss_jax.slides.grid import Grid
from bcss_jax.slides.windows import Windows

LEAST, MOST = 0.06, 0.12  # optical density
INK = 8  # grey levels by which red is darker than green
SMOOTHING_UM = 4.0  # standard deviation of the blur before the threshold: gaps between fibres are tissue
SMALLEST_UM2 = 20_000.0  # tissue: smaller spots are dust
LARGEST_HOLE_UM2 = 4_000.0  # in tissue: smaller ones, as of fat cells and vessels, are taken as tissue


def tissue_by_colour(
    thumbnail: np.ndarray, mpp: tuple[float, float], unreadable: np.ndarray | None = None
) -> np.ndarray:
    """Finds tissue.

    Args:
      thumbnail: uint8 RGB [h, w, 3].
      mpp: um per pixel of the thumbnail, along x and y.
      unreadable: bool [h, w], pixels that the slide does not give: taken as tissue, so that they are asked for and counted.

    Returns:
      bool [h, w].
    """
    density = -np.log10((thumbnail.min(axis=2).astype(np.float32) + 1) / 256)
    density[thumbnail[..., 0].astype(np.int16) + INK < thumbnail[..., 1]] = 0
    density = ndimage.gaussian_filter(density, [SMOOTHING_UM / mpp[1], SMOOTHING_UM / mpp[0]], mode="nearest")
    seen = density if unreadable is None else density[~unreadable]
    flat = not seen.size or seen.min() == seen.max()
    threshold = LEAST if flat else float(np.clip(threshold_otsu(seen), LEAST, MOST))
    tissue = density > threshold
    if unreadable is not None:
        tissue |= unreadable
    area = mpp[0] * mpp[1]
    tissue = ~_without_small(~_without_small(tissue, SMALLEST_UM2 / area), LARGEST_HOLE_UM2 / area)
    return tissue


def _without_small(mask, pixels):
    """Without connected parts that are smaller and do not touch the edge, where they may go on."""
    parts, count = ndimage.label(mask)
    keep = np.bincount(parts.ravel(), minlength=count + 1) >= pixels
    for edge in (parts[0], parts[-1], parts[:, 0], parts[:, -1]):
        keep[edge] = True
    keep[0] = False
    return keep[parts]


@dataclasses.dataclass(frozen=True)
class Tissue:
    """Tissue on a slide's grid, kept as a small mask.

    Attributes:
      mask: bool [h, w], stretched over the whole grid.
      grid: the slide's.
    """

    mask: np.ndarray
    grid: Grid

    def windows(self, windows: Windows) -> np.ndarray:
        """Which windows are computed, bool [rows, columns]: those with tissue in their cell."""
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
        """The mask on a rectangle of the grid, bool [bottom - top, right - left]."""
        rows = self._nearest(np.arange(top, bottom), self.grid.height, 0)
        columns = self._nearest(np.arange(left, right), self.grid.width, 1)
        return self.mask[np.ix_(rows, columns)]

    def _nearest(self, pixels, length, axis):
        return pixels * self.mask.shape[axis] // length

    @property
    def share(self) -> float:
        """Of the slide that is tissue."""
        return float(self.mask.mean())


def _covered(count, stride, length, size):
    """First mask pixel of each cell along an axis, and the one after its last."""
    begin = np.arange(count) * stride
    end = np.minimum(begin + stride, length)
    return begin * size // length, (end - 1) * size // length + 1
