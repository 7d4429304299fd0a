"""Reads DICOM slides with wsidicom (Apache-2.0), an optional reader for those that OpenSlide refuses."""

from pathlib import Path

import numpy as np
from wsidicom import WsiDicom

from bcss_jax.data.resolution.check import StatedMpp
from bcss_jax.errors import first_line
from bcss_jax.slides.reading.backend import Slide, TileError, levels_of, unsupported_pixels
from bcss_jax.slides.reading.dicom.series import levels_of_slide


class WsiDicomSlide(Slide):
    """A DICOM slide with the levels that lie in its file's folder."""

    format = "dicom"

    def __init__(self, path: Path):
        """Opens the slide.

        Args:
          path: of one of its files.

        Raises:
          DataError: it is DICOM of another kind, or its pixels are not 8-bit RGB or gray of one channel and plane.
          ValueError: it is damaged, or of a kind that wsidicom does not read.
          Exception: pydicom and wsidicom can raise anything.
        """
        self.path = path
        found = levels_of_slide(path)
        self._file = WsiDicom.open([each.path for each in found])
        try:
            self._pyramid = self._chosen(found[0].width, found[0].height)
            base = self._pyramid.base_level
            self._check_pixels(base)
            sizes = [(level.size.width, level.size.height) for level in self._pyramid]
            self.levels = levels_of(sizes)
            left_out = len(found) - len(self.levels)
            if left_out:
                self.notes = (f"{left_out} of its {len(found)} DICOM files of levels are not used",)
            self._numbers = [level.level for level in self._pyramid][: len(self.levels)]
            self._tiles = [(level.tile_size.width, level.tile_size.height) for level in self._pyramid]
            self.stated_mpp = (StatedMpp((base.mpp.width, base.mpp.height), "DICOM's metadata"),)
        except BaseException:
            self._file.close()
            raise

    def _chosen(self, width: int, height: int):
        """Returns the pyramid with the finest level; wsidicom leaves out files that it cannot read, without a word."""
        for number, pyramid in enumerate(self._file.pyramids):
            size = pyramid.base_level.size
            if (size.width, size.height) == (width, height):
                self._number = number
                return pyramid
        raise ValueError(f"DICOM whose finest level ({width}x{height}) is damaged or of a kind that wsidicom lacks")

    def _check_pixels(self, level) -> None:
        image = level.default_instance.image_data
        if image.bits != 8:
            raise unsupported_pixels(self.path, f"{image.bits} bits per channel")
        paths, planes = level.optical_paths, level.focal_planes
        if len(paths) > 1:
            raise unsupported_pixels(self.path, f"{len(paths)} optical paths (channels)")
        if len(planes) > 1:
            self.notes += (f"of its {len(planes)} focal planes, the one at {image.default_z:g} um is read",)

    def read(self, level: int, x: int, y: int, width: int, height: int) -> np.ndarray:  # noqa: D102
        try:
            pixels = self._file.read_region(
                (x, y), self._numbers[level], (width, height), pyramid=self._number, threads=1, as_array=True
            )
        except Exception as error:  # the decoders can raise anything
            raise TileError(first_line(error) or type(error).__name__) from error
        pixels = np.asarray(pixels)
        if pixels.ndim == 2 or pixels.shape[2] == 1:
            pixels = np.repeat(pixels.reshape(height, width, 1), 3, axis=2)
        return np.ascontiguousarray(pixels[..., :3])

    def tile_size(self, level: int) -> tuple[int, int]:  # noqa: D102
        return self._tiles[level]

    def close(self) -> None:  # noqa: D102
        self._file.close()
