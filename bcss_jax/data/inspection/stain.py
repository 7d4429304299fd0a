"""Measures how strongly and in which colors tiles are stained, and finds the outliers of a data set.

The optical density is -log10 of the transmitted light; the densities of several stains add up. The mean density of a
tile's tissue is decomposed into hematoxylin, eosin and a remainder that neither explains (pen marks, other dyes,
folds), with the stain vectors of Ruifrok and Johnston ("Quantification of histochemical staining by color
deconvolution", 2001). The amounts depend on the tissue as well as on the laboratory: an outlier is a tile to look at,
not an error.
"""

import dataclasses

import numpy as np

_VECTORS = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11]])  # density of hematoxylin and eosin in red, green, blue
_STAINS = np.vstack([_VECTORS, np.cross(*_VECTORS)])
_UNIT_STAINS = _STAINS / np.linalg.norm(_STAINS, axis=1, keepdims=True)
STAIN_VECTORS = _UNIT_STAINS[:2]
SEPARATION = np.linalg.inv(_UNIT_STAINS)  # density @ it: as NAMES[1:]
_DENSITY = -np.log10((np.arange(256) + 1) / 256).astype(np.float32)  # for each value, plus 1 because 0 has no logarithm

TISSUE_DENSITY = 0.15  # mean of the channels above which a pixel counts as tissue, not glass
LEAST_TISSUE = 0.05  # share of tissue pixels below which the stain of a tile is not measured
FAR = 5.0  # robust z-score from which a tile is an outlier
NAMES = ("optical density", "hematoxylin", "eosin", "other color")


@dataclasses.dataclass(frozen=True)
class Density:
    """The optical density of a tile.

    Attributes:
      tissue: share of its pixels that show tissue.
      mean: float64 [3], mean optical density of these pixels in red, green, blue; zeros if there are none.
    """

    tissue: float
    mean: np.ndarray


def density_of(image: np.ndarray) -> Density:
    """Returns the density of an image, uint8 [H, W, 3], from every second pixel of every second row."""
    density = _DENSITY[image[::2, ::2]].reshape(-1, 3)
    tissue = density[density.mean(axis=1) >= TISSUE_DENSITY]
    return Density(len(tissue) / len(density), tissue.mean(axis=0, dtype=np.float64) if len(tissue) else np.zeros(3))


def amounts(means: np.ndarray) -> np.ndarray:
    """Returns the values of `NAMES`, float64 [N, 4], from mean densities [N, 3]."""
    return np.column_stack([means.mean(axis=1), means @ SEPARATION])


def robust_z(values: np.ndarray) -> np.ndarray:
    """Returns the distance from the median in units of the median absolute deviation, scaled to a z-score.

    The result is zero if the deviation is zero: most values are then the same.
    """
    if not len(values):
        return np.zeros(0)
    away = values - np.median(values)
    spread = np.median(np.abs(away))
    return 0.6745 * away / spread if spread > 0 else np.zeros_like(away)


def outliers(tissue: np.ndarray, means: np.ndarray) -> list[tuple[int, str, float, float]]:
    """Returns the tiles whose stain is an outlier, each once, with its most extreme value.

    Args:
      tissue: float [N], shares of tissue.
      means: float [N, 3], mean densities.

    Returns:
      (index, which of `NAMES`, its value, its robust z-score) of each outlier, the most extreme first.
    """
    measured = np.flatnonzero(tissue >= LEAST_TISSUE)
    values = amounts(means[measured])
    if not len(measured):
        return []
    z = np.column_stack([robust_z(column) for column in values.T])
    which = np.abs(z).argmax(axis=1)
    rows = np.arange(len(measured))
    found = [
        (int(measured[i]), NAMES[which[i]], float(values[i, which[i]]), float(z[i, which[i]]))
        for i in rows[np.abs(z[rows, which]) >= FAR]
    ]
    return sorted(found, key=lambda row: (-abs(row[3]), row[0]))
