"""The first three principal components of patch features as colors, over tiles."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from bcss_jax.pretraining.pictures.attention import short
from bcss_jax.pretraining.pictures.tile_encoder import TileEncoder
from bcss_jax.slides.tissue.tissue_by_color import LEAST, density_of_colors

ENDS = (1.0, 99.0)  # percentiles of a component that become the darkest and the brightest color
COLORS = "red, green and blue: first, second and third component"


@dataclasses.dataclass(frozen=True)
class Components:
    """The directions of most variance among features.

    Attributes:
      mean: float32 [C].
      directions: float32 [C, 3].
      low: float32 [3], value of a component that becomes 0.
      high: float32 [3], value of a component that becomes 255.
      variance: share of the variance along each of them, float [3].
    """

    mean: np.ndarray
    directions: np.ndarray
    low: np.ndarray
    high: np.ndarray
    variance: np.ndarray

    @property
    def legend(self) -> str:
        """What the colors mean, as a line of text."""
        shares = ", ".join(f"{100 * share:.0f} %" for share in self.variance)
        return f"{COLORS} of the features ({shares} of their variance)"

    def colors(self, features: np.ndarray) -> np.ndarray:
        """Returns features float32 [..., C] as colors, uint8 [..., 3]."""
        values = (features - self.mean) @ self.directions
        shares = (values - self.low) / np.maximum(self.high - self.low, 1e-12)
        return np.rint(255 * np.clip(shares, 0, 1)).astype(np.uint8)


def find_components(features: np.ndarray) -> Components:
    """Returns the three main directions of features, float32 [N, C] with N and C of at least 3.

    The sign of a direction is that with which its largest entry is positive, so that the same features give the same
    colors.
    """
    mean = features.mean(0, dtype=np.float64)
    centered = features - mean.astype(np.float32)
    values, vectors = np.linalg.eigh(centered.T @ centered / np.float32(len(features)))
    directions = vectors[:, :-4:-1]
    directions = directions * np.sign(directions[np.abs(directions).argmax(0), np.arange(3)])
    low, high = np.percentile(centered @ directions, ENDS, axis=0)
    variance = np.maximum(values[:-4:-1], 0) / max(float(values.sum()), 1e-12)
    return Components(
        mean.astype(np.float32),
        directions.astype(np.float32),
        low.astype(np.float32),
        high.astype(np.float32),
        variance,
    )


def glass_patches(images: np.ndarray, patch: int) -> np.ndarray:
    """Returns which patches show glass: uint8 [N, H, W, 3] -> bool [N, H / patch, W / patch]."""
    n, height, width, _ = images.shape
    density = density_of_colors(images.reshape(-1, width, 3), None)
    return density.reshape(n, height // patch, patch, width // patch, patch).mean((2, 4)) < LEAST


def tile_components(encoder: TileEncoder, images: np.ndarray, names: Sequence[str], title: str) -> Figure:
    """Draws tiles, and below each the three main components of its patches' features.

    The components are those of all tiles together, so that a color means the same in all of them. Glass does not count,
    and is white, unless there is nothing else.

    Args:
      encoder: of the tiles.
      images: uint8 [N, S, S, 3], N up to about 24.
      names: of the tiles.
      title: of the figure.
    """
    images = encoder.whole_patches(images)
    features, glass = encoder.patches(images), glass_patches(images, encoder.patch)
    if (~glass).sum() < 4:
        glass = np.zeros_like(glass)
    components = find_components(features[~glass])
    colors = components.colors(features)
    colors[glass] = 255
    columns = min(8, len(images))
    rows = -(-len(images) // columns)
    cell = 1.5
    figure = Figure(figsize=(cell * columns + 0.3, 2.1 * cell * rows + 1.0), dpi=110, layout="constrained")
    figure.suptitle(title, fontsize=12)
    panels = figure.subplots(2 * rows, columns, squeeze=False)
    for axes in panels.flat:
        axes.set_axis_off()
    for number, (image, picture, name) in enumerate(zip(images, colors, names, strict=True)):
        row, column = divmod(number, columns)
        panels[2 * row, column].imshow(image)
        panels[2 * row, column].set_title(short(name, 24), fontsize=6)
        panels[2 * row + 1, column].imshow(picture, interpolation="nearest")
    figure.supxlabel(components.legend, fontsize=9)
    return figure
