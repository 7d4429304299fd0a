"""Pooling, upsampling and padding of maps (N, H, W, C)."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def max_pool_2x2(x: jax.Array) -> jax.Array:
    """(N, H, W, C) -> (N, H // 2, W // 2, C): the maximum of each 2x2 block; an odd last row or column is dropped.

    As in PyTorch, the first pixel of a block that has the maximum gets its gradient.
    """
    return _max_of_windows(x, 2)


def max_pool_3x3(x: jax.Array, padding: tuple[int, int] = (1, 1)) -> jax.Array:
    """Returns the 3x3 maximum at every second pixel, as PyTorch's `MaxPool2d(3, 2, padding)`.

    Ties are treated as in `max_pool_2x2`.

    Args:
      x: (N, H, W, C).
      padding: pixels of minus infinity before and after the map, on both axes.
    """
    low = jnp.asarray(-jnp.inf, x.dtype)
    return _max_of_windows(jnp.pad(x, ((0, 0), padding, padding, (0, 0)), constant_values=low), 3)


# `nnx.max_pool` is not used because XLA's gradient of a windowed maximum is seven times slower on CPUs. Of the forward
# pass only the place of each maximum is kept, one byte.
@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _max_of_windows(x, size):
    """Returns the maximum of windows of `size` x `size` pixels at every second row and column."""
    return functools.reduce(jnp.maximum, _pixels_of_windows(x, size))


def _pixels_of_windows(x, size):
    """Returns the first pixels of all windows, the second ones, ..., row by row."""
    h, w = (2 * ((side - size) // 2 + 1) for side in x.shape[1:3])
    return [x[:, a : a + h - 1 : 2, b : b + w - 1 : 2] for a in range(size) for b in range(size)]


def _max_of_windows_forward(x, size):
    y: Any = _max_of_windows(x, size)
    place = jnp.full(y.shape, size * size - 1, jnp.uint8)
    for at, pixels in reversed([*enumerate(_pixels_of_windows(x, size))][:-1]):
        place = jnp.where(pixels == y, jnp.uint8(at), place)
    return y, (place, jnp.zeros((0, *x.shape[1:3])))  # an empty array, for the size of the map


def _max_of_windows_backward(size, saved, dy):
    place, sides = saved
    dx = []
    for at in range(size * size):
        pads = [(0, 0, 0)]
        for first, of_map, windows in zip(divmod(at, size), sides.shape[1:], dy.shape[1:3], strict=True):
            pads.append((first, of_map - first - (2 * windows - 1), 1))
        dx.append(jax.lax.pad(jnp.where(place == at, dy, 0), jnp.zeros((), dy.dtype), (*pads, (0, 0, 0))))
    return (functools.reduce(jnp.add, dx),)


_max_of_windows.defvjp(_max_of_windows_forward, _max_of_windows_backward)


def upsample_bilinear_2x(x: jax.Array) -> jax.Array:
    """(N, H, W, C) -> (N, 2H, 2W, C): bilinear with aligned corners, as PyTorch's `UpsamplingBilinear2d(2)`."""
    return resize_bilinear(x, 2 * x.shape[1], 2 * x.shape[2])


def resize_bilinear(x: jax.Array, height: int, width: int) -> jax.Array:
    """(N, H, W, C) -> (N, height, width, C): bilinear with aligned corners.

    As PyTorch's `interpolate(mode="bilinear", align_corners=True)`: the centers of the corner pixels stay corners, and
    a side of one pixel takes the first one.
    """

    def interpolation_matrix(size: int, to: int) -> jax.Array:
        source = np.arange(to) * (size - 1) / max(to - 1, 1)
        weights = np.maximum(0, 1 - np.abs(source[:, None] - np.arange(size)[None]))
        return jnp.asarray(weights, x.dtype)

    x = jnp.einsum("ph,nhwc->npwc", interpolation_matrix(x.shape[1], height), x)
    return jnp.einsum("qw,npwc->npqc", interpolation_matrix(x.shape[2], width), x)


def pad_to(x: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Pads height and width with zeros to those of `shape` (N, H, W, C).

    Half of the padding, rounded down, goes before the map.
    """
    height, width = shape[1] - x.shape[1], shape[2] - x.shape[2]
    if height == width == 0:
        return x
    return jnp.pad(x, ((0, 0), (height // 2, height - height // 2), (width // 2, width - width // 2), (0, 0)))


def avg_pool(x: jax.Array, size: tuple[int, int]) -> jax.Array:
    """Returns the mean over blocks of `size`, as PyTorch's `AvgPool2d(size, size)`.

    Rows and columns at the end that do not fill a block are dropped.
    """
    sh, sw = size
    h, w = x.shape[1] // sh * sh, x.shape[2] // sw * sw
    x = x[:, :h, :w]
    total = sum((x[:, a::sh, b::sw] for a in range(sh) for b in range(sw)), start=jnp.zeros((), x.dtype))
    return total / (sh * sw)


def upsample_nearest(x: jax.Array, height: int, width: int) -> jax.Array:
    """(N, H, W, C) -> (N, height, width, C), as PyTorch's `interpolate(mode="nearest")`."""
    h, w = x.shape[1:3]
    if height % h == width % w == 0:
        fh, fw = height // h, width // w
        x = jnp.broadcast_to(x[:, :, None, :, None], (x.shape[0], h, fh, w, fw, x.shape[3]))
        return x.reshape(x.shape[0], height, width, -1)
    return x[:, np.arange(height) * h // height][:, :, np.arange(width) * w // width]
