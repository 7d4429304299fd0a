"""Outlines on the slide hold exactly the pixels of a mask, and masks of outlines nearly all of their area."""

import numpy as np
import pytest
import shapely

from bcss_jax.slides.grid import grid_of
from bcss_jax.slides.prompts.outlines import mask_of, outlines, smooth_outlines
from bcss_jax.slides.prompts.view import view_at, view_of_box

SIZE, MPP = (5003, 4001), (0.2527, 0.31)
SIDE = 512


def blobs(seed, side=120):
    rng = np.random.default_rng(seed)
    coarse = rng.standard_normal((side // 10 + 1, side // 10 + 1))
    mask = np.kron(coarse, np.ones((10, 10)))[:side, :side] > 0.2
    return mask ^ (rng.random((side, side)) > 0.97)  # single pixels, holes, and diagonal contacts


@pytest.mark.parametrize("resolution", [0.0633, 0.25, 0.777, 3.0])
@pytest.mark.parametrize("seed", [0, 1])
def test_a_mask_comes_back_exactly(resolution, seed):
    view = view_at(grid_of(*SIZE, MPP, resolution), (2500.3, 1999.9), 120)
    mask = blobs(seed)
    found = outlines(mask, view)
    assert all(polygon.is_valid and polygon.area > 0 for polygon in found)
    np.testing.assert_array_equal(mask_of(found, view), mask)
    pixel = view.grid.scale[0] * view.grid.scale[1]
    assert sum(polygon.area for polygon in found) == pytest.approx(mask.sum() * pixel, rel=0.01)


def test_masks_that_touch_all_edges_of_the_slide_come_back():
    view = view_at(grid_of(*SIZE, MPP, 20.0), (0, 0), 4000)
    whole = np.ones((view.height, view.width), bool)
    (found,) = outlines(whole, view)
    assert found.bounds == (0, 0, *SIZE)


def test_an_empty_mask_has_no_outline():
    view = view_at(grid_of(*SIZE, MPP, 1.0), (0, 0), 64)
    assert outlines(np.zeros((64, 64), bool), view) == []


def test_small_regions_are_left_out():
    mask = np.zeros((64, 64), bool)
    mask[:2, :2] = mask[30:40, 30:40] = True
    view = view_at(grid_of(*SIZE, MPP, 1.0), (500, 500), 64)
    assert len(outlines(mask, view)) == 2 and len(outlines(mask, view, min_pixels=5)) == 1


def ring(x, y, radius):
    return shapely.Point(x, y).buffer(radius, quad_segs=32).difference(shapely.Point(x, y).buffer(radius * 0.4))


SHAPES = {
    "small disc": shapely.Point(701.3, 902.8).buffer(12),
    "large disc": shapely.Point(2001.3, 1902.8).buffer(900),
    "ring": ring(3000.7, 1500.2, 60),
    "corner": shapely.box(0, 0, 40, 57.5),
    "oblique": shapely.Polygon([(1000, 1000), (1033, 1007), (1050, 1046), (1011, 1028)]),
    "parts": shapely.MultiPolygon([shapely.box(100, 100, 130, 130), shapely.Point(180, 140).buffer(20)]),
}


@pytest.mark.parametrize("name", SHAPES)
def test_an_area_comes_back_from_the_view_that_is_chosen_for_it(name):
    area = SHAPES[name]
    view = view_of_box(SIZE, MPP, area.bounds, SIDE, 0.5)
    if name == "small disc":  # the view is not as fine as its share would have it
        view = view.finer(3)
    found = shapely.union_all(outlines(mask_of([area], view), view))
    assert found.is_valid
    assert len(shapely.get_parts(found)) == len(shapely.get_parts(area))
    assert found.intersection(area).area / found.union(area).area >= 0.99


@pytest.mark.parametrize("radius", [6.3, 20, 90.5])
def test_logits_give_a_finer_outline_than_their_pixels(radius):
    view = view_at(grid_of(*SIZE, MPP, 0.5), (2500, 2000), 240)
    disc = shapely.affinity.scale(shapely.Point(2500.2, 2000.7).buffer(radius, quad_segs=64), 1, MPP[0] / MPP[1])
    centers = view.to_level0(np.stack(np.meshgrid(np.arange(240), np.arange(240)), -1) + 0.5)
    distance = np.hypot(*((centers - (2500.2, 2000.7)) * (1, MPP[1] / MPP[0])).transpose(2, 0, 1))
    (found,) = smooth_outlines((radius - distance).astype(np.float32), view)
    assert found.is_valid
    assert found.intersection(disc).area / found.union(disc).area >= 0.98


def test_logits_at_the_edges_of_a_view_reach_them():
    view = view_at(grid_of(*SIZE, MPP, 0.5), (0, 0), 40)
    (found,) = smooth_outlines(np.full((40, 40), 0.5, np.float32), view)
    np.testing.assert_allclose(found.bounds, view.box, atol=0.01)
    assert smooth_outlines(np.zeros((40, 40), np.float32), view) == []
