"""What the student learns: distributions over prototypes, made of the teacher's scores."""

import jax
import jax.numpy as jnp

SINKHORN_ROUNDS = 3


def centered(scores: jax.Array, center: jax.Array, temperature: jax.Array | float) -> jax.Array:
    """Returns softmax((scores - center) / temperature), DINO's targets.

    Args:
      scores: float32 (..., K).
      center: float32 (K,), of the batches before this one.
      temperature: of the teacher.
    """
    return jax.nn.softmax((scores - center) / temperature, axis=-1)


def moved_center(center: jax.Array, mean_scores: jax.Array, momentum: float) -> jax.Array:
    """Returns the center (K,) after a batch with these mean scores (K,)."""
    return momentum * center + (1 - momentum) * mean_scores


def sinkhorn(scores: jax.Array, temperature: jax.Array | float, valid: jax.Array | None = None) -> jax.Array:
    """Returns targets that use all prototypes equally often, by three rounds of Sinkhorn and Knopp's algorithm.

    Source: `sinkhorn_knopp_teacher` of github.com/facebookresearch/dinov2. The largest score is subtracted before the
    exponential, which has no effect on the result and cannot overflow.

    Args:
      scores: float32 (B, K).
      temperature: of the teacher.
      valid: bool (B,), the rows that count; None: all.

    Returns:
      float32 (B, K); each valid row sums to one. Others are zero.
    """
    rows = jnp.ones(len(scores), bool) if valid is None else valid
    scores = jnp.where(rows[:, None], scores / temperature, -jnp.inf)
    largest = jnp.max(scores)
    q = jnp.exp(scores - jnp.where(jnp.isfinite(largest), largest, 0))
    count, prototypes = jnp.maximum(rows.sum(), 1), scores.shape[1]
    q = _divided(q, q.sum())
    for _ in range(SINKHORN_ROUNDS):
        q = _divided(q, q.sum(0, keepdims=True)) / prototypes
        q = _divided(q, q.sum(1, keepdims=True)) / count
    return q * count


def _divided(x: jax.Array, by: jax.Array) -> jax.Array:
    """Returns x / by, and zero where both are zero."""
    return x / jnp.where(by > 0, by, 1)
