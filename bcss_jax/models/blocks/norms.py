"""Normalization layers. Maps are (N, H, W, C); statistics are float32 for maps of any type."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from bcss_jax.models.weights.torch_layout import SAME, TorchEntries


_EPS = 1e-5  # added to the variance by batch normalization


class MapWithStatistics(NamedTuple):
    """A map with its statistics, which are computed once for several `BatchNorm`s.

    Attributes:
      values: (N, H, W, C).
      mean: float32 (C,), over N, H and W.
      var: float32 (C,), the biased variance over N, H and W.
    """

    values: jax.Array
    mean: jax.Array
    var: jax.Array


@jax.custom_vjp
def with_statistics(x: jax.Array) -> MapWithStatistics:
    """Returns a map (N, H, W, C) with its statistics."""
    # Mean and variance take one pass. A value of the map is subtracted first, because E[x^2] - E[x]^2 is a small
    # difference of large numbers where the mean is much larger than the standard deviation.
    shift = x[0, 0, 0].astype(jnp.float32)
    shifted = x.astype(jnp.float32) - shift
    mean = shifted.mean((0, 1, 2))
    var = jnp.maximum((shifted * shifted).mean((0, 1, 2)) - mean * mean, 0)
    return MapWithStatistics(x, mean + shift, var)


def _with_statistics_forward(x):
    measured = with_statistics(x)
    return measured, (x, measured.mean)


def _with_statistics_backward(saved, cotangent):
    x, mean = saved
    pixels = x.size // x.shape[-1]
    dx = cotangent.mean / pixels + (x.astype(jnp.float32) - mean) * (2 / pixels * cotangent.var)
    return ((cotangent.values.astype(jnp.float32) + dx).astype(x.dtype),)


with_statistics.defvjp(_with_statistics_forward, _with_statistics_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(5,))
def _normalize(x, mean, var, scale, bias, relu: bool):
    """Returns `(x - mean) / sqrt(var + eps) * scale + bias`, followed by ReLU if requested, in the type of `x`."""
    y = ((x.astype(jnp.float32) - mean) * (scale * lax.rsqrt(var + _EPS)) + bias).astype(x.dtype)
    return jax.nn.relu(y) if relu else y


def _normalize_forward(x, mean, var, scale, bias, relu):
    return _normalize(x, mean, var, scale, bias, relu), (x, mean, var, scale, bias)


def _normalize_backward(relu, saved, dy):
    # Only the input is kept. What the sums and the gradient need of it is computed twice, which costs less than to
    # write it and to read it again.
    x, mean, var, scale, bias = saved
    rstd = lax.rsqrt(var + _EPS)
    normalized = (x.astype(jnp.float32) - mean) * rstd
    dy = dy.astype(jnp.float32)
    if relu:
        dy = jnp.where(normalized * scale + bias > 0, dy, 0)
    dbias, dscale = dy.sum((0, 1, 2)), (dy * normalized).sum((0, 1, 2))
    dx = (dy * (scale * rstd)).astype(x.dtype)
    return dx, -scale * rstd * dbias, -0.5 * scale * rstd**2 * dscale, dscale, dbias


_normalize.defvjp(_normalize_forward, _normalize_backward)


def concatenate(*maps: MapWithStatistics) -> MapWithStatistics:
    """Returns maps (N, H, W, C1), (N, H, W, C2), ... as one map, concatenated over channels."""
    return MapWithStatistics(*(jnp.concatenate(values, axis=-1) for values in zip(*maps, strict=True)))


class BatchNorm(nnx.Module):
    """Batch normalization over N, H and W, followed by ReLU if requested.

    It computes what PyTorch's `BatchNorm2d` does (eps 1e-5, momentum 0.1): the batch is normalized by its biased
    variance, and the running variance averages the unbiased one. Statistics are float32 for maps of any type. Under jit
    with a sharded batch they are those of the whole batch.
    """

    def __init__(self, features: int, *, relu: bool):
        """Builds the layer for `features` channels; `relu`: whether ReLU follows."""
        self.scale = nnx.Param(jnp.ones(features))
        self.bias = nnx.Param(jnp.zeros(features))
        self.mean = nnx.BatchStat(jnp.zeros(features))
        self.var = nnx.BatchStat(jnp.ones(features))
        self.relu = relu
        self.use_running_average = False

    def __call__(self, *maps: jax.Array | MapWithStatistics) -> jax.Array:
        """Maps (N, H, W, C1), (N, H, W, C2), ..., which count as concatenated over channels -> (N, H, W, C).

        The result has the type of the maps. In training the running statistics are updated.
        """
        if self.use_running_average:
            mean, var = self.mean[...], self.var[...]
        else:
            measured = [m if isinstance(m, MapWithStatistics) else with_statistics(m) for m in maps]
            mean, var = jnp.concatenate([m.mean for m in measured]), jnp.concatenate([m.var for m in measured])
            count = measured[0].values.size // measured[0].values.shape[-1]
            self.mean[...] = 0.9 * self.mean[...] + 0.1 * mean
            self.var[...] = 0.9 * self.var[...] + 0.1 * var * (count / max(count - 1, 1))
        scale, bias = self.scale[...], self.bias[...]
        # Maps are normalized one by one. Concatenating them first would keep one more large array for the gradient.
        normalized, first = [], 0
        for m in maps:
            x = m.values if isinstance(m, MapWithStatistics) else m
            own = slice(first, first + x.shape[-1])
            normalized.append(_normalize(x, mean[own], var[own], scale[own], bias[own], self.relu))
            first = own.stop
        return jnp.concatenate(normalized, axis=-1)

    def torch_entries(self) -> TorchEntries:
        """Returns the entries under the names of `torch.nn.BatchNorm2d`."""
        return {
            "weight": (self.scale, SAME),
            "bias": (self.bias, SAME),
            "running_mean": (self.mean, SAME),
            "running_var": (self.var, SAME),
        }


class GroupNorm(nnx.Module):
    """Normalization of each image over H, W and a group of consecutive channels, followed by an optional activation.

    It computes what PyTorch's `GroupNorm` does; with one group per channel, what `InstanceNorm2d(affine=True)` does.
    """

    def __init__(
        self,
        features: int,
        groups: int,
        *,
        eps: float = 1e-5,
        activation: Callable[[jax.Array], jax.Array] | None = None,
    ):
        """Builds the layer.

        Args:
          features: number of channels.
          groups: number of groups of channels.
          eps: added to the variance.
          activation: applied to the result; None: nothing.
        """
        self.scale = nnx.Param(jnp.ones(features))
        self.bias = nnx.Param(jnp.zeros(features))
        self.groups, self.eps, self.activation = groups, eps, activation

    def __call__(self, x: jax.Array) -> jax.Array:
        """(N, H, W, C) -> the same shape and type."""
        n, h, w, c = x.shape
        xf = x.astype(jnp.float32).reshape(n, h * w, self.groups, c // self.groups)
        mean = xf.mean((1, 3), keepdims=True)
        # E[x^2] - E[x]^2 would be inexact, because the mean of a map can be much larger than its standard deviation.
        var = jnp.square(xf - mean).mean((1, 3), keepdims=True)
        mean, var = (jnp.broadcast_to(v, (n, 1, *xf.shape[2:])).reshape(n, 1, 1, c) for v in (mean, var))
        y = (x.astype(jnp.float32) - mean) * (self.scale[...] * lax.rsqrt(var + self.eps)) + self.bias[...]
        y = y.astype(x.dtype)
        return y if self.activation is None else self.activation(y)

    def torch_entries(self) -> TorchEntries:
        """Returns the entries under the names of `torch.nn.GroupNorm`."""
        return {"weight": (self.scale, SAME), "bias": (self.bias, SAME)}


class LayerNorm(nnx.Module):
    """Normalization of each token over its features."""

    def __init__(self, features: int, *, eps: float):
        """Builds the layer for `features` features; `eps` is added to the variance."""
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
        """Returns the entries under the names of `torch.nn.LayerNorm`."""
        return {"weight": (self.scale, SAME), "bias": (self.bias, SAME)}
