"""The losses of masks are those of the papers, and ignored pixels have no part in them."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from bcss_jax.tuning.mask_losses import MaskLosses, mask_losses, prompt_loss


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def test_losses_of_three_pixels_and_an_ignored_one():
    logits = np.array([[[[2.0, -1.0], [0.5, 50.0]]]], np.float32)
    mask = np.array([[[True, True], [False, True]]])
    known = np.array([[[True, True], [True, False]]])
    found = mask_losses(logits, mask, known)
    p = [sigmoid(2), sigmoid(-1), sigmoid(0.5)]
    focal = 0.5 * (1 - p[0]) ** 2 * -math.log(p[0]) + 0.5 * (1 - p[1]) ** 2 * -math.log(p[1])
    focal += 0.5 * p[2] ** 2 * -math.log(1 - p[2])
    dice = 1 - (2 * (p[0] + p[1]) + 1) / (sum(p) + 2 + 1)
    np.testing.assert_allclose(found.focal, [[focal / 3]], rtol=1e-5)
    np.testing.assert_allclose(found.dice, [[dice]], rtol=1e-5)
    np.testing.assert_allclose(found.iou, [[1 / 3]])  # found: pixels 0 and 2; object: 0 and 1
    np.testing.assert_allclose(found.total, [[20 * focal / 3 + dice]], rtol=1e-5)


def test_the_gradient_is_that_of_differences_and_zero_at_ignored_pixels():
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((1, 1, 3, 4)).astype(np.float32)
    mask, known = rng.random((1, 3, 4)) > 0.5, rng.random((1, 3, 4)) > 0.3
    gradient = np.asarray(jax.grad(lambda x: mask_losses(x, mask, known).total.sum())(jnp.asarray(logits)))
    assert (gradient[0, 0][~known[0]] == 0).all() and (gradient[0, 0][known[0]] != 0).all()
    for place in [(0, 0), (1, 2), (2, 3)]:
        step = np.zeros_like(logits)
        step[0, 0][place] = 1e-2
        two = (mask_losses(logits + step, mask, known).total - mask_losses(logits - step, mask, known).total) / 2e-2
        np.testing.assert_allclose(gradient[0, 0][place], two[0, 0], atol=2e-3)


def test_what_stands_at_ignored_pixels_changes_nothing():
    rng = np.random.default_rng(1)
    logits = rng.standard_normal((2, 4, 8, 8)).astype(np.float32)
    mask, known = rng.random((2, 8, 8)) > 0.5, rng.random((2, 8, 8)) > 0.4
    others = np.where(known[:, None], logits, np.nan)
    other_mask = np.where(known, mask, ~mask)
    for one, other in zip(mask_losses(logits, mask, known), mask_losses(others, other_mask, known), strict=True):
        np.testing.assert_array_equal(one, other)
    gradient = jax.grad(lambda x: mask_losses(x, other_mask, known).total.sum())(jnp.asarray(others))
    assert np.isfinite(gradient).all()


def test_of_several_masks_the_one_with_the_lowest_loss_is_trained_and_all_scores():
    total = np.array([[9.0, 3.0, 1.0, 2.0], [9.0, 3.0, 1.0, 2.0]])
    iou = np.array([[0.5, 0.1, 0.6, 0.3]] * 2)
    scores = jnp.array([[0.9, 0.2, 0.4, 0.3]] * 2)
    ambiguous = np.array([True, False])

    def loss(focal, scores):
        return prompt_loss(MaskLosses(focal, jnp.zeros_like(focal), iou), scores, ambiguous)

    focal = jnp.asarray(total / 20)
    np.testing.assert_allclose(loss(focal, scores), [1 + (0.01 + 0.04) / 3, 9 + 0.16], rtol=1e-5)
    of_focal, of_scores = jax.grad(lambda *x: loss(*x).sum(), (0, 1))(focal, scores)
    np.testing.assert_allclose(of_focal, [[0, 0, 20, 0], [20, 0, 0, 0]])
    np.testing.assert_allclose(of_scores, [[0, 0.2 / 3, -0.4 / 3, 0], [0.8, 0, 0, 0]], atol=1e-6)


def test_an_empty_prediction_of_nothing_is_right():
    found = mask_losses(np.full((1, 1, 2, 2), -9.0, np.float32), np.zeros((1, 2, 2), bool), np.ones((1, 2, 2), bool))
    assert found.iou[0, 0] == 1 and np.isfinite(found.total).all()
