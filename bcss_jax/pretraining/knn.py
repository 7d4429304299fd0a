"""Weighted k-NN: how well the nearest neighbors of a tile among labeled tiles tell its class.

Source: github.com/facebookresearch/dino, eval_knn.py: k = 20, temperature 0.07, similarity by cosine.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

K = 20
TEMPERATURE = 0.07
QUERIES = 256  # tiles that are compared with all others at once


def knn_accuracy(
    features: np.ndarray,
    labels: np.ndarray,
    groups: np.ndarray,
    *,
    k: int = K,
    temperature: float = TEMPERATURE,
) -> float:
    """Returns the share of tiles whose class their neighbors in other groups tell.

    Args:
      features: float [M, D], not all zero.
      labels: int [M].
      groups: int [M], such as patients; there are at least two.
      k: number of neighbors; fewer if other groups have fewer tiles.
      temperature: a neighbor of similarity s has the weight exp(s / temperature).
    """
    classes, numbers = np.unique(labels, return_inverse=True)
    predicted = _predict(
        jnp.asarray(features, jnp.float32),
        jnp.asarray(numbers, jnp.int32),
        jnp.asarray(groups, jnp.int32),
        min(k, len(labels) - 1),
        len(classes),
        temperature,
    )
    return float(np.mean(np.asarray(predicted) == numbers))


@functools.partial(jax.jit, static_argnames=("k", "classes", "temperature"))
def _predict(features, labels, groups, k: int, classes: int, temperature: float):
    features = features / jnp.linalg.norm(features, axis=1, keepdims=True)

    def class_of(query):
        feature, group = query
        similarity = jnp.where(groups == group, -jnp.inf, features @ feature)
        nearest, neighbors = jax.lax.top_k(similarity, k)
        # Relative to the nearest, so that no exponential overflows; the same scale for all classes.
        weights = jnp.exp((nearest - nearest[0]) / temperature)
        return jnp.argmax(weights @ jax.nn.one_hot(labels[neighbors], classes))

    return jax.lax.map(class_of, (features, groups), batch_size=QUERIES)
