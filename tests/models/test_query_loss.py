"""Queries are matched with the classes of an image; ignored pixels and the order of examples do not matter."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from bcss_jax.losses import Objective
from bcss_jax.models.decoders import query_loss

OBJECTIVE = Objective(num_classes=3, ignore_index=0, classes=(1, 2), queries=True)
KEYS = jax.random.split(jax.random.key(0), 4)


class Predicted(NamedTuple):
    masks: jax.Array
    classes: jax.Array
    cell: float = 4.0


def drawn(seed=0, n=4, queries=6, size=32):
    rng = np.random.default_rng(seed)
    predicted = Predicted(
        jnp.asarray(rng.normal(0, 3, (n, queries, size // 4, size // 4)), jnp.float32),
        jnp.asarray(rng.normal(0, 2, (n, queries, 4)), jnp.float32),
    )
    return predicted, rng.integers(0, 3, (n, size, size), np.uint8)


@jax.jit
def loss(predicted, labels, keys=KEYS):
    return query_loss.loss_from_query_sums(query_loss.query_sums(predicted, labels, OBJECTIVE, keys))


def test_constant_masks_have_the_loss_of_the_formulas():
    """Where masks and truth are constant, it does not matter which points are compared."""
    value, size, points = np.array([-1.0, 2.0, 0.5], np.float32), 16, 16
    classes = np.array([[0.1, 0.2, 0.9, 0.3], [0.0, 0.5, 1.5, -0.2], [0.3, 0.1, 0.2, 0.4]], np.float32)
    predicted = Predicted(jnp.broadcast_to(value[:, None, None], (1, 3, 4, 4)), jnp.asarray(classes[None]))
    found = loss(predicted, np.full((1, size, size), 2, np.uint8), KEYS[:1])
    p, log_p = 1 / (1 + np.exp(-value)), classes - np.log(np.exp(classes).sum(-1, keepdims=True))
    mask, dice = -np.log(p), 1 - (2 * points * p + 1) / (points * p + points + 1)
    best = int(np.argmin(5 * mask + 5 * dice - 2 * np.exp(log_p[:, 2])))
    assert best == 1
    weights = np.array([0.1, 1, 0.1])
    cross_entropy = -(weights * log_p[range(3), [3, 2, 3]]).sum() / weights.sum()
    assert float(found) == pytest.approx(2 * cross_entropy + 5 * mask[best] + 5 * dice[best], rel=1e-5)


@pytest.mark.parametrize("seed", range(5))
def test_matching_is_the_cheapest(seed):
    rng = np.random.default_rng(seed)
    values, classes = rng.normal(0, 3, (50, 8)).astype(np.float32), rng.normal(0, 2, (8, 6)).astype(np.float32)
    truth = np.eye(5, dtype=np.float32)[rng.integers(0, 4, 50)]
    present = np.array([True, True, seed % 2 == 0, True, False])
    found = np.asarray(query_loss._matched(values, classes, truth, present))[present]
    p, softmax = 1 / (1 + np.exp(-values)), np.exp(classes) / np.exp(classes).sum(-1, keepdims=True)
    cost = np.zeros((8, 5))
    for q in range(8):
        for c in range(5):
            t = truth[:, c]
            entropy = -(t * np.log(p[:, q]) + (1 - t) * np.log(1 - p[:, q])).mean()
            dice = 1 - (2 * (p[:, q] * t).sum() + 1) / (p[:, q].sum() + t.sum() + 1)
            cost[q, c] = 5 * entropy + 5 * dice - 2 * softmax[q, c]
    rows, columns = linear_sum_assignment(cost[:, present])
    np.testing.assert_array_equal(found, rows[np.argsort(columns)])


def test_masks_are_compared_at_the_centers_of_pixels():
    masks = np.random.default_rng(0).normal(size=(1, 5, 5, 3)).astype(np.float32)
    resized = np.asarray(jax.image.resize(masks, (1, 20, 20, 3), "linear", antialias=False)).reshape(400, 3)
    places = np.array([0, 7, 19, 20, 133, 399])
    np.testing.assert_allclose(
        query_loss._at(masks.reshape(25, 3), (5, 5), places, 20, 4.0), resized[places], atol=1e-6
    )


def test_ignored_pixels_change_nothing():
    predicted, labels = drawn()
    labels[0] = 0  # an image without ground truth
    labels[1, :, :20] = 0
    grads = jax.grad(loss)(predicted, labels)
    assert not np.any(grads.masks[0]) and not np.any(grads.classes[0])
    assert np.all(np.asarray(grads.masks)[1, :, :, :4] == 0) and np.any(np.asarray(grads.masks)[1, :, :, 5:])
    other = predicted._replace(
        masks=predicted.masks.at[0].set(99.0).at[1, :, :, :4].set(-7.0), classes=predicted.classes.at[0].set(5.0)
    )
    assert float(loss(other, labels)) == float(loss(predicted, labels))
    kept = jax.tree.map(lambda x: x[1:], (predicted.masks, predicted.classes))
    assert float(loss(Predicted(*kept), labels[1:], KEYS[1:])) == pytest.approx(
        float(loss(predicted, labels)), rel=1e-6
    )
    nothing = loss(predicted, np.zeros_like(labels))
    assert float(nothing) == 0
    assert not any(np.any(g) for g in jax.tree.leaves(jax.grad(loss)(predicted, np.zeros_like(labels))[:2]))


@pytest.mark.slow
def test_sums_of_parts_are_those_of_the_whole():
    predicted, labels = drawn(n=4)
    whole = query_loss.query_sums(predicted, labels, OBJECTIVE, KEYS)
    parts = [
        query_loss.query_sums(
            Predicted(predicted.masks[i::2], predicted.classes[i::2]), labels[i::2], OBJECTIVE, KEYS[i::2]
        )
        for i in range(2)
    ]
    jax.tree.map(lambda a, b, c: np.testing.assert_allclose(a, b + c, rtol=1e-5), whole, *parts)


def test_points_depend_on_the_key_and_the_number_of_the_predictions():
    predicted, labels = drawn()
    of = lambda keys, number=0: query_loss.query_sums(predicted, labels, OBJECTIVE, keys, number)["mask"]  # noqa: E731
    assert float(of(KEYS)) == float(of(KEYS)) != float(of(KEYS, 1)) != float(of(KEYS[::-1]))


def test_the_gradient_is_that_of_differences():
    predicted, labels = drawn(n=1, queries=4, size=16)
    direction = jnp.asarray(np.random.default_rng(1).normal(size=predicted.masks.shape), jnp.float32)
    along = lambda t: loss(predicted._replace(masks=predicted.masks + t * direction), labels, KEYS[:1])  # noqa: E731
    assert float(jax.grad(along)(0.0)) == pytest.approx(float((along(1e-3) - along(-1e-3)) / 2e-3), rel=0.05)


def test_values_that_are_not_finite_end_the_search():
    predicted, labels = drawn()
    broken = predicted._replace(masks=predicted.masks.at[0].set(jnp.nan))
    assert not np.isfinite(loss(broken, labels))


def test_every_class_counts_without_an_ignored_one():
    objective = dataclasses.replace(OBJECTIVE, ignore_index=None)
    predicted, labels = drawn()
    assert float(query_loss.query_sums(predicted, labels, objective, KEYS)["masks"]) == 12
