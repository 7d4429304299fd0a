"""Checkpoints of a model with a handful of parameters, saved as training does."""

import dataclasses

import jax
import numpy as np
from flax import nnx

from bcss_jax.training import checkpoint, optimizer, sharding, step


class Tiny(nnx.Module):
    """A model with a list of layers and batch statistics."""

    def __init__(self, rngs):
        self.layers = nnx.List([nnx.Linear(3, 4, rngs=rngs), nnx.Linear(4, 2, rngs=rngs)])
        self.norm = nnx.BatchNorm(4, rngs=rngs)


def new_state(devices=None):
    """Returns a state on the devices, by default the first, and their mesh."""
    mesh = sharding.make_mesh(jax.devices()[:1] if devices is None else devices)
    tx, schedule = optimizer.adamw(1e-3, 1e-4), optimizer.Plateau(0.5, 2)
    state = step.TrainState.create(Tiny(nnx.Rngs(0)), tx, schedule)
    return sharding.place_replicated(state, mesh), mesh


def at(state, number):
    """Returns the state with `number` added to every array."""
    moved = jax.tree.map(lambda x: x + np.asarray(number, x.dtype), state)
    return dataclasses.replace(moved, step=np.int32(number) + 0 * state.step)


def abstract(state):
    """Returns shapes in place of the arrays."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)


def assert_equal(a, b):
    """Asserts that two trees hold the same arrays."""
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(a), jax.device_get(b))


def save(folder, steps, improved=()):
    """Saves checkpoints with `at(state, step)`; those of `improved` are the best so far."""
    state, _ = new_state()
    checkpoints = checkpoint.Checkpoints(folder)
    for number in steps:
        checkpoints.save(at(state, number), {"n": number}, {"k": 1}, number if number in improved else None)
    checkpoints.close()
