"""The weighted k-NN is that of DINO, with neighbors from other groups alone."""

import numpy as np

from bcss_jax.pretraining.knn import TEMPERATURE, K, knn_accuracy


def accuracy_of_dino(features, labels, groups, k):
    """eval_knn.py's knn_classifier, with every tile in turn against those of other groups."""
    features = features / np.linalg.norm(features, axis=1, keepdims=True)
    right = 0
    for i, group in enumerate(groups):
        others = np.flatnonzero(groups != group)
        similarity = features[others] @ features[i]
        nearest = np.argsort(-similarity)[:k]
        weights = np.exp(similarity[nearest] / TEMPERATURE)
        scores = np.bincount(labels[others][nearest], weights, labels.max() + 1)
        right += int(scores.argmax() == labels[i])
    return right / len(labels)


def test_accuracy_is_that_of_dino():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 300)
    features = (rng.normal(size=(300, 8)) + 0.8 * np.eye(8)[labels]).astype(np.float32)
    groups = rng.integers(0, 12, 300)
    expected = accuracy_of_dino(features, labels, groups, K)
    assert 0.4 < expected < 0.9
    assert abs(knn_accuracy(features, 2 * labels + 1, groups) - expected) < 1e-6  # labels need not be consecutive


def test_neighbors_are_of_other_groups():
    features = np.array([[1, 0], [1, 0.01], [0, 1], [0.01, 1]], np.float32)
    labels = np.array([0, 1, 1, 0])
    assert knn_accuracy(features, labels, np.arange(4), k=1) == 0
    assert knn_accuracy(features, np.array([0, 0, 1, 1]), np.arange(4), k=1) == 1
    # With the only like neighbors in the own group, the others decide.
    assert knn_accuracy(features, np.array([0, 0, 1, 1]), np.array([0, 0, 1, 1]), k=2) == 0


def test_few_tiles_and_large_similarities():
    features = 1e4 * np.array([[1, 0], [1, 0.01], [0, 1]], np.float32)
    assert knn_accuracy(features, np.array([5, 5, 7]), np.arange(3), temperature=0.001) == 2 / 3
