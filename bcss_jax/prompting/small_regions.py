"""Removal of small holes and islands of masks."""

import cv2
import numpy as np


def without_small_regions(mask: np.ndarray, smallest: int) -> tuple[np.ndarray, bool]:
    """Returns a mask without small holes, then without small islands, and whether anything changed.

    Pixels that touch at a corner are connected. If all islands are small, the largest one stays.

    Args:
      mask: bool (H, W).
      smallest: pixels; holes and islands of fewer are removed.
    """
    labels, areas = _regions(~mask)
    holes = np.flatnonzero(areas < smallest) + 1
    filled = mask | np.isin(labels, holes)
    labels, areas = _regions(filled)
    small = np.flatnonzero(areas < smallest) + 1
    if len(small) and len(small) == len(areas):
        small = np.delete(small, areas.argmax())
        return filled & ~np.isin(labels, small), True
    return filled & ~np.isin(labels, small), bool(len(holes) or len(small))


def _regions(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the number of each pixel's region (H, W), 0 outside of the mask, and the areas of regions 1, 2, ..."""
    _, labels, statistics, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    return labels, statistics[1:, cv2.CC_STAT_AREA]
