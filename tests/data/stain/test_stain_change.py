"""An image in the stain of another laboratory returns to the pixels that it has in the first."""

import numpy as np
import pytest
from helpers.stained_pixels import OTHER_VECTORS, amounts, stained

from bcss_jax.data.stain.measured_stain import measure
from bcss_jax.data.stain.stain_change import change_of, changed, factors_of, reference_white

AMOUNTS = amounts(192, 192)
ORIGINAL = stained(AMOUNTS)
WHITE = np.full(3, 240.0)
TARGET = measure(ORIGINAL.reshape(-1, 3), WHITE)


def mean_difference(image):
    return np.abs(image.astype(int) - ORIGINAL).mean()


@pytest.mark.parametrize("factors", [(1.0, 1.0), (0.6, 1.3), (1.4, 0.7)])
@pytest.mark.parametrize("white", [240, 215])
def test_known_factors_colors_and_glass_are_undone(factors, white):
    other = stained(AMOUNTS * factors, vectors=OTHER_VECTORS, white=white)
    glass = np.full(3, float(white))
    stain = measure(other.reshape(-1, 3), reference_white(TARGET, glass))
    np.testing.assert_allclose(factors_of(stain, TARGET), 1 / np.array(factors), rtol=0.06)
    restored = np.asarray(changed(other, change_of(stain, TARGET)))
    assert restored.dtype == np.uint8
    assert mean_difference(restored) < min(2.5, 0.3 * mean_difference(other))
    np.testing.assert_allclose(restored[(AMOUNTS == 0).all(2)].astype(int), 240, atol=1)


def test_the_own_stain_changes_nothing():
    everything = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    np.testing.assert_array_equal(changed(everything, change_of(TARGET, TARGET)), everything)


def test_every_pixel_is_changed_alike_whatever_the_batch():
    stain = measure(stained(AMOUNTS * (0.7, 1.2)).reshape(-1, 3), WHITE)
    images = np.random.default_rng(0).integers(0, 256, (3, 32, 48, 3)).astype(np.uint8)
    together = np.asarray(changed(images, change_of(stain, TARGET)))
    for image, expected in zip(images, together, strict=True):
        np.testing.assert_array_equal(changed(image[:16], change_of(stain, TARGET)), expected[:16])


def test_glass_counts_only_where_both_are_known():
    unknown = measure(ORIGINAL.reshape(-1, 3), None)
    assert reference_white(unknown, WHITE) is None
    np.testing.assert_array_equal(reference_white(TARGET, None), WHITE)
    np.testing.assert_array_equal(reference_white(TARGET, WHITE - 9), WHITE - 9)
    np.testing.assert_array_equal(changed(ORIGINAL, change_of(unknown, unknown)), ORIGINAL)
