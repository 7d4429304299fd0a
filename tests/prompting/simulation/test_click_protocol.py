"""Clicks for measurements are where the protocol says, and never on pixels without ground truth."""

import numpy as np

from bcss_jax.prompting.simulation.click_protocol import Click, box_of, next_click, regions_of

ALL = np.ones((20, 30), bool)
NOTHING = np.zeros((20, 30), bool)


def rectangle(rows, columns):
    mask = np.zeros((20, 30), bool)
    mask[rows[0] : rows[1], columns[0] : columns[1]] = True
    return mask


def test_the_first_click_is_farthest_from_the_border():
    mask = rectangle((2, 13), (4, 15)) | rectangle((2, 4), (15, 29))
    assert next_click(mask, ALL, NOTHING, []) == Click(9, 7, True)
    at_border = rectangle((0, 7), (0, 7))
    assert next_click(at_border, ALL, NOTHING, []) == Click(3, 3, True)


def test_the_next_click_is_in_the_largest_error():
    mask = rectangle((0, 20), (0, 15))
    missed = mask & ~rectangle((0, 5), (0, 5))
    assert next_click(mask, ALL, missed, []) == Click(2, 2, True)
    added = missed | rectangle((5, 14), (20, 29))
    assert next_click(mask, ALL, added, []) == Click(24, 9, False)
    assert next_click(mask, ALL, mask, []) is None


def test_ignored_pixels_are_no_errors():
    mask, known = rectangle((0, 20), (0, 15)), ~rectangle((0, 20), (18, 30))
    predicted = mask | rectangle((0, 20), (18, 30))
    assert next_click(mask, known, predicted, []) is None
    beyond = mask | rectangle((0, 20), (15, 30))
    click = next_click(mask, known, beyond, [])
    assert known[click.y, click.x] and not click.inside


def test_a_pixel_is_clicked_once():
    mask = rectangle((4, 7), (4, 7))
    first = next_click(mask, ALL, NOTHING, [])
    second = next_click(mask, ALL, NOTHING, [first])
    assert first == Click(5, 5, True) and second != first and mask[second.y, second.x]


def test_regions_are_connected_over_edges_and_not_too_small():
    labels = np.zeros((20, 30), np.uint8)
    labels[:10, :10], labels[10:, 10:20], labels[0, 29] = 1, 1, 2
    found = regions_of(labels, (1, 2))
    assert [(each.label, int(each.mask.sum())) for each in found] == [(1, 100), (1, 100)]
    assert box_of(found[1].mask).tolist() == [10, 10, 19, 19]
