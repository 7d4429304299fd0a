"""A new slide format: a NumPy file with uint8 RGB pixels, which is mapped into memory and read in regions."""

from pathlib import Path

import numpy as np

from bcss_jax.data.resolution.check import StatedMpp
from bcss_jax.slides.reading.backend import Slide, levels_of, unsupported_pixels


class NumpySlide(Slide):
    """A slide of one level in a .npy file [height, width, 3]; its um per pixel stands beside it in NAME.mpp."""

    format = "numpy"

    def __init__(self, path: Path):
        """Opens the file.

        Raises:
          ValueError: it is another format.
          DataError: its pixels are not uint8 RGB.
        """
        self.path = path
        self._pixels = np.load(path, mmap_mode="r", allow_pickle=False)
        if self._pixels.dtype != np.uint8 or self._pixels.ndim != 3 or self._pixels.shape[2] != 3:
            raise unsupported_pixels(path, f"{self._pixels.dtype} {self._pixels.shape}")
        height, width = self._pixels.shape[:2]
        self.levels = levels_of([(width, height)])
        beside = path.with_suffix(".mpp")
        if beside.exists():
            mpp = float(beside.read_text())
            self.stated_mpp = (StatedMpp((mpp, mpp), beside.name),)

    def read(self, level: int, x: int, y: int, width: int, height: int) -> np.ndarray:
        """Returns a region as uint8 [height, width, 3]."""
        return np.array(self._pixels[y : y + height, x : x + width])

    def close(self) -> None:
        """Releases the file."""
        self._pixels = np.empty((0, 0, 3), np.uint8)
