"""A linear classifier of features, fitted to few labeled pixels."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy import optimize, special

L2 = 0.01  # weight of the squared kernel, beside the mean loss of a class
STEPS = 200  # of L-BFGS, at most


class LinearClassifier(NamedTuple):
    """Multinomial logistic regression on standardized features.

    Attributes:
      mean: of the features of the labeled pixels [D].
      deviation: of the same, [D].
      kernel: [D, K].
      bias: [K].
    """

    mean: jax.Array
    deviation: jax.Array
    kernel: jax.Array
    bias: jax.Array

    def __call__(self, features: jax.Array) -> jax.Array:
        """Features [..., D] -> logits [..., K]."""
        kernel = self.kernel / self.deviation[:, None]
        return jnp.matmul(features - self.mean, kernel, precision="highest") + self.bias


def fit_classifier(features: np.ndarray, labels: np.ndarray, classes: int) -> LinearClassifier:
    """Fits a classifier; every class counts the same, however many pixels it has.

    Args:
      features: of labeled pixels, float32 [n, D].
      labels: from 0 to `classes` - 1, int [n]; each occurs.
      classes: K.
    """
    counts = np.bincount(labels, minlength=classes)
    weights = (1 / (classes * counts))[labels].astype(np.float32)
    mean = np.average(features.astype(np.float64), axis=0, weights=weights)
    variance = np.average((features - mean) ** 2, axis=0, weights=weights)
    deviation = np.sqrt(variance) + 1e-6 * (np.abs(mean) + 1e-6)  # a feature may be constant
    standardized = ((features - mean) / deviation).astype(np.float32)
    kernel, bias = _minimize(standardized, np.eye(classes, dtype=np.float32)[labels], weights[:, None])
    return LinearClassifier(*(jnp.asarray(part, jnp.float32) for part in (mean, deviation, kernel, bias)))


def _minimize(features: np.ndarray, targets: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns kernel and bias with the smallest sum of the weighted losses and the penalty.

    Args:
      features: standardized, float32 [n, D].
      targets: 1 for the class of each pixel, 0 for the others, float32 [n, K].
      weights: of the pixels, float32 [n, 1].
    """
    width, classes = features.shape[1], targets.shape[1]

    def loss_and_gradient(parameters):
        kernel, bias = np.split(parameters.reshape(width + 1, classes).astype(np.float32), [width])
        logs = special.log_softmax(features @ kernel + bias, axis=1)
        loss = -(weights * targets * logs).sum(dtype=np.float64) + L2 * np.square(kernel).sum(dtype=np.float64)
        slopes = weights * (np.exp(logs) - targets)
        gradient = np.concatenate([features.T @ slopes + 2 * L2 * kernel, slopes.sum(0, keepdims=True)])
        return loss, gradient.ravel().astype(np.float64)

    start = np.zeros((width + 1) * classes)
    found = optimize.minimize(loss_and_gradient, start, jac=True, method="L-BFGS-B", options={"maxiter": STEPS})
    kernel, bias = np.split(found.x.reshape(width + 1, classes), [width])
    return kernel, bias[0]
