"""Finds the tissue of a slide by the color of a thumbnail.

Glass is bright and gray. The score of a pixel is the optical density of its darkest channel, which is high for both
hematoxylin and eosin and low for glass. Otsu's threshold (scikit-image) separates the two. On a slide that is all
tissue or all glass, Otsu's threshold would divide the one that is there; it is therefore limited to the range from
`LEAST` to `MOST`: pixels below it are glass on any slide, and pixels above it are tissue on any slide.

Densities are measured relative to the slide's own glass, as if it had the usual brightness, so that dim or tinted glass
does not count as tissue. If no glass is found, they are measured relative to white.

Green and blue ink is recognized because its red is darker than its green, which no H&E stain causes. Red ink counts as
tissue. Black ink also counts as tissue, unless it is as black as padding.
"""

from typing import cast

import numpy as np
from scipy import ndimage
from skimage.filters import threshold_otsu

LEAST, MOST = 0.06, 0.12  # limits of the threshold, optical density
USUAL_GLASS = 240  # gray level of usual glass; glass that is this bright or brighter is not corrected
DIMMEST_GLASS = 150  # smallest gray level of glass in its darkest channel
GLASS_CHROMA = 48  # largest difference between the channels of glass, tinted by a lamp or a wrong white balance
STAINED = 8  # gray levels by which green is darker than red and blue where there is stain
GLASS_RANGE = 25  # gray levels between the brightest and the darkest glass
GLASS_SHARE = 0.05  # smallest fraction of glass on a slide from which its color can be measured
PADDING = 8  # largest gray level of the black around the scanned area; after JPEG it is not pure black
RIM = 2  # pixels around padding that are mixed with it
INK = 8  # gray levels by which the red of ink is darker than its green
ONE_COLOR = 0.5  # if more than this fraction of the tissue has one density, within `SAME_DENSITY`, it may be glass
SAME_DENSITY = 0.03
SMOOTHING_UM = 4.0  # standard deviation of the blur before the threshold; it closes the gaps between fibers
SMALLEST_UM2 = 20_000.0  # smaller spots are dust and not tissue
LARGEST_HOLE_UM2 = 4_000.0  # smaller holes in tissue, such as fat cells and vessels, count as tissue


def tissue_by_color(
    thumbnail: np.ndarray, mpp: tuple[float, float], unreadable: np.ndarray | None = None
) -> np.ndarray:
    """Returns where a thumbnail shows tissue.

    Args:
      thumbnail: uint8 RGB [h, w, 3].
      mpp: um per pixel of the thumbnail, along x and y.
      unreadable: bool [h, w], pixels that could not be read. They count as tissue, so that the slide is read there and
        unreadable tissue is counted.

    Returns:
      bool [h, w], True for tissue.
    """
    scanned = scanned_area(thumbnail, unreadable)
    density = _density(thumbnail, glass_of(thumbnail, scanned))
    density[~scanned] = 0
    density = ndimage.gaussian_filter(density, [SMOOTHING_UM / mpp[1], SMOOTHING_UM / mpp[0]], mode="nearest")
    scanned_density = density[scanned]
    uniform = not scanned_density.size or scanned_density.min() == scanned_density.max()
    threshold = LEAST if uniform else float(np.clip(threshold_otsu(scanned_density), LEAST, MOST))
    tissue = (density > threshold) & scanned
    if unreadable is not None:
        tissue |= unreadable
    area = mpp[0] * mpp[1]
    tissue = ~_without_small(~_without_small(tissue, SMALLEST_UM2 / area), LARGEST_HOLE_UM2 / area)
    return tissue


def scanned_area(thumbnail: np.ndarray, unreadable: np.ndarray | None = None) -> np.ndarray:
    """Returns which pixels of a thumbnail show the slide, bool [h, w]: not black padding, and not `unreadable`."""
    scanned = ~_padding(thumbnail)
    return scanned if unreadable is None else scanned & ~unreadable


