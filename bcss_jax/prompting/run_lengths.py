"""Masks as lengths of runs."""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class RunLengths:
    """A mask as the lengths of its runs, column by column, in turn outside and inside; the first run is outside.

    This is COCO's form. If the first pixel is inside, the first length is 0.

    Attributes:
      size: height and width.
      counts: the lengths.
    """

    size: tuple[int, int]
    counts: tuple[int, ...]

    @classmethod
    def of(cls, mask: np.ndarray) -> "RunLengths":
        """Returns the run lengths of a mask, bool (H, W)."""
        height, width = mask.shape
        pixels = mask.T.ravel()
        changes = np.flatnonzero(pixels[1:] != pixels[:-1]) + 1
        counts = np.diff([0, *changes.tolist(), pixels.size]).tolist()
        return cls((height, width), (0, *counts) if pixels[0] else tuple(counts))

    @property
    def area(self) -> int:
        """Number of pixels inside."""
        return sum(self.counts[1::2])

    def mask(self) -> np.ndarray:
        """Returns the mask, bool (H, W)."""
        inside = np.arange(len(self.counts)) % 2 == 1
        return np.repeat(inside, self.counts).reshape(self.size[::-1]).T
