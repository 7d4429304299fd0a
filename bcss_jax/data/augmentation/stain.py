"""Changes the strength of the stains of an H&E image, on the host.

The optical density of a pixel is the sum of those of its stains (`data.inspection.stain`, Ruifrok and Johnston 2001).
A factor on each stain is therefore a matrix on the density of red, green and blue. White, which has no density, stays.
"""

import numpy as np

from bcss_jax.data.inspection.stain import SEPARATION

STAINS = np.linalg.inv(SEPARATION)  # density of hematoxylin, eosin and the remainder in red, green, blue, one a row
DENSITY = -np.log2((np.arange(256, dtype=np.float32) + 1) / 256)  # of each value, to the base 2


def matrix_of(factors: np.ndarray) -> np.ndarray:
    """Returns the matrix that changes densities, float32 [3, 3], for factors on hematoxylin, eosin and the remainder.

    It is applied from the right: densities [..., 3] @ matrix.
    """
    return (SEPARATION @ np.diag(factors) @ STAINS).astype(np.float32)


def restain(image: np.ndarray, factors: np.ndarray) -> np.ndarray:
    """Returns an image with other strengths of its stains.

    Args:
      image: uint8 [H, W, 3], RGB.
      factors: float [3], of hematoxylin, eosin and the remainder; all 1: no change.

    Returns:
      uint8 [H, W, 3], rounded.
    """
    density = DENSITY[image] @ matrix_of(factors)
    return np.clip(np.rint(256 * np.exp2(-density) - 1), 0, 255).astype(np.uint8)
