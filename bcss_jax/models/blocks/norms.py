"""Normalization layers. Maps are (N, H, W, C); statistics are float32 for maps of any type.

The gradients are written out so that a training step moves little memory: only the input of a norm is kept, two passes
over it and the incoming gradient give the result, and gradients that meet at a map are added there.
"""

import contextlib
import contextvars
import functools
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from bcss_jax.models.weights.torch_layout import SAME, TorchEntries


class MapWithStatistics(NamedTuple):
    """A map with its statistics, which are computed once for several `BatchNorm`s.

    Attributes:
      values: (N, H, W, C).
      mean: float32 (P, C), over H, W and each of P parts of the batch: 1 is the whole batch, N are single images.
      var: float32 (P, C), the biased variance over the same.
    """

    values: jax.Array
    mean: jax.Array
    var: jax.Array


_PARTS = contextvars.ContextVar("parts of the batch that BatchNorm normalizes by themselves", default=1)


@contextlib.contextmanager
def parts_of_batch(parts: int) -> Iterator[None]:
    """Lets `with_batch_statistics` take each of so many parts of the batch by itself, in what is traced in the block.

    With as many parts as devices, statistics are computed without exchanges between the devices.
    """
    token = _PARTS.set(parts)
    try:
        yield
    finally:
        _PARTS.reset(token)


