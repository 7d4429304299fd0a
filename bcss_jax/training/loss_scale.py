"""Dynamic scale of the loss for training in float16.

The gradient of a mean over millions of pixels is below what float16 can hold (6e-8). The loss is therefore multiplied
by a scale before the backward pass, and the gradients are divided by it in float32. The scale grows until gradients
overflow, falls again, and so stays near the largest that works.

Source: the rule of flax.training.dynamic_scale.DynamicScale, which wraps a loss function and therefore cannot go
backward in micro-batches. The limits of the scale are this project's.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

START = 2.0**16
INTERVAL = 2000  # finite steps before the scale is doubled
# Where gradients overflow without a scale, the scale is not the reason.
SMALLEST = 1.0
# Gradients that are zero would otherwise let it grow until the scaled loss overflows in float32.
LARGEST = 2.0**24


class LossScale(NamedTuple):
    """State of the loss scale.

    Attributes:
      scale: float32 scalar, a power of two, so that scaling does not round.
      finite_steps: int32 scalar, number of steps with finite gradients since the scale last changed.
    """

    scale: jax.Array
    finite_steps: jax.Array


def loss_scale_for(dtype: str) -> LossScale | None:
    """Returns the state before the first step; None unless the type of the computation is float16."""
    return LossScale(jnp.float32(START), jnp.int32(0)) if jnp.dtype(dtype) == jnp.float16 else None


def scaled(loss: jax.Array, state: LossScale | None) -> jax.Array:
    """Returns the loss times the scale; the loss itself without one."""
    return loss if state is None else loss * state.scale


def unscaled(gradients, state: LossScale | None):
    """Returns float32 gradients divided by the scale; the gradients themselves without one."""
    return gradients if state is None else jax.tree.map(lambda g: g.astype(jnp.float32) / state.scale, gradients)


def after_step(
    state: LossScale | None, computed: jax.Array, gradients_finite: jax.Array
) -> tuple[LossScale | None, jax.Array]:
    """Returns the scale for the next step, and whether this step is skipped because of the scale.

    Args:
      state: of this step.
      computed: bool scalar, whether there are pixels with a ground truth and their loss is finite. If not, the step
        says nothing about the scale, which stays as it is.
      gradients_finite: bool scalar.

    Returns:
      The new state, and a bool scalar: the gradients overflowed, and a lower scale remains to be tried.
    """
    if state is None:
        return None, jnp.zeros((), bool)
    grows = gradients_finite & (state.finite_steps == INTERVAL)
    larger = jnp.where(grows, jnp.minimum(2 * state.scale, LARGEST), state.scale)
    smaller = jnp.maximum(state.scale / 2, SMALLEST)
    new = LossScale(
        jnp.where(gradients_finite, larger, smaller),
        jnp.where(grows | ~gradients_finite, 0, state.finite_steps + 1),
    )
    new = jax.tree.map(lambda n, o: jnp.where(computed, n, o), new, state)
    return new, computed & ~gradients_finite & (state.scale > SMALLEST)
