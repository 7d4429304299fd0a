"""A view shows its place on the slide, and places go from one to the other and back."""

import numpy as np
import pytest
from helpers import slide_files

from bcss_jax.slides.grid import grid_of
from bcss_jax.slides.prompts.view import MOST_ENLARGED, View, read_view, view_at, view_of_box
from bcss_jax.slides.reading.reader_pool import ReaderPool

SIZE, MPP = (1237, 803), (0.25, 0.3)


@pytest.mark.parametrize("resolution", [0.07, 0.25, 0.4137, 2.0])
def test_places_go_to_the_view_and_back(resolution):
    view = view_at(grid_of(*SIZE, MPP, resolution), (700, 500), 100)
    points = np.random.default_rng(0).uniform(0, 1000, (50, 2))
    np.testing.assert_allclose(view.to_level0(view.from_level0(points)), points, atol=1e-9)
    corners = view.from_level0(np.reshape(view.box, (2, 2)))
    np.testing.assert_allclose(corners, [[0, 0], [view.width, view.height]], atol=1e-9)


@pytest.mark.parametrize("center", [(0, 0), (1237, 803), (600, 400), (-50, 3000)])
def test_a_view_lies_in_the_slide_and_around_its_center_where_it_can(center):
    grid = grid_of(*SIZE, MPP, 0.5)
    view = view_at(grid, center, 200)
    assert (view.width, view.height) == (200, 200)
    assert 0 <= view.left <= grid.width - 200 and 0 <= view.top <= grid.height - 200
    if center == (600, 400):
        np.testing.assert_allclose(view.from_level0(center), (100, 100), atol=1)


def test_a_view_of_a_small_slide_is_the_slide():
    grid = grid_of(*SIZE, MPP, 0.5)
    assert view_at(grid, (100, 100), 2000) == View(grid, 0, 0, grid.width, grid.height)


def test_a_box_takes_its_share_of_the_view():
    view = view_of_box(SIZE, MPP, (500, 300, 620, 350), 128, 0.5)
    assert (620 - 500) / view.grid.scale[0] == pytest.approx(64, rel=0.01)
    assert view.holds((500, 300, 620, 350)) and (view.width, view.height) == (128, 128)
    upright = view_of_box(SIZE, MPP, (500, 300, 510, 400), 128, 0.5)
    assert 100 / upright.grid.scale[1] == pytest.approx(64, rel=0.01)


def test_the_resolution_of_a_box_has_limits():
    tiny = view_of_box(SIZE, MPP, (500, 300, 500.5, 300), 128, 0.5)
    assert min(tiny.grid.scale) == pytest.approx(1 / MOST_ENLARGED, rel=0.01)
    whole = view_of_box(SIZE, MPP, (0, 0, *SIZE), 128, 0.5)
    assert (whole.left, whole.top, whole.width) == (0, 0, 128)
    np.testing.assert_allclose(whole.box, (0, 0, *SIZE))


def test_pixels_of_a_view_are_those_of_its_place(tmp_path):
    pixels = slide_files.picture(301, 207)
    path = slide_files.tiled(tmp_path / "slide.tif", pixels)
    with ReaderPool(path, 1) as pool:
        same = view_at(grid_of(301, 207, (0.25, 0.25), 0.25), (150, 100), 64)
        np.testing.assert_array_equal(
            read_view(pool, same).pixels, pixels[same.top : same.top + 64, same.left : same.left + 64]
        )
        half = view_at(grid_of(301, 207, (0.25, 0.25), 0.5), (150, 100), 32)
        x0, y0, x1, y1 = (round(each) for each in half.box)
        found = read_view(pool, half)
        assert found.pixels.shape == (32, 32, 3) and found.unreadable is None
        assert abs(found.pixels.mean() - pixels[y0:y1, x0:x1].mean()) < 3
