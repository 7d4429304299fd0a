"""Where a network's windows lie on a slide's grid.

The grid is divided into square cells of `stride` pixels; the last cells may extend beyond the edge. Each cell has a
window that is centered on it and extends `margin` pixels beyond it on every side. Neighboring windows therefore
overlap, and the network sees every pixel with its surroundings, also at the slide's edge. Where a window extends beyond
the slide, the slide is reflected.
"""

import dataclasses
import math

import numpy as np

from bcss_jax.errors import ConfigError

MAX_OVERLAP = 0.75
OVERLAP, BLEND = 0.25, "gaussian"  # of models that say nothing else
BLENDS = ("gaussian", "centre")  # what `stitching.blend.blend_weights` takes
# Distance in pixels between a seam and the places it is compared with. Networks upsample in steps of 2 to 16 pixels,
# and neighboring pixels differ more across such a step (in a U-Net, by a tenth at every second pair). A distance of 16
# keeps the phase of these steps, so they do not count as seams.
CONTROL = 16


@dataclasses.dataclass(frozen=True)
class Windows:
    """The windows of a grid.

    Attributes:
      height: pixels of the grid.
      width: pixels of the grid.
      size: side of a window in pixels.
      stride: pixels from one window to the next.
    """

    height: int
    width: int
    size: int
    stride: int

    @property
    def margin(self) -> int:
        """Pixels that a window extends beyond its cell on each side."""
        return (self.size - self.stride) // 2

    @property
    def rows(self) -> int:
        """Number of windows from top to bottom."""
        return math.ceil(self.height / self.stride)

    @property
    def columns(self) -> int:
        """Number of windows from left to right."""
        return math.ceil(self.width / self.stride)

    def corner(self, row: int, column: int) -> tuple[int, int]:
        """Returns the upper left pixel (y, x) of a window, which may lie beyond the slide."""
        return row * self.stride - self.margin, column * self.stride - self.margin

    def finished_rows(self, row: int) -> tuple[int, int]:
        """Returns the pixel rows (first, last + 1) that this row of windows is the last one to change."""
        return self._finished_below(row - 1), self._finished_below(row)

    def _finished_below(self, row):
        if row < 0:
            return 0
        return self.height if row >= self.rows - 1 else max(0, (row + 1) * self.stride - self.margin)

    def row_that_finishes(self, y: int) -> int:
        """Returns the row of windows after which pixel row `y` is finished."""
        return min((y + self.margin) // self.stride, self.rows - 1)

    def first_row_that_changes(self, y: int) -> int:
        """Returns the first row of windows that covers pixel row `y` or a pixel row below it."""
        return max(0, (y + self.margin - self.size) // self.stride + 1)

    def seams(self, length: int) -> np.ndarray:
        """Returns the positions of possible seams along an axis, and the positions they are compared with.

        There are two kinds of seams. At a handover, the border between two cells, the weight passes from one window to
        its neighbor. At an end, a window begins or stops; positions that are also handovers count as handovers only.
        Each kind is compared with the positions that lie `CONTROL` pixels before or after one of its own and are seams
        of neither kind.

        Args:
          length: pixels of the axis, the grid's height or width.

        Returns:
          bool [2, 2, length - 1]. The first axis is the kind (handovers, ends), the second is (compared with, seams).
          Entry i of the last axis is the pair of pixels i and i + 1.
        """
        cells = np.arange(math.ceil(length / self.stride)) * self.stride
        handovers = _marked(cells, length)
        ends = _marked(np.concatenate([cells - self.margin, cells - self.margin + self.size]), length) & ~handovers
        kinds = []
        for seams in (handovers, ends):
            positions = np.flatnonzero(seams) + 1
            nearby = _marked(np.concatenate([positions - CONTROL, positions + CONTROL]), length) & ~handovers & ~ends
            kinds.append([nearby, seams])
        return np.array(kinds).reshape(2, 2, -1)


def _marked(positions: np.ndarray, length: int) -> np.ndarray:
    """Returns bool [length - 1] that is True between the pixels i - 1 and i for each position i."""
    result = np.zeros(max(length - 1, 0), bool)
    result[positions[(positions > 0) & (positions < length)] - 1] = True
    return result


def windows_of(height: int, width: int, size: int, overlap: float) -> Windows:
    """Returns the windows of a grid, given how much neighbors overlap.

    Args:
      height: of the grid, pixels.
      width: of the grid, pixels.
      size: side of a window, pixels.
      overlap: fraction of a window's side, from 0 to `MAX_OVERLAP`. It is rounded so that the margins are whole pixels.

    Raises:
      ConfigError: the overlap or the size is out of range.
    """
    if not 0 <= overlap <= MAX_OVERLAP:
        raise ConfigError(f"--overlap={overlap}: must be from 0 to {MAX_OVERLAP}, as a fraction of the window's side")
    if size < 1:
        raise ConfigError(f"--window={size}: must be 1 pixel or more")
    return Windows(height, width, size, max(1, size - 2 * round(size * overlap / 2)))


def cut_window(
    pixels: np.ndarray, corner: tuple[int, int], size: int, origin: tuple[int, int], shape: tuple[int, int]
) -> np.ndarray:
    """Returns the pixels of a window; the slide is reflected where the window extends beyond it.

    Args:
      pixels: uint8 [h, w, C], a region of the slide that contains all of the window that lies on the slide.
      corner: upper left pixel (y, x) of the window in the slide.
      size: side of the window in pixels.
      origin: upper left pixel (y, x) of `pixels` in the slide.
      shape: height and width of the slide in pixels.

    Returns:
      uint8 [size, size, C].
    """
    spans, margins = [], []
    for start, first, length in zip(corner, origin, shape, strict=True):
        low, high = max(start, 0), min(start + size, length)
        spans.append(slice(low - first, high - first))
        margins.append((low - start, start + size - high))
    inside = pixels[tuple(spans)]
    return np.pad(inside, [*margins, (0, 0)], mode="reflect") if any(map(any, margins)) else inside
