"""Finds glass inside the tissue: lumina, tears, fat vacuoles, and the rim of glass around the tissue.

A network without a class for glass calls it one of its tissues. On the thumbnail that tissue is found on, glass inside
tissue is too small to be seen. It is therefore searched for at about 1 to 2 um per pixel, with the density and the
color of the slide's own glass that the thumbnail is judged by (`tissue_by_color`):

1. Glass is where the density, blurred with `SMOOTHING_UM`, is below the lowest threshold for tissue.
2. Glass that no disc of the radius `RADIUS_UM` fits into stays tissue (an opening): gaps between fibers.
3. Glass grows by up to `GROWTH_UM` over pixels that are not stained themselves: the blur has covered them with tissue.
4. Pixels that are stained as tissue is on any slide, and pixels that cannot be read, are never glass.

Each step sees a limited neighborhood (`margin_um`), so that a pixel does not depend on the block it is computed in.
"""

import math

import cv2
import numpy as np
from scipy import ndimage

from bcss_jax.slides.tissue.tissue_by_color import LEAST, MOST, density_of_colors

FINEST_MPP, COARSEST_MPP = 1.0, 2.1  # um per pixel that glass is searched for at
SMOOTHING_UM = 1.0  # standard deviation of the blur
SMOOTHING_REACH = 3.0  # standard deviations after which the blur ends
RADIUS_UM = 3.0
GROWTH_UM = 3.0
UNREADABLE_DENSITY = 1.0  # of pixels that cannot be read: that of dense tissue


def margin_um() -> float:
    """Returns how far from a pixel others are that decide whether it is glass, um."""
    return SMOOTHING_REACH * SMOOTHING_UM + 2 * RADIUS_UM + GROWTH_UM


def find_glass(
    pixels: np.ndarray, mpp: tuple[float, float], glass: np.ndarray | None, unreadable: np.ndarray | None = None
) -> np.ndarray:
    """Returns which pixels are glass; within `margin_um` of an edge they depend on what lies beyond it.

    Args:
      pixels: uint8 RGB [h, w, 3].
      mpp: um per pixel along x and y.
      glass: the color of the slide's glass, float [3], as `tissue_by_color.glass_of` gives it; None if it is unknown.
      unreadable: bool [h, w], pixels that could not be read.

    Returns:
      bool [h, w].
    """
    density = density_of_colors(pixels, glass)
    if unreadable is not None:
        density[unreadable] = UNREADABLE_DENSITY
    sigmas = [SMOOTHING_UM / mpp[1], SMOOTHING_UM / mpp[0]]
    blurred = ndimage.gaussian_filter(density, sigmas, mode="nearest", truncate=SMOOTHING_REACH)
    disc = _disc(RADIUS_UM, mpp)
    # Beyond the edges, erosion assumes glass and dilation assumes none: a strip of glass at the edge is kept.
    core = cv2.morphologyEx((blurred < LEAST).view(np.uint8), cv2.MORPH_OPEN, disc)
    grown = cv2.dilate(core, _disc(GROWTH_UM, mpp)).view(bool)
    return (grown & (density < LEAST)) | (core.view(bool) & (density < MOST))


def _disc(radius_um: float, mpp: tuple[float, float]) -> np.ndarray:
    """Returns the pixels within a radius of the middle one, uint8 [2 * y + 1, 2 * x + 1]."""
    x, y = (math.floor(radius_um / along) for along in mpp)
    rows, columns = np.mgrid[-y : y + 1, -x : x + 1]
    return ((columns * mpp[0]) ** 2 + (rows * mpp[1]) ** 2 <= radius_um**2).astype(np.uint8)
