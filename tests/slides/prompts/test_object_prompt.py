"""Prompts on the slide reach the network at their place in the view."""

import numpy as np
import shapely

from bcss_jax.models.sam.architecture import DecoderForm, ViTForm
from bcss_jax.models.sam.sam import Sam
from bcss_jax.slides.grid import grid_of
from bcss_jax.slides.prompts.object_prompt import ObjectPrompt, arguments_in_view
from bcss_jax.slides.prompts.view import view_at

SAM = Sam(ViTForm(16, 1, 2, (0,), patch=8, window=4, hidden=16, table=8), DecoderForm(channels=16, heads=2, hidden=16))
VIEW = view_at(grid_of(1000, 1000, (0.25, 0.25), 0.5), (500, 500), 64)  # level-0 pixels 436 to 564


def test_pixels_are_counted_from_their_centers():
    points = np.array([[437.0, 437.0], [564.0, 500.0], [100.0, 500.0]])
    found = arguments_in_view(ObjectPrompt(points, np.array([1, 0, 1])), VIEW, SAM)
    np.testing.assert_allclose(found["points"], [[0, 0], [63, 31.5]])  # the third lies outside
    np.testing.assert_array_equal(found["labels"], [1, 0])
    assert "box" not in found and "mask" not in found


def test_a_point_at_the_edge_of_the_slide_counts():
    for size in range(90, 400):
        grid = grid_of(size, size, (0.25, 0.25), 0.5)
        view = view_at(grid, (size, size), 37)
        found = arguments_in_view(ObjectPrompt(np.array([[size, size]]), np.array([1])), view, SAM)
        np.testing.assert_allclose(found["points"], [[36, 36]], atol=1e-6)


def test_corners_of_a_box_are_pixels_in_it():
    box = arguments_in_view(ObjectPrompt(box=(446, 456, 466, 476)), VIEW, SAM)["box"]
    np.testing.assert_allclose(box, [5, 10, 14, 19])
    tiny = arguments_in_view(ObjectPrompt(box=(446, 456, 446.5, 456.5)), VIEW, SAM)["box"]
    assert (tiny[:2] <= tiny[2:]).all()
    beyond = arguments_in_view(ObjectPrompt(box=(0, 0, 5000, 5000)), VIEW, SAM)["box"]
    np.testing.assert_allclose(beyond, [0, 0, 63, 63])


def test_an_area_becomes_logits_at_its_place():
    area = shapely.box(436, 436, 500, 468)  # the left half of the view, and a quarter of its rows
    mask = arguments_in_view(ObjectPrompt(area=area), VIEW, SAM)["mask"]
    assert mask.shape == (32, 32) and mask.dtype == np.float32
    np.testing.assert_array_equal(mask > 0, np.indices((32, 32))[0] // 8 + 9 * (np.indices((32, 32))[1] // 16) == 0)
    assert 6 < mask.max() < 8 and -8 < mask.min() < -6


def test_what_lies_around_a_view_that_is_not_square_is_outside():
    wide = view_at(grid_of(1000, 100, (0.25, 0.25), 0.25), (500, 50), 200)
    assert (wide.width, wide.height) == (200, 100)
    mask = arguments_in_view(ObjectPrompt(area=shapely.box(0, 0, 1000, 100)), wide, SAM)["mask"]
    np.testing.assert_array_equal(mask > 0, np.indices((32, 32))[0] < 16)
