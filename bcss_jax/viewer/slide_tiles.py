"""Deep zoom tiles of a slide, as JPEG, read by processes of their own: a damaged slide ends such a process, not the server."""

import functools
import io
from pathlib import Path

import numpy as np
from PIL import Image

from bcss_jax.errors import DataError, printable
from bcss_jax.slides.grid import Grid
from bcss_jax.viewer.deep_zoom import DeepZoom, Tile
from bcss_jax.viewer.results import Summary

QUALITY = 85
PROCESSES = 2
LIMIT_S = 90  # for a tile; the readers give up sooner, and start anew
CACHED = 256  # tiles, some 40 kB each


class SlideTiles:
    """Makes the tiles of one slide."""

    def __init__(self, path: Path, summary: Summary, open_pool):
        """Opens the slide.

        Args:
          path: of its file.
          summary: of its segmentation: how large it is.
          open_pool: (path, processes) -> a `bcss_jax.slides.reading.reader_pool.ReaderPool`.

        Raises:
          DataError: the slide cannot be read, or is not the one that was segmented.
        """
        self.geometry = DeepZoom(summary.width, summary.height)
        self._mpp = summary.grid.mpp / summary.grid.scale[0]
        self.jpeg = functools.lru_cache(CACHED)(self._jpeg)
        self._pool = open_pool(path, PROCESSES)
        self._pool.__enter__()
        found = self._pool.info
        if (found.width, found.height) != (summary.width, summary.height):
            self.close()
            raise DataError(
                f"{printable(path)}: expected the slide that was segmented, {summary.width} x {summary.height} pixels, found "
                f"{found.width} x {found.height}"
            )

    def close(self) -> None:
        """Ends the reading processes."""
        self._pool.__exit__(None, None, None)

    def _jpeg(self, tile: Tile) -> bytes:
        """A tile; where the slide gives no pixels it is hatched in gray."""
        level = Grid(
            -(-self.geometry.width // tile.step),
            -(-self.geometry.height // tile.step),
            self._mpp * tile.step,
            (float(tile.step), float(tile.step)),
        )
        block = self._pool.submit(level, tile.x, tile.y, tile.width, tile.height).result(LIMIT_S)
        return jpeg(block.pixels, block.unreadable)


def jpeg(pixels: np.ndarray, unreadable: np.ndarray | None) -> bytes:
    """Pixels as JPEG without loss of color resolution.

    Args:
      pixels: uint8 [h, w, 3].
      unreadable: bool [h, w], pixels to be hatched; None if none.
    """
    if unreadable is not None and unreadable.any():
        from bcss_jax.common.figures import (
            hatched,
        )  # here, because Matplotlib takes half a second that sound slides do not need

        pixels = hatched(pixels, unreadable)
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "JPEG", quality=QUALITY, subsampling=0)
    return content.getvalue()
