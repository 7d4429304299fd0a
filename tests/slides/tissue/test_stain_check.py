"""Thumbnails that cannot be H&E in bright field."""

import numpy as np
from helpers.slide_files import picture

from bcss_jax.slides.reading.reader_pool import ReaderPool
from bcss_jax.slides.tissue.stain_check import out_of_domain


def test_dark_slides_are_out_of_domain_and_real_ones_are_not(shared):
    assert out_of_domain(picture(50, 50) // 6) == "a dark background, as in fluorescence"
    assert out_of_domain(np.full((9, 9, 3), 255, np.uint8)) is None  # glass
    for name in ("CMU-1-Small-Region.svs", "TCGA-A2-A0D2_pyramid.tif"):
        with ReaderPool(shared / "data/slides" / name, 1) as pool:
            assert out_of_domain(pool.thumbnail(300).pixels) is None
