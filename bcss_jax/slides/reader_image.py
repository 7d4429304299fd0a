"""Plain PNG, JPEG and untiled TIFF files as slides of one level, decoded whole by the rules of `tiles.read_image`."""

from pathlib import Path

import numpy as np
from PIL import Image

from bcss_jax import tiles
from bcss_jax.slides.reader_base import Slide, levels_of
from bcss_jax.slides.resolution import mpp_from_density


class ImageSlide(Slide):
    """An image that is held in memory: at most `tiles.MAX_PIXELS`."""

    in_memory = True

    def __init__(self, path: Path):
        """Decodes it.

        Raises:
          DataError: as `tiles.read_image`.
        """
        self.path = path
        self._pixels = tiles.read_image(path)
        height, width = self._pixels.shape[:2]
        self.levels = levels_of([(width, height)])
        with Image.open(path, formats=list(tiles.FORMATS)) as image:
            self.format = image.format.lower()
            density = image.info.get("dpi", (0.0, 0.0))
        self.mpp = mpp_from_density(float(density[0]), float(density[1]), "inch")

    def read(self, level: int, x: int, y: int, width: int, height: int) -> np.ndarray:  # noqa: D102
        return self._pixels[y : y + height, x : x + width].copy()

    def close(self) -> None:  # noqa: D102
        self._pixels = np.empty((0, 0, 3), np.uint8)
