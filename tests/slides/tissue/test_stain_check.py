"""Thumbnails that cannot be H&E in bright field."""

import numpy as np
import pytest
from helpers.slide_files import picture
from PIL import Image

from bcss_jax.slides.reading.reader_pool import ReaderPool
from bcss_jax.slides.tissue.stain_check import brown_share, out_of_domain
from benchmarks.stain_check import coarser, with_dab


def test_dark_slides_are_out_of_domain_and_real_ones_are_not(shared):
    assert out_of_domain(picture(50, 50) // 6) == "a dark background, as in fluorescence"
    assert out_of_domain(np.full((9, 9, 3), 255, np.uint8)) is None  # glass
    for name in ("CMU-1-Small-Region.svs", "TCGA-A2-A0D2_pyramid.tif"):
        with ReaderPool(shared / "data/slides" / name, 1) as pool:
            assert out_of_domain(pool.thumbnail(300).pixels) is None


def rgb(path):
    image = Image.open(path).convert("RGBA")
    return np.asarray(Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB"))


def test_h_and_e_is_never_taken_for_another_stain(shared):
    paths = [*shared.glob("data/edge_tiles/*.png"), *shared.glob("data/bcss_kaggle224/train/*.png")]
    assert len(paths) > 20
    assert max(brown_share(rgb(path)) for path in paths) < 0.002  # a tenth of what is warned of


@pytest.mark.parametrize("share", [0.1, 0.5])
@pytest.mark.parametrize("density, brown", [(0.0, False), (0.4, True), (1.5, True)])
def test_dab_is_recognized(shared, share, density, brown):
    for number, path in enumerate(sorted(shared.glob("data/bcss_kaggle224/train/*.png"))[:8]):
        problem = out_of_domain(coarser(with_dab(rgb(path), share, density, number), 4))
        assert (problem is not None) == brown, path.name
        assert problem is None or "as immunohistochemistry has (DAB)" in problem
