"""A view of a slide: a piece of it at one resolution, on which prompts are answered.

Places on a slide are pixels of level 0, x and y, counted from the corner of level 0 (not of the slide's bounds); the
first pixel reaches from 0 to 1. Places in a view are its pixels, counted in the same way.
"""

import dataclasses

import numpy as np

from bcss_jax.common.interruption import result_of
from bcss_jax.slides.grid import Grid, grid_of
from bcss_jax.slides.reading.reader_pool import Block, ReaderPool

Box = tuple[float, float, float, float]  # x0, y0, x1, y1
MOST_ENLARGED = 4.0  # a view has at most so many pixels for one of level 0: enlarging further shows nothing new


@dataclasses.dataclass(frozen=True)
class View:
    """A rectangle of whole pixels of a grid of a slide.

    Attributes:
      grid: of the slide, at the resolution of the view; its pixels need not be square on level 0.
      left: first column of the grid.
      top: first row of the grid.
      width: pixels.
      height: pixels.
    """

    grid: Grid
    left: int
    top: int
    width: int
    height: int

    @property
    def box(self) -> Box:
        """The corners in pixels of level 0."""
        (x0, y0), (x1, y1) = self.to_level0(np.array([[0, 0], [self.width, self.height]])).tolist()
        return x0, y0, x1, y1

    def to_level0(self, points: np.ndarray) -> np.ndarray:
        """Returns points (..., 2) of the view in pixels of level 0: float64."""
        return (np.asarray(points, np.float64) + (self.left, self.top)) * self.grid.scale

    def from_level0(self, points: np.ndarray) -> np.ndarray:
        """Returns points (..., 2) of level 0 in pixels of the view: float64; they may lie outside of it."""
        return np.asarray(points, np.float64) / self.grid.scale - (self.left, self.top)

    def part(self, left: int, top: int, width: int, height: int) -> "View":
        """Returns the view of some of these pixels."""
        return View(self.grid, self.left + left, self.top + top, width, height)

    def finer(self, times: int) -> "View":
        """Returns the view of the same place with so many times as many pixels along each side."""
        grid = self.grid
        scale = grid.scale[0] / times, grid.scale[1] / times
        fine = Grid(grid.width * times, grid.height * times, grid.mpp / times, scale)
        return View(fine, *(times * each for each in (self.left, self.top, self.width, self.height)))

    def holds(self, box: Box) -> bool:
        """Returns whether a box in pixels of level 0 lies in the view."""
        x0, y0, x1, y1 = self.box
        return x0 <= box[0] and y0 <= box[1] and box[2] <= x1 and box[3] <= y1


def view_at(grid: Grid, center: tuple[float, float], side: int) -> View:
    """Returns the view of side x side pixels around a place, moved into the slide, and smaller if the slide is.

    Args:
      grid: of the slide.
      center: x and y in pixels of level 0.
      side: pixels of the view.
    """
    spans = []
    for at, scale, size in zip(center, grid.scale, (grid.width, grid.height), strict=True):
        length = min(side, size)
        spans.append((int(np.clip(round(at / scale - length / 2), 0, size - length)), length))
    (left, width), (top, height) = spans
    return View(grid, left, top, width, height)


def view_of_box(size: tuple[int, int], mpp: tuple[float, float], box: Box, side: int, share: float) -> View:
    """Returns the view in which the longer side of a box takes a share of the view's side.

    It is not finer than `MOST_ENLARGED` pixels for one of level 0, and not coarser than a view of the whole slide.

    Args:
      size: width and height of level 0.
      mpp: um per pixel of level 0 along x and y.
      box: in pixels of level 0.
      side: pixels of the view.
      share: above 0 and at most 1.
    """
    longest = max((box[2] - box[0]) * mpp[0], (box[3] - box[1]) * mpp[1])
    coarsest = max(along * each for along, each in zip(size, mpp, strict=True)) / side
    finest = max(mpp) / MOST_ENLARGED
    resolution = max(finest, min(longest / (share * side), coarsest))
    center = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    return view_at(grid_of(*size, mpp, resolution), center, side)


def read_view(pool: ReaderPool, view: View) -> Block:
    """Returns the pixels of a view: RGB uint8 [height, width, 3], and which of them could not be read.

    Raises:
      DataError: the process that reads crashed or hung twice.
    """
    return result_of(pool.submit(view.grid, view.left, view.top, view.width, view.height))
