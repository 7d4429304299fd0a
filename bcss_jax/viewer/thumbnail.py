"""The small picture of a result in the list: its overlay, or its labels over white."""

import io
from pathlib import Path

import numpy as np
from PIL import Image

from bcss_jax.errors import DataError
from bcss_jax.viewer.label_tiles import MARGIN
from bcss_jax.viewer.results import Result

SIDE = 256  # pixels, at most
MAX_PIXELS = 64_000_000  # of an overlay


def jpeg(result: Result, overlay: Path | None, label_tiles) -> bytes:
    """The picture as JPEG.

    Args:
      result: with a summary.
      overlay: file of the picture of slide and labels, if there is one.
      label_tiles: result -> its `LabelTiles`; asked where there is no overlay.

    Raises:
      DataError: neither can be read.
    """
    image = _of_overlay(overlay) if overlay else None
    if image is None:
        image = _of_labels(result, label_tiles(result))
    content = io.BytesIO()
    image.save(content, "JPEG", quality=85)
    return content.getvalue()


def _of_overlay(path):
    try:
        with Image.open(path, formats=["PNG", "JPEG"]) as image:
            if image.width * image.height > MAX_PIXELS:
                return None
            image.thumbnail((SIDE, SIDE))
            return image.convert("RGB")
    except (OSError, ValueError, SyntaxError):  # damaged
        return None


def _of_labels(result, tiles):
    level = min(8, tiles.geometry.max_level)  # the largest that is one tile
    tile = tiles.geometry.tile(level, 0, 0)
    if tile is None:
        raise DataError(f"{result.folder}: no labels")
    labels = tiles.labels(tile)[MARGIN:-MARGIN, MARGIN:-MARGIN]
    colors = np.full((256, 3), 255, np.uint8)
    for each in result.summary.classes:
        colors[each.value] = each.color
    return Image.fromarray(colors[labels])
