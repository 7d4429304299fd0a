"""NDPI files with several focal planes: one is read, and the others are said."""

import numpy as np
import pytest
import tifffile
from helpers.slide_files import picture

from bcss_jax.errors import DataError
from bcss_jax.slides.reading.open_slide import open_slide


def ndpi(path, *offsets):
    """Draws a TIFF with Hamamatsu's tags (format, objective, focal plane), a picture for each offset."""
    with tifffile.TiffWriter(path) as tiff:
        for offset in offsets:
            tags = [(65420, "I", 1, 1, True), (65421, "f", 1, 20.0, True), (65424, "i", 1, offset, True)]
            pixels = np.ascontiguousarray(picture(128, 96, abs(offset)))
            tiff.write(pixels, photometric="ycbcr", compression="jpeg", rowsperstrip=96, extratags=tags, metadata=None,
                       resolution=(40_000, 40_000), resolutionunit="CENTIMETER", software=None)  # fmt: skip
    return path


@pytest.mark.parametrize("name", ["a.ndpi", "a.tif"])
def test_focal_planes_that_are_not_read_are_said(tmp_path, name):
    slide = open_slide(ndpi(tmp_path / name, -2000, 0, 2000))
    assert slide.format == "hamamatsu"
    assert slide.notes == ("it holds 3 focal planes (offsets -2000, 0, 2000); the one at 0 is segmented",)
    slide = open_slide(ndpi(tmp_path / f"one_{name}", 0))
    assert slide.format == "hamamatsu" and not slide.notes


@pytest.mark.parametrize("name", ["a.ndpi", "a.tif"])
def test_focal_planes_without_the_one_at_0_are_refused(tmp_path, name):
    with pytest.raises(DataError):
        open_slide(ndpi(tmp_path / name, -2000, 2000))
