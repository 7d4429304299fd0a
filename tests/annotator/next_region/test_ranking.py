"""The order of regions: most in dispute first, ties in reading order, nothing twice."""

import numpy as np
import pytest

from bcss_jax.annotator.next_region import ranking
from bcss_jax.annotator.next_region.ranking import ranked_regions


def cells(shape, *boxes):
    found = np.zeros(shape, np.float32)
    for row, column, height, width, share in boxes:
        found[row : row + height, column : column + width] = share
    return found


def test_the_region_with_the_most_in_dispute_is_first_and_lies_around_it():
    first, second = ranked_regions(cells((100, 140), (12, 100, 8, 8, 1), (70, 20, 8, 6, 1)))
    assert (first.row + 16, first.column + 16) == (16, 104) and (second.row + 16, second.column + 16) == (74, 23)
    assert first.share == 64 / 1024 and second.share == 48 / 1024
    faint, _ = ranked_regions(cells((100, 140), (12, 100, 8, 8, 0.2), (70, 20, 8, 6, 0.5)))
    assert faint.row + 16 == 74  # half of 48 cells is more than a fifth of 64


def test_regions_stay_on_the_slide():
    (corner,) = ranked_regions(cells((100, 140), (96, 136, 4, 4, 1)))
    assert (corner.row, corner.column) == (68, 108) and corner.share == 16 / 1024
    (thin,) = ranked_regions(cells((5, 140), (0, 0, 5, 2, 1)))
    assert thin.disputed.shape == (5, 32) and thin.share == 10 / 160
    (small,) = ranked_regions(np.ones((1, 1)))
    assert small.share == 1


def test_equal_regions_come_in_reading_order():
    found = ranked_regions(cells((120, 120), (80, 10, 4, 4, 0.7), (10, 80, 4, 4, 0.7), (10, 10, 4, 4, 0.7)))
    assert [(each.row + 16, each.column + 16) for each in found] == [(16, 16), (12 + 4, 82), (82, 16)]
    assert len({each.share for each in found}) == 1


def test_what_is_in_dispute_everywhere_is_covered_once():
    found = ranked_regions(np.full((70, 100), 0.5, np.float32))
    shares = [each.share for each in found]
    assert shares == sorted(shares, reverse=True) and shares[0] == 0.5
    covered = np.zeros((70, 100))
    for each in found:
        covered[each.row : each.row + 32, each.column : each.column + 32] += each.disputed
    assert (covered <= 0.5).all() and (covered == 0.5).mean() > 0.97


def test_without_anything_in_dispute_there_is_no_region():
    assert ranked_regions(np.zeros((70, 100))) == []
    assert ranked_regions(cells((70, 100), (3, 3, 3, 3, 1))) == []  # 0.9 % of a region
    assert len(ranked_regions(cells((70, 100), (3, 3, 3, 4, 1)))) == 1


def test_there_is_a_limit(monkeypatch):
    monkeypatch.setattr(ranking, "MOST", 3)
    assert len(ranked_regions(np.ones((200, 200)))) == 3


@pytest.mark.parametrize("seed", range(3))
def test_shares_never_rise(seed):
    random = np.random.default_rng(seed)
    found = ranked_regions(random.random((90, 75)) * (random.random((90, 75)) > 0.7))
    shares = [each.share for each in found]
    assert len(found) > 4 and shares == sorted(shares, reverse=True)
