"""The stain of a slide is measured on the same squares of its tissue, whoever reads them."""

import numpy as np
import pytest
from helpers import slide_files
from helpers.slides_small import ArrayPool
from helpers.stained_pixels import VECTORS, amounts, stained

from bcss_jax.data.stain.measured_stain import NotMeasurable
from bcss_jax.slides.grid import grid_of
from bcss_jax.slides.reading.reader_pool import ReaderPool
from bcss_jax.slides.tissue import slide_stain
from bcss_jax.slides.tissue.slide_stain import stain_of_slide
from bcss_jax.slides.tissue.tissue_mask import Tissue

HEIGHT, WIDTH = 300, 400
PIXELS = stained(amounts(HEIGHT, WIDTH))
GRID = grid_of(WIDTH, HEIGHT, (0.25, 0.25), 0.25)
WHITE = np.full(3, 240.0)
EVERYWHERE = Tissue(np.ones((1, 1), bool), GRID)


def test_the_result_does_not_depend_on_readers(tmp_path):
    slide = slide_files.tiled(tmp_path / "case.tif", PIXELS)
    found = []
    for readers in (1, 2):
        with ReaderPool(slide, readers) as pool:
            found.append(stain_of_slide(pool, EVERYWHERE, WHITE))
    np.testing.assert_allclose(found[0].vectors, VECTORS, atol=0.03)
    assert found[0] == found[1] == stain_of_slide(ArrayPool(PIXELS), EVERYWHERE, WHITE)


def test_only_readable_tissue_is_measured():
    pixels = PIXELS.copy()
    pixels[:, 200:] = (30, 160, 40)  # green ink, outside of the tissue
    pixels[:40] = (40, 40, 40)  # cannot be read
    unreadable = np.zeros((HEIGHT, WIDTH), bool)
    unreadable[:40] = True
    tissue = Tissue(np.arange(2)[None] == 0, GRID)
    np.testing.assert_allclose(stain_of_slide(ArrayPool(pixels, unreadable), tissue, WHITE).vectors, VECTORS, atol=0.03)


def test_a_large_slide_is_sampled_in_the_same_places(monkeypatch):
    monkeypatch.setattr(slide_stain, "SIDE", 50)
    monkeypatch.setattr(slide_stain, "SQUARES", 10)
    pools = [ArrayPool(PIXELS) for _ in range(2)]
    found = [stain_of_slide(pool, EVERYWHERE, WHITE) for pool in pools]
    assert len(pools[0].asked) == 10 and pools[0].asked == pools[1].asked and found[0] == found[1]


def test_a_slide_without_tissue_is_not_read():
    pool = ArrayPool(PIXELS)
    with pytest.raises(NotMeasurable, match="no tissue"):
        stain_of_slide(pool, Tissue(np.zeros((1, 1), bool), GRID), WHITE)
    assert pool.asked == []
