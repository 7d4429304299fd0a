"""How often examples are drawn."""

import numpy as np
import pytest

from bcss_jax.data.sampling.balance import MOST_DRAWS, class_weights, draws, with_slide_weights


def test_classes_are_drawn_equally_often():
    counts = np.zeros((100, 2), int)
    counts[:80, 0], counts[80:, 1] = 50, 70
    weights = class_weights(counts)
    assert weights.mean() == pytest.approx(1)
    assert weights[:80].sum() == pytest.approx(50) and weights[80:].sum() == pytest.approx(50)


def test_the_weight_of_a_very_rare_class_is_limited_and_examples_without_truth_keep_theirs():
    counts = np.zeros((10_000, 3), int)
    counts[:9998, 0], counts[9998, 1] = 10, 10
    weights = class_weights(counts)
    assert weights[9998] == pytest.approx(MOST_DRAWS, rel=0.01) and weights[9999] == pytest.approx(1, abs=0.6)


def test_draws_depend_on_seed_and_epoch_alone_and_add_up():
    weights = with_slide_weights(np.ones(101), np.resize([1.0, 3.0, 0.5], 101))
    total = np.zeros(101)
    for epoch in range(200):
        drawn = draws(weights, 7, epoch)
        np.testing.assert_array_equal(drawn, draws(weights, 7, epoch))
        assert drawn.sum() == 101
        assert (np.abs(drawn - weights) < 1 + 1e-9).all()
        total += drawn
    np.testing.assert_allclose(total / 200, weights, atol=0.12)
    assert (draws(weights, 7, 0) != draws(weights, 7, 1)).any() and (draws(weights, 7, 0) != draws(weights, 8, 0)).any()
    np.testing.assert_array_equal(draws(np.ones(50), 0, 0), np.ones(50))
