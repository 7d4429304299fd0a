"""The classifier finds the minimum of its loss, and every class counts the same."""

import numpy as np
import pytest
from scipy.optimize import minimize

from bcss_jax.slides.scribbles.classifier import L2, fit_classifier


def data(counts, width=5, seed=0):
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(len(counts)), counts)
    centers = rng.standard_normal((len(counts), width))
    return (100 + 3 * (centers[labels] + rng.standard_normal((len(labels), width)))).astype(np.float32), labels


def test_it_is_at_the_minimum():
    features, labels = data((200, 40, 100))
    found = fit_classifier(features, labels, 3)
    x = (features - np.asarray(found.mean)) / np.asarray(found.deviation)
    weights = (1 / (3 * np.bincount(labels)))[labels]

    def loss(parameters):
        kernel, bias = parameters[:15].reshape(5, 3), parameters[15:]
        logits = x @ kernel + bias
        likelihood = logits[np.arange(len(labels)), labels] - np.log(np.exp(logits).sum(1))
        return -(weights * likelihood).sum() + L2 * (kernel**2).sum()

    ours = loss(np.concatenate([np.asarray(found.kernel).ravel(), np.asarray(found.bias)]).astype(np.float64))
    assert ours == pytest.approx(minimize(loss, np.zeros(18)).fun, rel=1e-4)
    np.testing.assert_allclose(found(features), x @ np.asarray(found.kernel) + np.asarray(found.bias), atol=1e-3)


def test_repeated_pixels_of_a_class_change_nothing():
    features, labels = data((50, 50))
    once = fit_classifier(features, labels, 2)
    again = np.concatenate([features, features[labels == 1], features[labels == 1]])
    twice = fit_classifier(again, np.concatenate([labels, np.ones(100, int)]), 2)
    np.testing.assert_allclose(once(features), twice(features), atol=1e-2)


def test_a_constant_feature_is_harmless():
    features, labels = data((50, 50))
    features[:, 2] = 7
    logits = np.asarray(fit_classifier(features, labels, 2)(features))
    assert np.isfinite(logits).all() and (logits.argmax(1) == labels).mean() > 0.8
