"""Normalisation layers. Maps are (N, H, W, C); statistics are float32 whatever the type of the maps."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from bcss_jax.models.torch_layout import SAME, TorchEntries

Activation = Callable[[jax.Array], jax.Array]


# XLA on CPUs takes twice as long for what automatic differentiation makes of a normalisation as for this formula.
@functools.partial(jax.custom_vjp, nondiff_argnums=(5, 6, 7))
def _normalise(
    x: jax.Array,
    mean: jax.Array,
    var: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    average: Callable[[jax.Array], jax.Array],
    eps: float,
    activation: Activation | None,
) -> jax.Array:
    """Takes the statistics out of a map, scales it, and applies an activation; in the type of the map.

    The gradient of `x` holds what flows through the statistics, which themselves get none.

    Args:
      x: (N, H, W, C).
      mean: of `x`, broadcasts over it.
      var: likewise, biased.
      scale: (C,).
      bias: (C,).
      average: from sums over H and W (N, 1, 1, C) to means over all values that share a statistic; broadcasts over `x`.
      eps: added to the variance.
      activation: the last step.
    """
    y = ((x.astype(jnp.float32) - mean) * (scale * lax.rsqrt(var + eps)) + bias).astype(x.dtype)
    return y if activation is None else activation(y)


def _normalise_forward(x, mean, var, scale, bias, average, eps, activation):
    return _normalise(x, mean, var, scale, bias, average, eps, activation), (x, mean, var, scale, bias)


def _normalise_backward(average, eps, activation, saved, dy):
    x, mean, var, scale, bias = saved
    inverse = lax.rsqrt(var + eps)
    standard = (x.astype(jnp.float32) - mean) * inverse
    if activation is not None:
        (dy,) = jax.vjp(activation, (standard * scale + bias).astype(x.dtype))[1](dy)
    dy = dy.astype(jnp.float32)
    dbias = dy.sum((1, 2), keepdims=True)
    dscale = (dy * standard).sum((1, 2), keepdims=True)
    dx = inverse * (scale * dy - average(scale * dbias) - standard * average(scale * dscale))
    return dx.astype(x.dtype), jnp.zeros_like(mean), jnp.zeros_like(var), dscale.sum((0, 1, 2)), dbias.sum((0, 1, 2))


_normalise.defvjp(_normalise_forward, _normalise_backward)


class Measured(NamedTuple):
    """A map, and the mean and biased variance of its channels over N, H and W: one measurement for several `BatchNorm`s.

    No gradient flows through the statistics themselves: the norms add their part to that of the map.
    """

    values: jax.Array
    mean: jax.Array
    var: jax.Array


def measure(x: jax.Array) -> Measured:
    """(N, H, W, C) with its statistics (C,), which are float32."""
    xf = lax.stop_gradient(x).astype(jnp.float32)
    # Both in one pass. A value of the map is taken off first: where the mean is many times the deviation, E[x^2] - E[x]^2
    # would be a small difference of large numbers.
    shift = xf[0, 0, 0]
    shifted = xf - shift
    mean = shifted.mean((0, 1, 2))
    var = jnp.maximum((shifted * shifted).mean((0, 1, 2)) - mean * mean, 0)
    return Measured(x, mean + shift, var)


def join(*maps: Measured) -> Measured:
    """Maps (N, H, W, C1), (N, H, W, C2), ... as one, concatenated over channels."""
    return Measured(*(jnp.concatenate(values, axis=-1) for values in zip(*maps, strict=True)))


class BatchNorm(nnx.Module):
    """Batch normalisation over N, H and W, then ReLU if asked for.

    As PyTorch's `BatchNorm2d` (eps 1e-5, momentum 0.1): the batch is normalised by its biased variance, the running
    variance gathers the unbiased one. Statistics are float32 whatever the type of the maps. Under jit over a sharded
    batch they are those of the whole batch.
    """

    def __init__(self, features: int, *, relu: bool):
        """Number of channels, and whether ReLU follows."""
        self.scale = nnx.Param(jnp.ones(features))
        self.bias = nnx.Param(jnp.zeros(features))
        self.mean = nnx.BatchStat(jnp.zeros(features))
        self.var = nnx.BatchStat(jnp.ones(features))
        self.relu = relu
        self.use_running_average = False

    def __call__(self, *maps: jax.Array | Measured) -> jax.Array:
        """Maps (N, H, W, C1), (N, H, W, C2), ..., read as if concatenated over channels -> (N, H, W, C), of their type.

        In training the running statistics are updated.
        """
        if self.use_running_average:
            mean, var = self.mean[...], self.var[...]
        else:
            maps = [m if isinstance(m, Measured) else measure(m) for m in maps]
            mean, var = jnp.concatenate([m.mean for m in maps]), jnp.concatenate([m.var for m in maps])
            count = maps[0].values.size // maps[0].values.shape[-1]
            self.mean[...] = 0.9 * self.mean[...] + 0.1 * mean
            self.var[...] = 0.9 * self.var[...] + 0.1 * var * (count / max(count - 1, 1))
        scale, bias, activation = self.scale[...], self.bias[...], jax.nn.relu if self.relu else None
        # Map by map, so that the maps themselves are never joined: that would be one more large array for the gradient.
        parts, first = [], 0
        for m in maps:
            x = m.values if isinstance(m, Measured) else m
            own = slice(first, first + x.shape[-1])
            average = functools.partial(_share, parts=0 if self.use_running_average else x.size // x.shape[-1])
            parts.append(_normalise(x, mean[own], var[own], scale[own], bias[own], average, 1e-5, activation))
            first = own.stop
        return jnp.concatenate(parts, axis=-1)

    def torch_entries(self) -> TorchEntries:
        """Names as in `torch.nn.BatchNorm2d`."""
        return {
            "weight": (self.scale, SAME),
            "bias": (self.bias, SAME),
            "running_mean": (self.mean, SAME),
            "running_var": (self.var, SAME),
        }


def _share(sums: jax.Array, parts: int) -> jax.Array:
    """(N, 1, 1, C) -> (C,): the mean over a batch of so many pixels; 0 parts: nothing, as the statistics are constants."""
    return sums.sum((0, 1, 2)) / parts if parts else jnp.zeros(sums.shape[-1], sums.dtype)


class GroupNorm(nnx.Module):
    """Normalisation of each image over H, W and a group of consecutive channels, then an activation if one is given.

    As PyTorch's `GroupNorm`; one group per channel makes it `InstanceNorm2d(affine=True)`.
    """

    def __init__(
        self,
        features: int,
        groups: int,
        *,
        eps: float = 1e-5,
        activation: Activation | None = None,
    ):
        """Number of channels and of groups, what is added to the variance, and what follows."""
        self.scale = nnx.Param(jnp.ones(features))
        self.bias = nnx.Param(jnp.zeros(features))
        self.groups, self.eps, self.activation = groups, eps, activation

    def __call__(self, x: jax.Array) -> jax.Array:
        """(N, H, W, C) -> the same shape and type."""
        n, h, w, c = x.shape
        in_groups = (self.groups, c // self.groups)

        def average(sums, values=h * w * in_groups[1]):
            means = sums.reshape(n, 1, *in_groups).sum(-1, keepdims=True) / values
            return jnp.broadcast_to(means, (n, 1, *in_groups)).reshape(n, 1, 1, c)

        xf = lax.stop_gradient(x).astype(jnp.float32)
        mean = average(xf.sum((1, 2), keepdims=True))
        # Not E[x^2] - E[x]^2: the mean of a map can be many times its deviation.
        var = average(jnp.square(xf - mean).sum((1, 2), keepdims=True))
        return _normalise(x, mean, var, self.scale[...], self.bias[...], average, self.eps, self.activation)

    def torch_entries(self) -> TorchEntries:
        """Names as in `torch.nn.GroupNorm`."""
        return {"weight": (self.scale, SAME), "bias": (self.bias, SAME)}


class LayerNorm(nnx.Module):
    """Normalisation of each token over its features."""

    def __init__(self, features: int, *, eps: float):
        """Number of features, and what is added to the variance."""
        self.scale = nnx.Param(jnp.ones(features))
        self.bias = nnx.Param(jnp.zeros(features))
        self.eps = eps

    def __call__(self, x: jax.Array) -> jax.Array:
        """(..., features) -> the same shape and type."""
        xf = x.astype(jnp.float32)
        mean = xf.mean(-1, keepdims=True)
        var = jnp.square(xf - mean).mean(-1, keepdims=True)
        return ((xf - mean) * lax.rsqrt(var + self.eps) * self.scale[...] + self.bias[...]).astype(x.dtype)

    def torch_entries(self) -> TorchEntries:
        """Names as in `torch.nn.LayerNorm`."""
        return {"weight": (self.scale, SAME), "bias": (self.bias, SAME)}
