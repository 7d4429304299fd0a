"""Recognizes slides that cannot be H&E, roughly, from the colors of a thumbnail.

Immunohistochemistry with DAB is recognized by stain separation: the density of a pixel is split into hematoxylin, eosin
and a remainder that neither explains (`data.inspection.stain`). In brown pixels the remainder is large and eosin small,
which is rare in H&E (docs/slides.md has the figures).
"""

import numpy as np

from bcss_jax.data.inspection.stain import SEPARATION, TISSUE_DENSITY
from bcss_jax.slides.tissue.tissue_by_color import glass_of

GRAY_CHROMA = 8  # difference between channels up to which a pixel is gray; JPEG alone causes a few gray levels
DARK = 60  # gray level; a bright-field slide has glass, which is nearly white
SHARE = 0.98  # fraction of gray pixels from which a slide is gray
LEAST_PIXELS = 100  # of tissue, without which no stain is measured
REMAINDER = 0.45  # share of a brown pixel's density that neither hematoxylin nor eosin explains; 0.6 in pure DAB
EOSIN = (-0.1, 0.2)  # shares of eosin in a brown pixel; orange eosin and red ink have more, green ink less
BROWN = 0.02  # share of brown pixels in the tissue from which a slide is not H&E; at most 0.009 in H&E


def out_of_domain(thumbnail: np.ndarray) -> str | None:
    """Returns why a slide cannot be bright-field H&E, for a warning, or None if nothing rules it out.

    Of other bright-field stains, only brown ones (immunohistochemistry with DAB) are distinguished from H&E.

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
    brown = brown_share(thumbnail)
    if brown >= BROWN:
        return f"brown stain on {100 * brown:.0f} % of its tissue, as immunohistochemistry has (DAB)"
    return None


def brown_share(thumbnail: np.ndarray) -> float:
    """Returns the share of tissue with a brown stain, such as DAB; 0 if there is hardly any tissue.

    Args:
      thumbnail: uint8 [H, W, 3].
    """
    glass = glass_of(thumbnail, np.ones(thumbnail.shape[:2], bool))
    white = np.full(3, 255.0) if glass is None else glass
    density = -np.log10((thumbnail.reshape(-1, 3).astype(np.float32) + 1) / (white.astype(np.float32) + 1))
    tissue = density[density.mean(axis=1) >= TISSUE_DENSITY]
    if len(tissue) < LEAST_PIXELS:
        return 0.0
    shares = tissue / np.linalg.norm(tissue, axis=1, keepdims=True) @ SEPARATION.astype(np.float32)
    eosin, remainder = shares[:, 1], shares[:, 2]
    return float(np.mean((remainder >= REMAINDER) & (EOSIN[0] <= eosin) & (eosin < EOSIN[1])))
