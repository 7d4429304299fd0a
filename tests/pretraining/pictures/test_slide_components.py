"""Components over a slide: every patch is taken from one window, and windows are stitched where they belong."""

import numpy as np
import pytest
from helpers.slide_files import tiled

from bcss_jax.errors import DataError
from bcss_jax.pretraining.pictures.components import find_components
from bcss_jax.pretraining.pictures.slide_components import _windows, slide_components
from bcss_jax.slides.batch.slide_list import Entry

PATCH = 8


class ColorEncoder:
    """Has the mean color and the deviation of a patch as features, which do not depend on the patches around it."""

    patch = PATCH

    def patches(self, images):
        n, height, width, _ = images.shape
        patches = images.reshape(n, height // PATCH, PATCH, width // PATCH, PATCH, 3).astype(np.float32)
        return np.concatenate([patches.mean((2, 4)), patches.std((2, 4))], -1)


@pytest.mark.parametrize(("rows", "columns", "side"), [(20, 33, 8), (8, 8, 8), (9, 8, 8), (4, 50, 4), (5, 6, 5)])
def test_every_patch_is_taken_from_one_window(rows, columns, side):
    taken = np.zeros((rows, columns), int)
    for window in _windows(rows, columns, side):
        (left, right), (top, bottom) = window.columns, window.rows
        assert 0 <= left < right <= side and 0 <= top < bottom <= side
        assert 0 <= window.x <= columns - side and 0 <= window.y <= rows - side
        taken[window.y + top : window.y + bottom, window.x + left : window.x + right] += 1
    assert (taken == 1).all()


def test_a_slide_is_stitched_from_its_windows(tmp_path):
    rng = np.random.default_rng(0)
    colors = rng.integers((100, 40, 120), (200, 120, 200), (25, 40, 3)).astype(np.uint8)
    pixels = np.repeat(np.repeat(colors, PATCH, 0), PATCH, 1)
    pixels[:, :128] = 240  # glass
    slide = Entry(tiled(tmp_path / "a.tif", pixels, mpp=1))
    found, figure = slide_components(slide, ColorEncoder(), 1, window=64)
    assert found.shape == (25, 40, 3)
    assert (found[:, :15] == 255).all()  # without tissue
    features = ColorEncoder().patches(pixels[None, :, 136:])[0]
    # Fewer windows than the components are found on: each patch counts as often as windows show it.
    reference = find_components(features.reshape(-1, 6)).colors(features)
    likeness = [np.corrcoef(found[:, 17:, i].ravel(), reference[..., i].ravel())[0, 1] for i in range(3)]
    assert np.abs(likeness).min() > 0.9
    assert [axes.get_title() for axes in figure.axes] == ["slide", "components of the features"]


def test_slides_without_tissue_and_tiny_ones_are_refused(tmp_path):
    blank = Entry(tiled(tmp_path / "blank.tif", np.full((256, 256, 3), 240, np.uint8), mpp=1))
    with pytest.raises(DataError, match=r"blank\.tif: expected tissue, found none"):
        slide_components(blank, ColorEncoder(), 1)
    with pytest.raises(DataError, match="at least four patches of 8 pixels on each side, found 26x26"):
        slide_components(blank, ColorEncoder(), 10)
