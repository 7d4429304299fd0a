"""Whether a slide can be H&E at all, told roughly by the colours of its thumbnail."""

import numpy as np

GREY_CHROMA = 8  # largest minus smallest channel, up to which a pixel has no colour; JPEG alone makes a few levels
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
    coloured = (brightest - darkest) > GREY_CHROMA
    white = darkest > 255 - 2 * GREY_CHROMA  # glass is grey in every slide
    if not white.all() and np.mean(~coloured[~white]) > SHARE:
        return "shades of grey only"
    return None
