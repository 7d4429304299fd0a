"""Areas do not overlap, and where masks did, the larger logit has decided."""

import numpy as np
import pytest
import shapely

from bcss_jax.slides.grid import grid_of
from bcss_jax.slides.prompts.answers import Answer
from bcss_jax.slides.prompts.overlaps import _largest, masked, separate_areas
from bcss_jax.slides.prompts.view import view_at

SIZE, MPP = (1000, 800), (0.25, 0.3)


def cone(label, center, radius, resolution=0.5, height=1.0, side=400, seen_from=None):
    """An object whose logit falls from its center (pixels of level 0) to 0 at a radius in um, seen at a resolution."""
    view = view_at(grid_of(*SIZE, MPP, resolution), seen_from or center, side)
    places = np.stack(np.meshgrid(np.arange(view.width), np.arange(view.height)), -1) + 0.5
    distance = np.hypot(*((view.to_level0(places) - center) * MPP).transpose(2, 0, 1))
    logits = (height * (1 - distance / radius)).astype(np.float32)
    answer = Answer(0.8, logits, 0, 0, False)
    return masked(label, view, answer, lambda: answer)


def assert_apart(found):
    areas = [each.area for each in found]
    assert all(area.is_valid for area in areas)
    for number, area in enumerate(areas):
        assert all(area.intersection(other).area < 1e-6 for other in areas[:number])
    return areas


@pytest.mark.parametrize("resolutions", [(0.5, 0.5), (0.5, 0.71), (1.0, 0.3)])
def test_the_larger_logit_decides(resolutions):
    objects = [cone(1, (400, 400), 50, resolutions[0]), cone(2, (560, 400), 50, resolutions[1])]
    one, other = assert_apart(separate_areas(objects))
    # Equal cones meet half way, at x = 480.
    assert one.bounds[2] == pytest.approx(480, abs=2) and other.bounds[0] == pytest.approx(480, abs=2)
    together = shapely.union_all([each.area for each in objects])
    assert one.union(other).area == pytest.approx(together.area, rel=0.005)


def test_a_higher_logit_takes_all_of_a_small_object():
    objects = [cone(1, (400, 400), 60, height=9), cone(2, (400, 400), 10, height=1)]
    found = separate_areas(objects)
    assert found[1].area.is_empty and found[0].area.equals_exact(objects[0].area.normalize(), 1e9)
    weak = separate_areas([cone(1, (400, 400), 60), cone(2, (400, 400), 10, height=9)])
    assert len(weak[0].area.interiors) == 1 and weak[1].area.area > 0
    assert_apart(weak)


def test_equal_logits_go_to_the_first():
    found = separate_areas([cone(2, (400, 400), 50), cone(1, (400, 400), 50)])
    assert found[1].area.is_empty and found[0].members == [0] and not found[0].area.is_empty


def test_the_same_object_twice_is_one_and_neighbors_stay_apart():
    objects = [cone(1, (300, 400), 40), cone(1, (310, 400), 40, 0.7), cone(1, (520, 400), 40), cone(2, (700, 400), 20)]
    found = separate_areas(objects)
    assert [each.members for each in found] == [[0, 1], [2], [3]]
    assert_apart(found)


def test_masks_of_one_object_on_one_view_are_compared_together():
    random = np.random.default_rng(0)
    places = [((random.uniform(350, 450), random.uniform(350, 450)), random.uniform(40, 60)) for _ in range(5)]
    shared, each_own = (
        separate_areas([cone(1, *place, seen_from=seen) for place in places] + [cone(2, (560, 400), 60)])
        for seen in ((400, 400), None)
    )
    assert [each.members for each in shared] == [each.members for each in each_own] == [[0, 1, 2, 3, 4], [5]]
    for one, other in zip(assert_apart(shared), assert_apart(each_own), strict=True):
        assert one.intersection(other).area > 0.99 * one.union(other).area


def test_parts_of_answers_are_put_together_at_their_places():
    one, other = (
        Answer(0.8, np.full((2, 3), 1, np.float32), 5, 7, False),
        Answer(0.7, np.full((4, 2), 2, np.float32), 7, 6, False),
    )
    found = _largest([one, other])
    assert (found.left, found.top, found.logits.shape) == (5, 6, (4, 4))
    np.testing.assert_array_equal(found.logits[:, 2:], 2)
    np.testing.assert_array_equal(found.logits[:, :2] > 0, [[False] * 2, [True] * 2, [True] * 2, [False] * 2])


def test_three_objects_share_a_place():
    objects = [cone(n + 1, center, 50) for n, center in enumerate([(400, 400), (500, 400), (450, 480)])]
    areas = assert_apart(separate_areas(objects))
    together = shapely.union_all([each.area for each in objects]).area
    assert sum(area.area for area in areas) == pytest.approx(together, rel=0.005)


def test_areas_are_cut_out_of_all_objects():
    blocked = [shapely.box(390, 390, 410, 410), shapely.box(0, 0, 10, 10)]
    found = separate_areas([cone(1, (400, 400), 50), cone(2, (600, 400), 5)], blocked)
    assert len(found[0].area.interiors) == 1 and found[0].area.intersection(blocked[0]).area < 1e-6


def test_nothing_found_stays_empty():
    nothing = Answer(0.1, np.zeros((0, 0), np.float32), 0, 0, False)
    other = cone(1, (400, 400), 50)
    found = separate_areas([masked(1, other.view, nothing, lambda: nothing), other])
    assert found[0].area.is_empty and not found[1].area.is_empty
