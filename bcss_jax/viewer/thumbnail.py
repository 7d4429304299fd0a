"""The small picture of a result in the list: its overlay, or its labels on white."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from bcss_jax.common.regular_file import check_regular_file
from bcss_jax.slides.slide_summary import SlideSummary
from bcss_jax.viewer.label_tiles import MARGIN, LabelTiles

SIDE = 256  # pixels, at most
MAX_PIXELS = 32_000_000  # of an overlay that is read; `bcss_jax.segment` writes fewer than ten million


def jpeg(summary: SlideSummary, overlay: Path | None, open_labels: Callable[[], LabelTiles]) -> bytes:
    """Returns the picture as JPEG.

    Args:
      summary: of the result.
      overlay: file of the picture of slide and labels, if there is one.
      open_labels: returns the labels; called if there is no overlay.

    Raises:
      DataError: neither the overlay nor the labels can be read.
    """
    image = _of_overlay(overlay) if overlay else None
    if image is None:
        image = _of_labels(summary, open_labels())
    content = io.BytesIO()
    image.save(content, "JPEG", quality=85)
    return content.getvalue()


def _of_overlay(path):
    try:
        check_regular_file(path, "an overlay", "segment the slide again")
        with Image.open(path, formats=["PNG", "JPEG"]) as image:
            if image.width * image.height > MAX_PIXELS:
                return None
            image.thumbnail((SIDE, SIDE))
            return image.convert("RGB")
    except Exception:  # Pillow raises many kinds of errors for a damaged file
        return None


def _of_labels(summary, tiles):
    level = min(8, tiles.geometry.max_level)  # the largest level that is a single tile
    tile = tiles.geometry.tile(level, 0, 0)
    assert tile is not None  # a level has at least one tile
    labels = tiles.labels(tile)[MARGIN:-MARGIN, MARGIN:-MARGIN]
    colors = np.full((256, 3), 255, np.uint8)
    for each in summary.classes:
        colors[each.value] = each.color
    return Image.fromarray(colors[labels])
