"""Normalization layers. Maps are (N, H, W, C); statistics are float32 whatever the type of the maps."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from bcss_jax.models.weights.torch_layout import SAME, TorchEntries


class MapWithStatistics(NamedTuple):
    """A map, and the mean and biased variance of its channels over N, H and W: one measurement for several `BatchNorm`s."""

    values: jax.Array
    mean: jax.Array
    var: jax.Array


def with_statistics(x: jax.Array) -> MapWithStatistics:
    """(N, H, W, C) with its statistics (C,), which are float32."""
    xf = x.astype(jnp.float32)
    # Both in one pass. A value of the map is taken off first: where the mean is many times the deviation, E[x^2] - E[x]^2
    # would be a small difference of large numbers.
    shift = lax.stop_gradient(xf[0, 0, 0])
    shifted = xf - shift
    mean = shifted.mean((0, 1, 2))
    var = jnp.maximum((shifted * shifted).mean((0, 1, 2)) - mean * mean, 0)
    return MapWithStatistics(x, mean + shift, var)


def concatenate(*maps: MapWithStatistics) -> MapWithStatistics:
    """Maps (N, H, W, C1), (N, H, W, C2), ... as one, concatenated over channels."""
    return MapWithStatistics(*(jnp.concatenate(values, axis=-1) for values in zip(*maps, strict=True)))


class BatchNorm(nnx.Module):
    """Batch normalization over N, H and W, then ReLU if asked for.

    As PyTorch's `BatchNorm2d` (eps 1e-5, momentum 0.1): the batch is normalized by its biased variance, the running
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

    def __call__(self, *maps: jax.Array | MapWithStatistics) -> jax.Array:
        """Maps (N, H, W, C1), (N, H, W, C2), ..., read as if concatenated over channels -> (N, H, W, C), of their type.

        In training the running statistics are updated.
        """
        if self.use_running_average:
            mean, var = self.mean[...], self.var[...]
        else:
            maps = [m if isinstance(m, MapWithStatistics) else with_statistics(m) for m in maps]
            mean, var = jnp.concatenate([m.mean for m in maps]), jnp.concatenate([m.var for m in maps])
            count = maps[0].values.size // maps[0].values.shape[-1]
            self.mean[...] = 0.9 * self.mean[...] + 0.1 * mean
            self.var[...] = 0.9 * self.var[...] + 0.1 * var * (count / max(count - 1, 1))
        a = self.scale[...] * lax.rsqrt(var + 1e-5)
        # Map by map, so that the maps themselves are never joined: that would be one more large array for the gradient.
        parts, first = [], 0
        for m in maps:
            x = m.values if isinstance(m, MapWithStatistics) else m
            own = slice(first, first + x.shape[-1])
            y = ((x.astype(jnp.float32) - mean[own]) * a[own] + self.bias[own]).astype(x.dtype)
            parts.append(jax.nn.relu(y) if self.relu else y)
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


class GroupNorm(nnx.Module):
    """Normalization of each image over H, W and a group of consecutive channels, then an activation if one is given.

    As PyTorch's `GroupNorm`; one group per channel makes it `InstanceNorm2d(affine=True)`.
    """

    def __init__(
        self,
        features: int,
        groups: int,
        *,
        eps: float = 1e-5,
        activation: Callable[[jax.Array], jax.Array] | None = None,
    ):
        """Number of channels and of groups, what is added to the variance, and what follows."""
        self.scale = nnx.Param(jnp.ones(features))
        self.bias = nnx.Param(jnp.zeros(features))
        self.groups, self.eps, self.activation = groups, eps, activation

    def __call__(self, x: jax.Array) -> jax.Array:
        """(N, H, W, C) -> the same shape and type."""
        n, h, w, c = x.shape
        xf = x.astype(jnp.float32).reshape(n, h * w, self.groups, c // self.groups)
        mean = xf.mean((1, 3), keepdims=True)
        # Not E[x^2] - E[x]^2: the mean of a map can be many times its deviation.
        var = jnp.square(xf - mean).mean((1, 3), keepdims=True)
        mean, var = (jnp.broadcast_to(v, (n, 1, *xf.shape[2:])).reshape(n, 1, 1, c) for v in (mean, var))
        y = (x.astype(jnp.float32) - mean) * (self.scale[...] * lax.rsqrt(var + self.eps)) + self.bias[...]
        y = y.astype(x.dtype)
        return y if self.activation is None else self.activation(y)

    def torch_entries(self) -> TorchEntries:
        """Names as in `torch.nn.GroupNorm`."""
        return {"weight": (self.scale, SAME), "bias": (self.bias, SAME)}


class LayerNorm(nnx.Module):
    """Normalization of each token over its features."""

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
