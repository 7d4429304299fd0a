"""Deep zoom tiles of a slide as JPEG. Separate processes read the slide, so a damaged slide cannot end the server."""

import functools
import io
from pathlib import Path

import numpy as np
from PIL import Image

from bcss_jax.errors import DataError, printable
from bcss_jax.slides.grid import Grid
from bcss_jax.slides.slide_summary import SlideSummary
from bcss_jax.viewer.deep_zoom import DeepZoom, Tile

QUALITY = 85
PROCESSES = 2
TIMEOUT_S = 90  # for a tile; the readers give up sooner, and restart
CACHED_TILES = 256  # about 40 kB each


class OpenSlideTiles:
    """Makes the tiles of a slide that is open.

    Attributes:
      geometry: of the tiles.
    """

    def __init__(self, pool, width: int, height: int, mpp: float):
        """Takes a `ReaderPool`, the size of level 0, and its um per pixel."""
        self.geometry = DeepZoom(width, height)
        self._pool, self._mpp = pool, mpp
        self.jpeg = functools.lru_cache(CACHED_TILES)(self._jpeg)

    def _jpeg(self, tile: Tile) -> bytes:
        """Returns a tile; where the slide cannot be read it is hatched in gray."""
        level = Grid(
            -(-self.geometry.width // tile.step),
            -(-self.geometry.height // tile.step),
            self._mpp * tile.step,
            (float(tile.step), float(tile.step)),
        )
        block = self._pool.submit(level, tile.x, tile.y, tile.width, tile.height).result(TIMEOUT_S)
        return jpeg(block.pixels, block.unreadable)


class SlideTiles(OpenSlideTiles):
    """Makes the tiles of one segmented slide, and opens it for that."""

    def __init__(self, path: Path, summary: SlideSummary, open_pool):
        """Opens the slide.

        Args:
          path: of its file.
          summary: of its segmentation, which states its size.
          open_pool: (path, processes) -> a `bcss_jax.slides.reading.reader_pool.ReaderPool`.

        Raises:
          DataError: the slide cannot be read, or is not the one that was segmented.
        """
        pool = open_pool(path, PROCESSES)
        super().__init__(pool, summary.slide.width, summary.slide.height, summary.grid.mpp / summary.grid.scale[0])
        pool.__enter__()
        found, expected = self._pool.info, summary.slide
        if (found.width, found.height) != (expected.width, expected.height):
            self.close()
            raise DataError(
                f"{printable(path)}: expected the slide that was segmented, {expected.width} x {expected.height} "
                f"pixels, found {found.width} x {found.height}"
            )

    def close(self) -> None:
        """Ends the reading processes."""
        self._pool.__exit__(None, None, None)


def jpeg(pixels: np.ndarray, unreadable: np.ndarray | None) -> bytes:
    """Returns pixels as JPEG with full color resolution.

    Args:
      pixels: uint8 [h, w, 3].
      unreadable: bool [h, w], pixels to be hatched, or None.
    """
    if unreadable is not None and unreadable.any():
        # Imported here because Matplotlib takes half a second, and only damaged slides need it.
        from bcss_jax.common.figures import hatched

        pixels = hatched(pixels, unreadable)
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "JPEG", quality=QUALITY, subsampling=0)
    return content.getvalue()
