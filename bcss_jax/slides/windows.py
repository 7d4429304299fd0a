"""Where a network's windows lie on a slide's grid.

The grid is divided into square cells of `stride` pixels, the last ones reaching over the edge. A cell's window has the
cell in its middle and reaches `margin` pixels beyond it on every side: neighbors overlap, and every pixel, also at the
slide's edge, is seen with surroundings. Where a window reaches beyond the slide, the slide is reflected.
"""

import dataclasses
import math

import numpy as np

from bcss_jax.errors import ConfigError

MAX_OVERLAP = 0.75
# Pixels from a seam to what it is compared with: networks up-sample in steps of 2 to 16 pixels, and neighbors differ more
# across such steps (every second pair by a tenth, seen with a U-Net), which would pass for seams.
CONTROL = 16


@dataclasses.dataclass(frozen=True)
class Windows:
    """The windows of a grid.

    Attributes:
      height: pixels of the grid.
      width: likewise.
      size: pixels of a window's side.
      stride: pixels from one window to the next.
    """

    height: int
    width: int
    size: int
    stride: int

    @property
    def margin(self) -> int:
        """Pixels of a window on each side of its cell."""
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
        """Upper left pixel (y, x) of a window; may lie beyond the slide."""
        return row * self.stride - self.margin, column * self.stride - self.margin

    def finished_rows(self, row: int) -> tuple[int, int]:
        """The pixel rows, first and last + 1, that windows after this row of windows do not change, but it does."""
        return self._finished_below(row - 1), self._finished_below(row)

    def _finished_below(self, row):
        if row < 0:
            return 0
        return self.height if row >= self.rows - 1 else max(0, (row + 1) * self.stride - self.margin)

    def row_that_finishes(self, y: int) -> int:
        """The row of windows after which pixel row `y` is finished."""
        return min((y + self.margin) // self.stride, self.rows - 1)

    def first_row_that_changes(self, y: int) -> int:
        """The first row of windows that covers pixel row `y` or one below it."""
        return max(0, (y + self.margin - self.size) // self.stride + 1)

    def seams(self, length: int) -> np.ndarray:
        """Where seams could be seen along an axis, and what they are compared with.

        A window hands over to its neighbor at the border of its cell, and begins and ends elsewhere; where it hands over
        and another one begins, the first counts. What a kind is compared with are the places `CONTROL` pixels beside its
        own that are no seam of either.

        Args:
          length: pixels of the axis, the grid's height or width.

        Returns:
          bool [2, 2, length - 1]: for hand-overs, then for ends: places beside them, then they themselves; True in [..., i]
          for the pair of the pixels i and i + 1.
        """
        cells = np.arange(math.ceil(length / self.stride)) * self.stride
        handovers = _marked(cells, length)
        ends = _marked(np.concatenate([cells - self.margin, cells - self.margin + self.size]), length) & ~handovers
        found = []
        for seams in (handovers, ends):
            at = np.flatnonzero(seams) + 1
            beside = _marked(np.concatenate([at - CONTROL, at + CONTROL]), length) & ~handovers & ~ends
            found.append([beside, seams])
        return np.array(found).reshape(2, 2, -1)


def _marked(positions: np.ndarray, length: int) -> np.ndarray:
    """bool [length - 1], True between pixels i - 1 and i for each position i."""
    result = np.zeros(max(length - 1, 0), bool)
    result[positions[(positions > 0) & (positions < length)] - 1] = True
    return result


def windows_of(height: int, width: int, size: int, overlap: float) -> Windows:
    """Windows that overlap their neighbors by a share of their side.

    Args:
      height: of the grid, pixels.
      width: likewise.
      size: of a window, pixels.
      overlap: share of a window's side, from 0 to `MAX_OVERLAP`; rounded so that the margins are whole pixels.

    Raises:
      ConfigError: an overlap or a size that cannot be.
    """
    if not 0 <= overlap <= MAX_OVERLAP:
        raise ConfigError(f"--overlap={overlap}: must be from 0 to {MAX_OVERLAP}, a share of the window's side")
    if size < 1:
        raise ConfigError(f"--window={size}: must be 1 pixel or more")
    return Windows(height, width, size, max(1, size - 2 * round(size * overlap / 2)))


def cut_window(
    pixels: np.ndarray, corner: tuple[int, int], size: int, origin: tuple[int, int], shape: tuple[int, int]
) -> np.ndarray:
    """A window, with what lies beyond the slide reflected.

    Args:
      pixels: uint8 [h, w, C], a part of the slide that holds the window's part on it.
      corner: upper left pixel (y, x) of the window, in the slide's pixels.
      size: of the window.
      origin: upper left pixel (y, x) of `pixels`, likewise.
      shape: height and width of the slide.

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
