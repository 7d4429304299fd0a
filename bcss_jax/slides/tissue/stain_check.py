"""Recognizes slides that cannot be H&E, roughly, from the colors of a thumbnail."""

import numpy as np

GRAY_CHROMA = 8  # difference between channels up to which a pixel is gray; JPEG alone causes a few gray levels
DARK = 60  # gray level; a bright-field slide has glass, which is nearly white
SHARE = 0.98  # fraction of gray pixels from which a slide is gray


def out_of_domain(thumbnail: np.ndarray) -> str | None:
    """Returns why a slide cannot be bright-field H&E, for a warning, or None if nothing rules it out.

    Other bright-field stains (immunohistochemistry) are not distinguished from H&E.

    Args:
      thumbnail: uint8 [H, W, 3].
    """
    brightest, darkest = thumbnail.max(axis=-1).astype(np.int16), thumbnail.min(axis=-1).astype(np.int16)
    if np.mean(brightest < DARK) > 0.5:
        return "a dark background, as in fluorescence"
    colored = (brightest - darkest) > GRAY_CHROMA
    white = darkest > 255 - 2 * GRAY_CHROMA  # glass, which is gray in every slide, does not count
    if not white.all() and np.mean(~colored[~white]) > SHARE:
        return "shades of gray only"
    return None
