"""Reads PNG, JPEG and untiled TIFF files as slides of one level, decoded whole.

The pixels are those that a viewer shows: gray becomes three equal channels, a palette becomes its colors, and
transparent areas become white, as in the formats of scanners. The picture is turned as its orientation tag says. More
than 8 bits per channel are refused, because there is more than one way to scale them.
"""

from pathlib import Path

import numpy as np

from bcss_jax.data import image_files
from bcss_jax.data.resolution.stated import stated_in_file
from bcss_jax.slides.reading.backend import PALETTE_NOTE, Slide, levels_of


class ImageSlide(Slide):
    """An image that is held in memory, of at most `image_files.MAX_PIXELS` pixels."""

    in_memory = True

    def __init__(self, path: Path):
        """Decodes the image.

        Raises:
          DataError: as `image_files.read_shown`.
        """
        self.path = path
        stored, self._pixels = image_files.read_shown(path)
        height, width = self._pixels.shape[:2]
        self.levels = levels_of([(width, height)])
        self.format = stored.format.lower()
        self.stated_mpp = stated_in_file(path)
        self.notes = (PALETTE_NOTE,) if stored.palette is not None else ()

    def read(self, level: int, x: int, y: int, width: int, height: int) -> np.ndarray:  # noqa: D102
        return self._pixels[y : y + height, x : x + width].copy()

    def close(self) -> None:  # noqa: D102
        self._pixels = np.empty((0, 0, 3), np.uint8)
