"""The pixel grid that a slide is segmented on: the whole of level 0 at the model's resolution."""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Grid:
    """Pixel (x, y) of the grid covers level-0 pixels from (x * scale[0], y * scale[1]) on.

    Attributes:
      width: pixels.
      height: pixels.
      mpp: um per pixel, the model's.
      scale: level-0 pixels per pixel of the grid, along x and y.
    """

    width: int
    height: int
    mpp: float
    scale: tuple[float, float]

    @property
    def pixel_mm2(self) -> float:
        """Area of a pixel in mm2."""
        return (self.mpp / 1000) ** 2


def nearest_indices(size: int, given: int) -> np.ndarray:
    """Of an axis with `given` pixels, the one that lies under each of `size` pixels over the same length: integers [size]."""
    return ((2 * np.arange(size) + 1) * given) // (2 * size)


def grid_of(width: int, height: int, slide_mpp: tuple[float, float], model_mpp: float) -> Grid:
    """The grid of a slide.

    Args:
      width: of level 0, pixels.
      height: likewise.
      slide_mpp: um per level-0 pixel along x and y.
      model_mpp: um per pixel that the model was trained at.
    """
    columns, rows = (
        max(1, round(size * mpp / model_mpp)) for size, mpp in zip((width, height), slide_mpp, strict=True)
    )
    return Grid(columns, rows, model_mpp, (width / columns, height / rows))
