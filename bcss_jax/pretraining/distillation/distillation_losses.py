"""Losses of the pretraining. All are computed in float32.

Sources: `DINOLoss` of github.com/facebookresearch/dino; `DINOLoss`, `iBOTPatchLoss` and `KoLeoLoss` of
github.com/facebookresearch/dinov2.
"""

import jax
import jax.numpy as jnp

from bcss_jax.pretraining.distillation.projection_head import normalized

KDE_CONCENTRATION = 5.0


def class_loss(scores: jax.Array, targets: jax.Array, temperature: float) -> jax.Array:
    """Returns the mean cross-entropy of each view of the student with each other global view of the teacher.

    DINOv2's sum of its global and local losses is the same number.

    Args:
      scores: of the student, float32 (views, N, K); the two global views come first.
      targets: of the teacher, float32 (2, N, K).
      temperature: of the student.
    """
    views, n, _ = scores.shape
    log_predicted = jax.nn.log_softmax(scores / temperature, axis=-1)
    both = targets.sum(0)
    # A global view is not compared with itself.
    of_globals = jnp.sum((both - targets) * log_predicted[:2])
    of_locals = jnp.sum(both * log_predicted[2:])
    return -(of_globals + of_locals) / (n * (2 * views - 2))


def patch_loss(scores: jax.Array, targets: jax.Array, weights: jax.Array, temperature: float) -> jax.Array:
    """Returns the weighted sum of the cross-entropies of masked patches.

    Args:
      scores: of the student, float32 (U, K).
      targets: of the teacher, float32 (U, K).
      weights: float32 (U,).
      temperature: of the student.
    """
    log_predicted = jax.nn.log_softmax(scores / temperature, axis=-1)
    return -jnp.sum(weights * jnp.sum(targets * log_predicted, axis=-1))


def koleo(features: jax.Array) -> jax.Array:
    """Returns minus the mean logarithm of the distance to the nearest neighbor, which spreads features.

    Source: Sablayrolles et al. 2019 (arXiv:1806.03198), as in DINOv2.

    Args:
      features: (N, C), N at least 2.
    """
    x = normalized(features, 1e-8)
    products = jnp.matmul(x, x.T, precision=jax.lax.Precision.HIGHEST)
    nearest = jnp.argmax(jnp.where(jnp.eye(len(x), dtype=bool), -1, jax.lax.stop_gradient(products)), axis=1)
    distance = jnp.sqrt(jnp.sum((x - x[nearest] + 1e-8) ** 2, axis=-1))
    return -jnp.mean(jnp.log(distance + 1e-8))


def kde(features: jax.Array) -> jax.Array:
    """Returns the mean logarithm of a kernel density at the features, which spreads them and has no singularity.

    The kernel is von Mises and Fisher's, exp(5 a.b). Source: Wang and Isola 2020 (arXiv:2005.10242); in place of KoLeo
    in Virchow2 (arXiv:2408.00738), where tiles are often alike.

    Args:
      features: (N, C), N at least 2.
    """
    x = normalized(features, 1e-8)
    products = jnp.matmul(x, x.T, precision=jax.lax.Precision.HIGHEST)
    exponents = jnp.where(jnp.eye(len(x), dtype=bool), -jnp.inf, KDE_CONCENTRATION * products)
    return jnp.mean(jax.nn.logsumexp(exponents, axis=1) - jnp.log(len(x) - 1.0))
