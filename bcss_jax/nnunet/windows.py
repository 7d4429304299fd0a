"""The positions of nnU-Net's windows on an image and the weights of their pixels.

Source: Isensee et al. 2021 (doi:10.1038/s41592-020-01008-z) in the form of nnU-Net 2.8.1. Windows have the size of the
patch and a distance of half of it. They are weighted with a Gaussian, so that predictions near the border of a window,
which have little context, count little.
"""

import math
from collections.abc import Sequence

import numpy as np

Pair = tuple[int, int]
Area = tuple[slice, slice]

_SIGMA = 1 / 8  # of the Gaussian, as a share of the patch's edge
_PEAK = 10.0  # nnU-Net's value, chosen for half precision; it cancels in the weighted mean


def window_starts(size: int, window: int, step: float = 0.5) -> list[int]:
    """Returns the first pixels of the windows along one axis; they are evenly spaced and cover the whole axis.

    Args:
      size: number of pixels of the image, at least `window`.
      window: number of pixels of a window.
      step: largest distance of two windows, as a share of `window`.

    Raises:
      ValueError: the image is smaller than a window (see `pad_to_window`), or the step is not above 0 and at most 1.
    """
    if size < window:
        raise ValueError(f"an image of {size} pixels is smaller than the window of {window}; pad it first")
    if not 0 < step <= 1:
        raise ValueError(f"step must be above 0 and at most 1, not {step}")
    gaps = math.ceil((size - window) / (window * step))
    distance = (size - window) / max(gaps, 1)
    return [round(distance * i) for i in range(gaps + 1)]


def window_corners(shape: Sequence[int], patch_size: Sequence[int], step: float = 0.5) -> list[Pair]:
    """Returns the upper left pixels (y, x) of all windows of an image, row by row; see `window_starts`."""
    rows, columns = (window_starts(size, window, step) for size, window in zip(shape, patch_size, strict=True))
    return [(y, x) for y in rows for x in columns]


def window_weights(patch_size: Sequence[int]) -> np.ndarray:
    """Returns the weights of a window's pixels: float32 [height, width], 10 at (height // 2, width // 2), never 0.

    nnU-Net blurs an image with a single bright pixel. Because the filter reaches beyond the window on all sides, the
    result is the product of two Gaussian curves, which is computed here.
    """
    rows, columns = (np.exp(-0.5 * ((np.arange(n) - n // 2) / (n * _SIGMA)) ** 2) for n in patch_size)
    return (_PEAK * np.outer(rows, columns)).astype(np.float32)


def pad_to_window(image: np.ndarray, patch_size: Sequence[int]) -> tuple[np.ndarray, Area]:
    """Pads an image with zeros so that a window fits.

    Args:
      image: [H, W, C].
      patch_size: smallest height and width; an axis that is long enough does not change.

    Returns:
      The padded image, and the area of the image in it: `result[area]` is the original image. If the padding is odd,
      the additional pixel comes after the image.
    """
    missing = [max(window - size, 0) for size, window in zip(image.shape[:2], patch_size, strict=True)]
    rows, columns = (slice(m // 2, m // 2 + size) for m, size in zip(missing, image.shape[:2], strict=True))
    area = rows, columns
    if not any(missing):
        return image, area
    margins = [(m // 2, m - m // 2) for m in missing]
    return np.pad(image, [*margins, *[(0, 0)] * (image.ndim - 2)]), area