def glass_of(thumbnail: np.ndarray, scanned: np.ndarray) -> np.ndarray | None:
    """Returns the color of the slide's glass, or None if there is too little glass to measure.

    This is the color of the brightest unstained pixels. Pure white is left out, because readers fill areas that were
    not scanned with it.

    Args:
      thumbnail: uint8 RGB [h, w, 3].
      scanned: bool [h, w], pixels to look at.

    Returns:
      float64 [3].
    """
    pixels = thumbnail[scanned & (thumbnail.min(axis=2) < 255)].astype(np.int16)
    red, green, blue = pixels.T
    darkest = pixels.min(axis=1)
    unstained = (green >= np.minimum(red, blue) - STAINED) & (green <= red + INK)
    unstained &= (darkest >= DIMMEST_GLASS) & (pixels.max(axis=1) - darkest <= GLASS_CHROMA)
    if not unstained.any():
        return None
    glass = unstained & (darkest >= np.percentile(darkest[unstained], 99) - GLASS_RANGE)
    return np.median(pixels[glass], axis=0) if glass.mean() >= GLASS_SHARE else None


def looks_like_glass(thumbnail: np.ndarray, tissue: np.ndarray) -> bool:
    """Returns whether most of the tissue has one color, which is typical of glass and not of tissue.

    Args:
      thumbnail: uint8 RGB [h, w, 3].
      tissue: bool [h, w], the result of `tissue_by_color`.
    """
    density = _density(thumbnail, None)[tissue]
    step = SAME_DENSITY / 3
    counts = np.bincount((density / step).astype(np.int64), minlength=3)
    in_range = counts[:-2] + counts[1:-1] + counts[2:]
    return bool(density.size) and in_range.max() > ONE_COLOR * density.size


def density_of_colors(pixels: np.ndarray, glass: np.ndarray | None) -> np.ndarray:
    """Returns the optical density of the channel that is darkest relative to the glass, float32 [h, w].

    Args:
      pixels: uint8 RGB [h, w, 3].
      glass: the color of the glass, float [3]; None: it is unknown, and densities are relative to white.
    """
    levels = np.repeat(np.arange(256, dtype=np.uint8)[:, None, None], 3, axis=2)
    # From a table, so that a pixel has the same density wherever it lies in an array.
    of_levels = np.maximum(-np.log10(_relative(levels, glass)), 0)[:, 0]
    return np.maximum.reduce([of_levels[pixels[..., channel], channel] for channel in range(3)])


def _relative(pixels: np.ndarray, glass: np.ndarray | None) -> np.ndarray:
    """Returns the pixels as shares of the glass, float32 [h, w, 3]."""
    white = np.full(3, 255) if glass is None else np.minimum(255, glass * 255 / USUAL_GLASS)
    return (pixels.astype(np.float32) + 1) / (white + 1).astype(np.float32)


def _density(thumbnail: np.ndarray, glass: np.ndarray | None) -> np.ndarray:
    """Returns `density_of_colors`, and 0 for ink."""
    relative = _relative(thumbnail, glass)
    density = np.maximum(-np.log10(relative.min(axis=2)), 0)
    density[relative[..., 0] + INK / 256 < relative[..., 1]] = 0
    return density


def _padding(thumbnail: np.ndarray) -> np.ndarray:
    """Returns the black area around the scanned area and the pixels that are mixed with it: bool [h, w]."""
    black = thumbnail.max(axis=2) <= PADDING
    return np.asarray(ndimage.binary_dilation(black, iterations=RIM)) if black.any() else black


def _without_small(mask: np.ndarray, pixels: float) -> np.ndarray:
    """Removes components of less than `pixels` pixels, unless they touch the edge, beyond which they may continue."""
    components, count = cast(tuple[np.ndarray, int], ndimage.label(mask))
    keep = np.bincount(components.ravel(), minlength=count + 1) >= pixels
    for edge in (components[0], components[-1], components[:, 0], components[:, -1]):
        keep[edge] = True
    keep[0] = False
    return keep[components]
