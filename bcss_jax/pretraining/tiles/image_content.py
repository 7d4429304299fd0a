"""Tells glass, and drawings such as masks, from tissue."""

import numpy as np

from bcss_jax.slides.tissue.tissue_by_color import MOST, density_of_colors

LEAST_TISSUE = 0.05  # smallest share of stained pixels of a tile that is not glass
MOST_COLORS = 24  # of a drawing; masks of BCSS have 22 codes
STEP = 4  # every fourth pixel of every fourth row is looked at for glass


def is_glass(tile: np.ndarray) -> bool:
    """Returns whether hardly any pixel of a tile is as dense as tissue is on any slide.

    Args:
      tile: uint8 RGB [H, W, 3].
    """
    density = density_of_colors(np.ascontiguousarray(tile[::STEP, ::STEP]), None)
    return bool(np.mean(density > MOST) < LEAST_TISSUE)


def is_drawing(image: np.ndarray) -> bool:
    """Returns whether an image has so few colors that it is no photograph: a mask in colors, or one color.

    Args:
      image: uint8 RGB [H, W, 3].
    """
    for step in (16, 1):  # a few pixels tell it of nearly all photographs
        red, green, blue = (image[::step, ::step, channel].astype(np.uint32) for channel in range(3))
        if len(np.unique((red << 16) | (green << 8) | blue)) > MOST_COLORS:
            return False
    return True
