"""nnU-Net's changes of an image's values: noise, blur, brightness, contrast, low resolution, gamma.

One example [H, W, C] at a time, for `jax.vmap`; what is drawn per channel comes as [C]. Each function has a value that
changes nothing, to the bit, so that "not this time" needs no second path.

Source: the transforms of the same purpose in batchgeneratorsv2 0.3.6, as nnU-Net 2.8.1 sets them up.
"""

import math

import jax
import jax.numpy as jnp

_TINY = 1e-7  # keeps images without contrast from dividing by 0


def gaussian_noise(image: jax.Array, key: jax.Array, deviation: jax.Array) -> jax.Array:
    """Adds independent noise of this standard deviation to all values; 0: none."""
    return image + deviation * jax.random.normal(key, image.shape, image.dtype)


def blur(image: jax.Array, sigma: jax.Array, largest: float = 1.0) -> jax.Array:
    """Gaussian blur along rows and columns; beyond its border the image is continued by its mirror image.

    Args:
      image: float32 [H, W, C].
      sigma: [2, C], per axis and channel, in pixels; 0: none. The kernel is as wide as the odd number nearest to
        6 sigma + 1/2.
      largest: no sigma is above it; decides how much is computed.

    Returns:
      float32 [H, W, C].
    """
    reach = math.floor(3 * largest + 0.25)
    offsets = jnp.arange(-reach, reach + 1)[:, None]
    for axis in (0, 1):
        s = sigma[axis]
        bell = jnp.exp(-0.5 * (offsets / jnp.where(s > 0, s, 1.0)) ** 2)
        bell = jnp.where(jnp.abs(offsets) <= jnp.floor(3 * s + 0.25), bell, 0.0)
        padding = [(0, 0)] * 3
        padding[axis] = (reach, reach)
        padded = jnp.pad(image, padding, mode="reflect")
        image = sum(
            weight * jax.lax.slice_in_dim(padded, i, i + image.shape[axis], axis=axis)
            for i, weight in enumerate(bell / jnp.sum(bell, axis=0))
        )
    return image


def brightness(image: jax.Array, factor: jax.Array) -> jax.Array:
    """Multiplies each channel by its factor; 1: no change."""
    return image * factor


def contrast(image: jax.Array, factor: jax.Array) -> jax.Array:
    """Stretches each channel about its mean and cuts off what leaves its old range; factor 1: no change."""
    stretched = image + (image - _mean(image)) * (factor - 1)
    return jnp.clip(stretched, jnp.min(image, (0, 1)), jnp.max(image, (0, 1)))


def low_resolution(image: jax.Array, factor: jax.Array) -> jax.Array:
    """Fewer pixels and back: the nearest pixel on the way down, bilinear on the way up.

    Args:
      image: float32 [H, W, C].
      factor: [C]: of the height and the width, which are then rounded; 1: no change.

    Returns:
      float32 [H, W, C].
    """
    return jax.vmap(_low_resolution, in_axes=-1, out_axes=-1)(image, factor)


def _low_resolution(image, factor):
    # Both ways at once: each pixel lies between two coarse ones, and those are copies of pixels.
    for axis in (0, 1):
        length = image.shape[axis]
        size = jnp.round(length * factor)
        place = jnp.maximum((jnp.arange(length) + 0.5) * (size / length) - 0.5, 0.0)
        before = jnp.floor(place)
        share = jnp.expand_dims(place - before, 1 - axis)
        after = jnp.minimum(before + 1, size - 1)
        before, after = (
            jnp.take(image, ((pixel + 0.5) * (length / size)).astype(jnp.int32), axis, mode="clip")
            for pixel in (before, after)
        )
        image = before + share * (after - before)
    return image


def gamma(image: jax.Array, factor: jax.Array, inverted: bool = False) -> jax.Array:
    """Raises each channel to a power within its range, then restores its mean and standard deviation.

    Args:
      image: float32 [H, W, C].
      factor: [C], the exponents; 1: no change.
      inverted: of the negative, so that the bright end is treated as the dark one.

    Returns:
      float32 [H, W, C].
    """
    x = -image if inverted else image
    low, high = jnp.min(x, (0, 1)), jnp.max(x, (0, 1))
    y = ((x - low) / jnp.maximum(high - low, _TINY)) ** factor * (high - low)
    y = y - _mean(y)
    y = y * (_deviation(x) / jnp.maximum(_deviation(y), _TINY)) + _mean(x)
    return jnp.where(factor == 1, image, -y if inverted else y)


def _mean(image):
    # By halves: as exact as float32 allows, and in an order that does not depend on the batch and its devices.
    total = image
    for axis in (0, 1):
        while (length := total.shape[axis]) > 1:
            half = length // 2
            first, second, rest = jnp.split(total, (half, 2 * half), axis)
            total = jnp.concatenate([first + second, rest], axis)
    return jax.lax.optimization_barrier(total[0, 0] / (image.shape[0] * image.shape[1]))


def _deviation(image):
    values = image.shape[0] * image.shape[1]
    return jnp.sqrt(_mean((image - _mean(image)) ** 2) * (values / (values - 1)))
