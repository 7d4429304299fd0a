"""Each object is seen whole at a suitable resolution, and near ones share a view."""

import numpy as np
import pytest

from bcss_jax.slides.prompts.object_prompt import ObjectPrompt
from bcss_jax.slides.prompts.prompt_file import SlideObject
from bcss_jax.slides.prompts.view_plan import MOST_SHARE, POINT_MPP, STEP, plan_views

SIZE, MPP, SIDE = (40_000, 30_000), (0.25, 0.26), 1024


def boxed(*box):
    return SlideObject(1, "geometry 1", ObjectPrompt(box=box), box)


def pointed(x, y):
    return SlideObject(1, "geometry 1", ObjectPrompt(np.array([[x, y]]), np.array([1])), (x, y, x, y))


def assert_all_are_seen(objects, plan):
    seen = sorted(number for each in plan.views for number in each.objects)
    assert seen == list(range(len(objects)))
    for view, numbers in plan.views:
        assert view.width <= SIDE + 1 and view.height <= SIDE + 1
        for number in numbers:
            (x0, y0, x1, y1), (a0, b0, a1, b1) = objects[number].extent, view.box
            assert a0 - 2 <= x0 and b0 - 2 <= y0 and x1 <= a1 + 2 and y1 <= b1 + 2


@pytest.mark.parametrize("side", [5, 60, 1000, 5000, 20_000])
@pytest.mark.parametrize("corner", [(0, 0), (20_000, 9_000)])
def test_a_box_takes_about_half_of_its_view(side, corner):
    objects = [boxed(*corner, corner[0] + side, corner[1] + side / 2)]
    plan = plan_views(objects, SIZE, MPP, SIDE, None)
    assert_all_are_seen(objects, plan)
    share = side / plan.views[0].view.grid.scale[0] / SIDE
    if 1000 <= side <= 5000:
        assert 0.5 / STEP < share < 0.5 * STEP
    assert share < MOST_SHARE + 0.01


def test_the_whole_slide_can_be_an_object():
    objects = [boxed(0, 0, *SIZE), boxed(100, 100, 39_000, 29_000)]
    plan = plan_views(objects, SIZE, MPP, SIDE, None)
    assert_all_are_seen(objects, plan)


def test_points_are_seen_in_the_middle_at_their_resolution():
    objects = [pointed(20_000, 15_000), pointed(0, 0)]
    plan = plan_views(objects, SIZE, MPP, SIDE, None)
    assert_all_are_seen(objects, plan)
    assert all(each.view.grid.mpp == pytest.approx(POINT_MPP) for each in plan.views)
    view = next(each.view for each in plan.views if 0 in each.objects)
    assert (np.abs(view.from_level0((20_000, 15_000)) - SIDE / 2) < 2).all()


def test_near_objects_of_one_size_share_views():
    rng = np.random.default_rng(0)
    corners = rng.uniform(5000, 9000, (60, 2))
    objects = [boxed(x, y, x + 100, y + 100) for x, y in corners]
    plan = plan_views(objects, SIZE, MPP, SIDE, 0.5)
    assert_all_are_seen(objects, plan)
    assert len(plan.views) <= 12 and plan.coarser == 0  # 4000 pixels are two views wide


def test_what_does_not_fit_at_the_given_resolution_is_seen_coarser():
    objects = [boxed(0, 0, 100, 100), boxed(5000, 5000, 15_000, 6000)]
    plan = plan_views(objects, SIZE, MPP, SIDE, 0.5)
    assert_all_are_seen(objects, plan)
    assert plan.coarser == 1
    assert {each.view.grid.mpp for each in plan.views if 0 in each.objects} == {0.5}


@pytest.mark.parametrize("size", [(10, 10), (300, 7), (1, 5000)])
def test_a_box_around_a_tiny_slide_shows_all_of_it(size):
    objects = [boxed(0, 0, *size), pointed(size[0] / 2, size[1] / 2)]
    plan = plan_views(objects, size, (0.25, 0.25), SIDE, None)
    assert sorted(number for each in plan.views for number in each.objects) == [0, 1]
    whole = next(view for view, numbers in plan.views if 0 in numbers)
    assert whole.box == pytest.approx((0, 0, *size))
