"""Recognizes slides that show nothing at all: empty glass, or pixels that are transparent or not in the file."""

import numpy as np

WHITE = 250  # gray level; the glass of a scan is darker, or varies
BLANK = (
    "it is white everywhere: empty glass, or its pixels are transparent or missing; that no tissue is found does not "
    "mean that there is none, so look at the slide"
)


def is_blank(thumbnail: np.ndarray) -> bool:
    """Returns whether a slide is white everywhere.

    Args:
      thumbnail: uint8 [H, W, 3].
    """
    return bool(thumbnail.min() >= WHITE)
