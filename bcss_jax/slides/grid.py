"""The pixel grid that a slide is segmented on: all of level 0, resampled to the model's resolution."""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Grid:
    """The pixel grid of a slide. Pixel (x, y) starts at the level-0 pixel (x * scale[0], y * scale[1]).

    Attributes:
      width: pixels.
      height: pixels.
      mpp: um per pixel, as the model expects it.
      scale: level-0 pixels per grid pixel, along x and y.
    """

    width: int
    height: int
    mpp: float
    scale: tuple[float, float]

    @property
    def pixel_mm2(self) -> float:
        """Area of a pixel in mm2."""
        return (self.mpp / 1000) ** 2


def nearest_indices(size: int, source_size: int) -> np.ndarray:
    """Returns the indices that resample an axis by nearest neighbor.

    Args:
      size: pixels of the resampled axis.
      source_size: pixels of the given axis, which spans the same length.

    Returns:
      int64 [size]: for each pixel, the index of the source pixel under its center.
    """
    return ((2 * np.arange(size) + 1) * source_size) // (2 * size)


def grid_of(width: int, height: int, slide_mpp: tuple[float, float], model_mpp: float) -> Grid:
    """Returns the grid of a slide.

    Args:
      width: pixels of level 0.
      height: pixels of level 0.
      slide_mpp: um per level-0 pixel along x and y.
      model_mpp: um per pixel that the model was trained at.
    """
    columns, rows = (
        max(1, round(size * mpp / model_mpp)) for size, mpp in zip((width, height), slide_mpp, strict=True)
    )
    return Grid(columns, rows, model_mpp, (width / columns, height / rows))
