"""Reads PNG, JPEG and untiled TIFF files as slides of one level, decoded whole.

The pixels are those that a viewer shows: gray becomes three equal channels, a palette becomes its colors, and
transparent areas become white, as in the formats of scanners. More than 8 bits per channel are refused, because there
is more than one way to scale them.
"""

from pathlib import Path

import numpy as np
from PIL import Image

from bcss_jax.data import image_files
from bcss_jax.data.resolution.stated import stated_in_file
from bcss_jax.slides.reading.backend import Slide, levels_of, on_white, unsupported_pixels


class ImageSlide(Slide):
    """An image that is held in memory, of at most `image_files.MAX_PIXELS` pixels."""

    in_memory = True

    def __init__(self, path: Path):
        """Decodes the image.

        Raises:
          DataError: `image_files.load_8_bit` refuses the file, or its colors are not RGB.
        """
        self.path = path
        self._pixels = _rgb(path, image_files.load_8_bit(path))
        height, width = self._pixels.shape[:2]
        self.levels = levels_of([(width, height)])
        with Image.open(path, formats=list(image_files.FORMATS)) as image:
            assert image.format is not None  # a decoder has recognized it
            self.format = image.format.lower()
        self.stated_mpp = stated_in_file(path)

    def read(self, level: int, x: int, y: int, width: int, height: int) -> np.ndarray:  # noqa: D102
        return self._pixels[y : y + height, x : x + width].copy()

    def close(self) -> None:  # noqa: D102
        self._pixels = np.empty((0, 0, 3), np.uint8)


def _rgb(path: Path, image: Image.Image) -> np.ndarray:
    if image.mode in ("LA", "PA", "RGBA") or "transparency" in image.info:
        return on_white(image.convert("RGBA"))
    if image.mode not in ("RGB", "L", "P", "1"):
        raise unsupported_pixels(path, f"the color mode {image.mode}")
    return np.asarray(image.convert("RGB"))
