"""Initializers of parameters: the distributions that the reference implementations draw from.

Shapes are those of this project: convolution kernels (kh, kw, I, O), matrices (I, O). The last axis is the output.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.core import Tracer

Initializer = Callable[[nnx.Rngs, tuple[int, ...]], nnx.Param]

_BLOCK = 2**16


@jax.jit
def _uniform_block(key: jax.Array, index: int) -> jax.Array:
    return jax.random.uniform(jax.random.fold_in(key, index), (_BLOCK,), jnp.float32, -1.0, 1.0)


@jax.jit
def _normal_block(key: jax.Array, index: int) -> jax.Array:
    return jax.random.normal(jax.random.fold_in(key, index), (_BLOCK,), jnp.float32)


def _draw(block: Callable, rngs: nnx.Rngs, shape: tuple[int, ...], scale: float) -> nnx.Param:
    # Values are drawn in blocks of one size. A network has dozens of shapes, and XLA would compile a generator for
    # each.
    key, size = rngs.params(), math.prod(shape)
    count = -(-size // _BLOCK)
    if isinstance(key, Tracer):  # a trace mostly needs the shapes alone, so this is one operation for any size
        values = jax.lax.map(lambda index: block(key, index), jnp.arange(count)).reshape(-1)
    else:
        values = np.concatenate(jax.device_get([block(key, index) for index in range(count)]))  # needs no compilation
    return nnx.Param(jnp.asarray(values[:size].reshape(shape) * np.float32(scale)))


def uniform(rngs: nnx.Rngs, shape: tuple[int, ...], bound: float) -> nnx.Param:
    """Draws uniformly from +-bound."""
    return _draw(_uniform_block, rngs, shape, bound)


def normal(rngs: nnx.Rngs, shape: tuple[int, ...], std: float) -> nnx.Param:
    """Draws from a normal distribution with mean 0."""
    return _draw(_normal_block, rngs, shape, std)


def torch_default(rngs: nnx.Rngs, shape: tuple[int, ...]) -> nnx.Param:
    """Draws uniformly from +-1/sqrt(fan_in), as PyTorch's Conv2d and Linear do: `kaiming_uniform_(a=sqrt(5))`."""
    return uniform(rngs, shape, math.prod(shape[:-1]) ** -0.5)


def kaiming_uniform(rngs: nnx.Rngs, shape: tuple[int, ...]) -> nnx.Param:
    """Draws uniformly from +-sqrt(6 / fan_in): `kaiming_uniform_(nonlinearity="relu")` (He et al. 2015)."""
    return uniform(rngs, shape, (6 / math.prod(shape[:-1])) ** 0.5)


def kaiming_normal(rngs: nnx.Rngs, shape: tuple[int, ...]) -> nnx.Param:
    """Draws from a normal distribution with variance 2 / fan_in: `kaiming_normal_(mode="fan_in")` (He et al. 2015)."""
    return normal(rngs, shape, (2 / math.prod(shape[:-1])) ** 0.5)


def kaiming_normal_fan_out(rngs: nnx.Rngs, shape: tuple[int, ...]) -> nnx.Param:
    """Draws from a normal distribution with variance 2 / fan_out: `kaiming_normal_(mode="fan_out")`."""
    return normal(rngs, shape, (2 / (math.prod(shape[:-2]) * shape[-1])) ** 0.5)


def xavier_uniform(rngs: nnx.Rngs, shape: tuple[int, ...]) -> nnx.Param:
    """Draws uniformly from +-sqrt(6 / (fan_in + fan_out)): `xavier_uniform_` (Glorot and Bengio 2010)."""
    return uniform(rngs, shape, (6 / (math.prod(shape[:-2]) * (shape[-2] + shape[-1]))) ** 0.5)
