"""What outlines cover, however often they run around it."""

import numpy as np
import pytest
import shapely

from bcss_jax.slides.annotations.outline_cover import covered_by_outline, drawn_area

SQUARE = [(0, 0), (10, 0), (10, 10), (0, 10), (0, 0)]


@pytest.mark.parametrize(
    "points, area",
    [
        (SQUARE, 100),
        (SQUARE[::-1], 100),
        (SQUARE[:-1], 100),  # not closed
        (SQUARE + SQUARE[1:], 100),  # drawn twice
        (SQUARE * 3, 100),
        ([(0, 0), (10, 10), (10, 0), (0, 10)], 50),  # both lobes of a figure eight
        ([(0, 0), (10, 0), (10, 10), (5, 10), (5, 20), (5, 10), (0, 10)], 100),  # a spike
        # An outline that overlaps its own beginning: the overlap is covered twice, and is no hole.
        ([(0, 0), (10, 0), (10, 10), (0, 10), (0, 2), (6, 2), (6, -4), (2, -4), (2, 6), (0, 6)], 108),
        # A hole joined to the outline by a slit, as some programs write it, stays a hole.
        ([(0, 0), (10, 0), (10, 10), (0, 10), (0, 0), (2, 2), (2, 8), (8, 8), (8, 2), (2, 2)], 64),
        ([(0, 0), (5, 5), (9, 9)], 0),
    ],
)
def test_what_an_outline_covers(points, area):
    found = covered_by_outline(np.array(points, np.float64))
    assert found.is_valid and found.area == pytest.approx(area)


def test_random_freehand_outlines_cover_what_the_winding_number_says():
    rng = np.random.default_rng(0)
    for _ in range(5):
        points = rng.uniform(0, 10, (12, 2))
        found = covered_by_outline(points)
        for x, y in rng.uniform(0, 10, (50, 2)):
            angles = np.unwrap(np.arctan2(*(np.vstack([points, points[:1]]) - (x, y)).T[::-1]))
            assert found.covers(shapely.Point(x, y)) == (abs(angles[-1] - angles[0]) > 1)


def test_the_area_that_an_outline_states():
    assert drawn_area(np.array(SQUARE, float)) == drawn_area(np.array(SQUARE[:-1], float) + 1e6) == 100
