"""How strongly and in which colors a tile is stained, and which tiles stand out from the data set.

Optical density is what adds up where stains do: -log10 of the light that comes through. The mean density of a tile's
tissue is taken apart into haematoxylin, eosin and a remainder that neither explains (pen marks, other dyes, folds), with
the stain vectors of Ruifrok and Johnston ("Quantification of histochemical staining by color deconvolution", 2001).
Amounts depend on the tissue as well as on the laboratory: an outlier is a tile to look at, not an error.
"""

import dataclasses

import numpy as np

_VECTORS = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11]])  # density of haematoxylin and eosin in red, green, blue
_STAINS = np.vstack([_VECTORS, np.cross(*_VECTORS)])
_SEPARATION = np.linalg.inv(_STAINS / np.linalg.norm(_STAINS, axis=1, keepdims=True))
_DENSITY = -np.log10((np.arange(256) + 1) / 256).astype(np.float32)  # of each value; 1 more, for 0 has no logarithm

TISSUE_DENSITY = 0.15  # mean of the channels from which a pixel counts as tissue, not glass
LEAST_TISSUE = 0.05  # share of a tile's pixels below which its stain is not judged
FAR = 5.0  # robust z-score from which a tile stands out
NAMES = ("optical density", "haematoxylin", "eosin", "other color")


@dataclasses.dataclass(frozen=True)
class Density:
    """How dark a tile is.

    Attributes:
      tissue: share of its pixels that are no glass.
      mean: float64 [3], mean optical density of those pixels in red, green, blue; zeros if there are none.
    """

    tissue: float
    mean: np.ndarray


def density_of(image: np.ndarray) -> Density:
    """Density of an image, uint8 [H, W, 3]; every second pixel of every second row is enough for a mean."""
    density = _DENSITY[image[::2, ::2]].reshape(-1, 3)
    tissue = density[density.mean(axis=1) >= TISSUE_DENSITY]
    return Density(len(tissue) / len(density), tissue.mean(axis=0, dtype=np.float64) if len(tissue) else np.zeros(3))


def amounts(means: np.ndarray) -> np.ndarray:
    """From mean densities [N, 3]: mean of the channels, haematoxylin, eosin and remainder, float64 [N, 4] as `NAMES`."""
    return np.column_stack([means.mean(axis=1), means @ _SEPARATION])


def robust_z(values: np.ndarray) -> np.ndarray:
    """Distance from the median in units of the median absolute deviation, scaled to be a z-score of normal values.

    Zero where the deviation is zero, for then most values are the same and nothing can be said.
    """
    if not len(values):
        return np.zeros(0)
    away = values - np.median(values)
    spread = np.median(np.abs(away))
    return 0.6745 * away / spread if spread > 0 else np.zeros_like(away)


def outliers(tissue: np.ndarray, means: np.ndarray) -> list[tuple[int, str, float, float]]:
    """Tiles whose stain stands out: (index, which of `NAMES`, its value, its robust z-score), the farthest first.

    A tile is listed once, with the value that is farthest out.

    Args:
      tissue: float [N], shares of tissue.
      means: float [N, 3], mean densities.
    """
    judged = np.flatnonzero(tissue >= LEAST_TISSUE)
    values = amounts(means[judged])
    if not len(judged):
        return []
    z = np.column_stack([robust_z(column) for column in values.T])
    which = np.abs(z).argmax(axis=1)
    rows = np.arange(len(judged))
    found = [
        (int(judged[i]), NAMES[which[i]], float(values[i, which[i]]), float(z[i, which[i]]))
        for i in rows[np.abs(z[rows, which]) >= FAR]
    ]
    return sorted(found, key=lambda row: (-abs(row[3]), row[0]))
