"""Random prompts lie where they should, on whatever ground truth."""

import jax
import numpy as np
import pytest
from scipy import ndimage

from bcss_jax.prompting.simulation import training_prompts as prompts

SIDE = 48


def labels_of(seed, ignored=0.2):
    """Returns smooth regions of the labels 1 and 2, and pixels of the label 0, which is ignored."""
    rng = np.random.default_rng(seed)
    labels = 1 + (ndimage.gaussian_filter(rng.standard_normal((SIDE, SIDE)), 4) > 0)
    labels[ndimage.gaussian_filter(rng.standard_normal((SIDE, SIDE)), 3) > 0.06 / max(ignored, 1e-9) * 0.2] = 0
    return labels.astype(np.uint8)


draw_object = jax.jit(prompts.draw_object, static_argnums=(2, 3))
connected = jax.jit(prompts.connected)


@pytest.mark.parametrize("seed", range(4))
def test_a_region_is_that_of_four_neighbors(seed):
    rng = np.random.default_rng(seed)
    within = ndimage.gaussian_filter(rng.standard_normal((SIDE, SIDE)), 1.5) > 0
    start = np.zeros_like(within)
    start[tuple(np.argwhere(within)[rng.integers(within.sum())])] = True
    regions, _ = ndimage.label(within)
    np.testing.assert_array_equal(connected(start, within), regions == regions[start])


def test_a_spiral_is_followed_to_its_end():
    within = np.zeros((SIDE, SIDE), bool)
    within[::2] = True
    within[1::4, -1] = within[3::4, 0] = True
    start = np.zeros_like(within)
    start[0, 0] = True
    np.testing.assert_array_equal(connected(start, within), within)


def test_objects_are_whole_regions_of_a_class_of_which_none_is_ignored():
    labels, sizes = labels_of(0), set()
    for seed in range(20):
        mask, known, exists = map(np.asarray, draw_object(labels, jax.random.key(seed), (1, 2), 0))
        np.testing.assert_array_equal(known, labels != 0)
        (label,) = np.unique(labels[mask])
        regions, _ = ndimage.label(labels == label)
        np.testing.assert_array_equal(mask, regions == regions[mask][0])
        assert label and exists == (mask.sum() >= prompts.MIN_AREA)
        sizes.add(int(mask.sum()))
    assert len(sizes) > 1


def test_a_tile_without_ground_truth_has_no_object():
    mask, _, exists = draw_object(np.zeros((SIDE, SIDE), np.uint8), jax.random.key(0), (1, 2), 0)
    assert not exists and not mask.any()


def test_corrections_are_wrong_pixels_and_never_ignored_ones():
    labels = labels_of(3)
    rng = np.random.default_rng(0)
    mask, known, _ = draw_object(labels, jax.random.key(1), (1, 2), 0)
    predicted = rng.random(labels.shape) > 0.5
    other = np.where(known, predicted, ~predicted)
    for seed in range(20):
        row, column, label = prompts.draw_correction(mask, known, predicted, jax.random.key(seed))
        assert known[row, column] and predicted[row, column] != mask[row, column] and label == mask[row, column]
        again = prompts.draw_correction(mask, known, other, jax.random.key(seed))
        assert (row, column, label) == again
    row, column, label = prompts.draw_correction(mask, known, mask, jax.random.key(0))
    assert mask[row, column] and label == 1


def test_boxes_are_noisy_and_stay_in_the_tile():
    mask = np.zeros((40, 60), bool)
    mask[5:30, 10:50] = True
    boxes = np.stack([prompts.draw_box(mask, jax.random.key(seed)) for seed in range(50)])
    assert (boxes >= 0).all() and (boxes <= [59, 39, 59, 39]).all() and (boxes[:, :2] < boxes[:, 2:]).all()
    noise = boxes - [10, 5, 49, 29]
    limit = prompts.MAX_BOX_NOISE * 60
    assert abs(noise).max() <= limit + 1e-4 and (noise.std(0) > 0.3 * limit).all()