def with_batch_statistics(x: jax.Array) -> MapWithStatistics:
    """Returns a map (N, H, W, C) with the statistics of the batch, or of its parts (`parts_of_batch`)."""
    return with_statistics(x, _PARTS.get())


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def with_statistics(x: jax.Array, parts: int = 1) -> MapWithStatistics:
    """Returns a map (N, H, W, C) with the statistics of `parts` consecutive parts of the batch of the same size."""
    # Mean and variance take one pass. A value of the map is subtracted first, because E[x^2] - E[x]^2 is a small
    # difference of large numbers where the mean is much larger than the standard deviation.
    first = x[:1, 0, 0] if parts == 1 else x[:: x.shape[0] // parts, 0, 0]
    shift = first.astype(jnp.float32)
    shifted = _by_parts(x, parts) - _spread(shift)
    pixels = math.prod(shifted.shape[:3] if parts == 1 else shifted.shape[1:3])
    mean = _sum(shifted, parts) / pixels
    var = jnp.maximum(_sum(shifted * shifted, parts) / pixels - mean * mean, 0)
    return MapWithStatistics(x, mean + shift, var)


def _with_statistics_forward(x, parts):
    measured: Any = with_statistics(x, parts)
    return measured, (x, measured.mean)


def _with_statistics_backward(parts, saved, cotangent):
    x, mean = saved
    pixels = x.size // mean.size
    dx = _spread(cotangent.mean / pixels) + (_by_parts(x, parts) - _spread(mean)) * _spread(2 / pixels * cotangent.var)
    return ((_by_parts(cotangent.values, parts) + dx).astype(x.dtype).reshape(x.shape),)


with_statistics.defvjp(_with_statistics_forward, _with_statistics_backward)


def _by_parts(x, parts):
    """Returns a map (N, H, W, C) as float32 (P or 1, N / P * H, W, C), the parts of the batch one below the other."""
    x = x.astype(jnp.float32)
    return x if parts in (1, x.shape[0]) else x.reshape(parts, -1, *x.shape[2:])


def _spread(statistic):
    """Returns (P, C) as (P, 1, 1, C)."""
    return statistic[:, None, None]


def _sum(x, parts):
    """Returns the sums of the parts of a map from `_by_parts`: (P, C)."""
    return x.sum((0, 1, 2))[None] if parts == 1 else x.sum((1, 2))


def concatenate(*maps: MapWithStatistics) -> MapWithStatistics:
    """Returns maps (N, H, W, C1), (N, H, W, C2), ... as one map, concatenated over channels."""
    return MapWithStatistics(*(jnp.concatenate(values, axis=-1) for values in zip(*maps, strict=True)))


def leaky_relu(x: jax.Array, negative_slope: float) -> jax.Array:
    """Returns `x` where it is positive and `negative_slope * x` elsewhere, with PyTorch's gradient at zero."""
    return jnp.where(x > 0, x, negative_slope * x)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _normalize(measured: MapWithStatistics, scale, bias, eps: float, negative_slope: float) -> jax.Array:
    """Normalizes a map (N, H, W, C) by its statistics, applies scale and bias (C,) and LeakyReLU; in the map's type."""
    x, mean, var = measured
    y = (_by_parts(x, mean.shape[0]) - _spread(mean)) * _spread(scale * lax.rsqrt(var + eps)) + bias
    y = y.astype(x.dtype).reshape(x.shape)
    if negative_slope == 1:
        return y
    return leaky_relu(y, negative_slope) if negative_slope else jax.nn.relu(y)


def _normalize_forward(measured, scale, bias, eps, negative_slope):
    return _normalize(measured, scale, bias, eps, negative_slope), (measured, scale, bias)


def _normalize_backward(eps, negative_slope, saved, dy):
    (x, mean, var), scale, bias = saved
    rstd, parts = lax.rsqrt(var + eps), mean.shape[0]

    def before_activation(mean, rstd):
        """Returns the normalized map and the gradient of its scaled and shifted form."""
        normalized = (_by_parts(x, parts) - _spread(mean)) * _spread(rstd)
        dz = _by_parts(dy, parts)
        if negative_slope != 1:
            dz = jnp.where(normalized * scale + bias > 0, dz, negative_slope * dz)
        return normalized, dz

    normalized, dz = before_activation(mean, rstd)
    dbias, dscale = _sum(dz, parts), _sum(dz * normalized, parts)
    # Computed again: to store the map or its signs and to read them costs more. The barrier keeps the two apart.
    mean, rstd, dbias, dscale = lax.optimization_barrier((mean, rstd, dbias, dscale))
    _, dz = before_activation(mean, rstd)
    dx = (dz * _spread(scale * rstd)).astype(x.dtype).reshape(x.shape)
    dmeasured = MapWithStatistics(dx, -scale * rstd * dbias, -0.5 * scale * rstd**2 * dscale)
    return dmeasured, dscale.sum(0), dbias.sum(0)


_normalize.defvjp(_normalize_forward, _normalize_backward)


class BatchNorm(nnx.Module):
    """Batch normalization over N, H and W, followed by ReLU if requested.

    It computes what PyTorch's `BatchNorm2d` does (eps 1e-5, momentum 0.1): the batch is normalized by its biased
    variance, and the running variance averages the unbiased one. Statistics are float32 for maps of any type. Under jit
    with a sharded batch they are those of the whole batch. With `parts_of_batch` they are those of each part, and the
    running statistics average means and variances of the parts.
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
        measured = self._by_running_average(maps) if self.use_running_average else self._by_batch(maps)
        # Maps are normalized one by one. Concatenating them first would keep one more large array for the gradient.
        normalized, first = [], 0
        for m in measured:
            own = slice(first, first + m.values.shape[-1])
            slope = 0.0 if self.relu else 1.0
            normalized.append(_normalize(m, self.scale[own], self.bias[own], 1e-5, slope))
            first = own.stop
        return jnp.concatenate(normalized, axis=-1)

    def _by_running_average(self, maps):
        values = [m.values if isinstance(m, MapWithStatistics) else m for m in maps]
        ends = [sum(x.shape[-1] for x in values[: i + 1]) for i in range(len(values) - 1)]
        mean, var = (jnp.split(running[None], ends, axis=-1) for running in (self.mean[...], self.var[...]))
        return [MapWithStatistics(*measured) for measured in zip(values, mean, var, strict=True)]

    def _by_batch(self, maps):
        """Returns the maps with the statistics of the batch, by which it updates the running ones."""
        measured = [m if isinstance(m, MapWithStatistics) else with_batch_statistics(m) for m in maps]
        _, mean, var = concatenate(*measured)
        count = measured[0].values.size // mean[..., : measured[0].values.shape[-1]].size
        self.mean[...] = 0.9 * self.mean[...] + 0.1 * mean.mean(0)
        self.var[...] = 0.9 * self.var[...] + 0.1 * var.mean(0) * (count / max(count - 1, 1))
        return measured

    def torch_entries(self) -> TorchEntries:
        """Returns the entries under the names of `torch.nn.BatchNorm2d`."""
        return {
            "weight": (self.scale, SAME),
            "bias": (self.bias, SAME),
            "running_mean": (self.mean, SAME),
            "running_var": (self.var, SAME),
        }


class GroupNorm(nnx.Module):
    """Normalization of each image over H, W and a group of consecutive channels, followed by LeakyReLU if requested.

    It computes what PyTorch's `GroupNorm` does; with one group per channel, what `InstanceNorm2d(affine=True)` does.
    """

    def __init__(self, features: int, groups: int, *, eps: float = 1e-5, negative_slope: float = 1.0):
        """Builds the layer.

        Args:
          features: number of channels.
          groups: number of groups of channels.
          eps: added to the variance.
          negative_slope: of the LeakyReLU that follows; 0: ReLU, 1: nothing follows.
        """
        self.scale = nnx.Param(jnp.ones(features))
        self.bias = nnx.Param(jnp.zeros(features))
        self.groups, self.eps, self.negative_slope = groups, eps, negative_slope

    def __call__(self, x: jax.Array) -> jax.Array:
        """(N, H, W, C) -> the same shape and type."""
        n, features = x.shape[0], x.shape[-1]  # N may be symbolic in exported networks
        measured: Any = with_statistics(x, n)
        if self.groups < features:
            # The variance of a group is the mean of the channels' variances plus the variance of their means.
            mean, var = (s.reshape(n, self.groups, -1) for s in measured[1:])
            group_mean = mean.mean(-1, keepdims=True)
            group_var = (var + (mean - group_mean) ** 2).mean(-1, keepdims=True)
            of_groups = (jnp.broadcast_to(s, mean.shape).reshape(n, features) for s in (group_mean, group_var))
            measured = MapWithStatistics(measured.values, *of_groups)
        return _normalize(measured, self.scale[...], self.bias[...], self.eps, self.negative_slope)

    def torch_entries(self) -> TorchEntries:
        """Returns the entries under the names of `torch.nn.GroupNorm`."""
        return {"weight": (self.scale, SAME), "bias": (self.bias, SAME)}


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _layer_norm(x: jax.Array, scale: jax.Array, bias: jax.Array, eps: float) -> jax.Array:
    """Normalizes tokens (..., features), applies scale and bias (features,); in the type of the tokens."""
    return _layer_norm_forward(x, scale, bias, eps)[0]


def _layer_norm_forward(x, scale, bias, eps):
    xf = x.astype(jnp.float32)
    mean = xf.mean(-1, keepdims=True)
    rstd = lax.rsqrt(jnp.square(xf - mean).mean(-1, keepdims=True) + eps)
    return ((xf - mean) * rstd * scale + bias).astype(x.dtype), (x, mean, rstd, scale)


def _layer_norm_backward(eps, saved, dy):
    # Written out, because XLA fuses what autodiff makes of a chain of residual blocks so that each block computes the
    # gradients of all later norms again.
    x, mean, rstd, scale = saved
    normalized, dy = (x.astype(jnp.float32) - mean) * rstd, dy.astype(jnp.float32)
    dz, axes = dy * scale, tuple(range(x.ndim - 1))
    along = dz.mean(-1, keepdims=True) + normalized * (dz * normalized).mean(-1, keepdims=True)
    return ((dz - along) * rstd).astype(x.dtype), (dy * normalized).sum(axes), dy.sum(axes)


_layer_norm.defvjp(_layer_norm_forward, _layer_norm_backward)


class LayerNorm(nnx.Module):
    """Normalization of each token over its features."""

    def __init__(self, features: int, *, eps: float):
        """Builds the layer for `features` features; `eps` is added to the variance."""
        self.scale = nnx.Param(jnp.ones(features))
        self.bias = nnx.Param(jnp.zeros(features))
        self.eps = eps

    def __call__(self, x: jax.Array) -> jax.Array:
        """(..., features) -> the same shape and type."""
        return _layer_norm(x, self.scale[...], self.bias[...], self.eps)

    def torch_entries(self) -> TorchEntries:
        """Returns the entries under the names of `torch.nn.LayerNorm`."""
        return {"weight": (self.scale, SAME), "bias": (self.bias, SAME)}
