"""Whether a slide can be H&E at all, told roughly by the colors of its thumbnail."""

import numpy as np

GRAY_CHROMA = 8  # largest minus smallest channel, up to which a pixel has no color; JPEG alone makes a few levels
DARK = 60  # a bright-field slide has glass, which is near white
SHARE = 0.98  # of the pixels


def out_of_domain(thumbnail: np.ndarray) -> str | None:
    """What speaks against bright-field H&E, for a warning; None if nothing does.

    Other stains in bright field (immunohistochemistry) are not told apart from H&E.

    Args:
      thumbnail: uint8 [H, W, 3].
    """
    brightest, darkest = thumbnail.max(axis=-1).astype(np.int16), thumbnail.min(axis=-1).astype(np.int16)
    if np.mean(brightest < DARK) > 0.5:
        return "a dark background, as in fluorescence"
    colored = (brightest - darkest) > GRAY_CHROMA
    white = darkest > 255 - 2 * GRAY_CHROMA  # glass is gray in every slide
    if not white.all() and np.mean(~colored[~white]) > SHARE:
        return "shades of gray only"
    return None
