"""nnU-Net's augmentations of the values of an image: noise, blur, brightness, contrast, low resolution, gamma.

The functions take one example [H, W, C], for `jax.vmap`; numbers that are drawn per channel are [C]. For each function
there is a value with which the image does not change in any bit, so that skipping a change needs no second code path.

Source: the corresponding transforms of batchgeneratorsv2 0.3.6, as nnU-Net 2.8.1 configures them.
"""

import math

import jax
import jax.numpy as jnp

from bcss_jax.data.augmentation.sampling import weighted_sum

_TINY = 1e-7  # avoids division by 0 for images without contrast


def gaussian_noise(image: jax.Array, key: jax.Array, deviation: jax.Array) -> jax.Array:
    """Adds independent Gaussian noise with a standard deviation to all values; 0: no change."""
    return image + deviation * jax.random.normal(key, image.shape, image.dtype)


def blur(image: jax.Array, sigma: jax.Array, largest: float = 1.0) -> jax.Array:
    """Applies a Gaussian blur along rows and columns; the image is mirrored at its borders.

    Args:
      image: float32 [H, W, C].
      sigma: [2, C], per axis and channel, in pixels; 0: no change. The width of the kernel is the odd number nearest to
        6 sigma + 1/2.
      largest: upper bound of sigma, which determines how much is computed.

    Returns:
      float32 [H, W, C].
    """
    reach = math.floor(3 * largest + 0.25)
    offsets = jnp.arange(-reach, reach + 1)[:, None]
    for axis in (0, 1):
        s = sigma[axis]
        bell = jnp.exp(-0.5 * (offsets / jnp.where(s > 0, s, 1.0)) ** 2)
        bell = jnp.where(jnp.abs(offsets) <= jnp.floor(3 * s + 0.25), bell, 0.0)
        image = weighted_sum(image, bell / jnp.sum(bell, axis=0), axis, "reflect")
    return image


def brightness(image: jax.Array, factor: jax.Array) -> jax.Array:
    """Multiplies each channel [H, W] by its factor; 1: no change."""
    return image * factor


def contrast(image: jax.Array, factor: jax.Array) -> jax.Array:
    """Stretches each channel around its mean and clips it to its former range; factor 1: no change."""
    stretched = image + (image - _mean(image)) * (factor - 1)
    return jnp.clip(stretched, jnp.min(image, (0, 1)), jnp.max(image, (0, 1)))


def low_resolution(image: jax.Array, factor: jax.Array) -> jax.Array:
    """Downsamples to the nearest pixels and upsamples bilinearly to the former size.

    Args:
      image: float32 [H, W, C].
      factor: [C], factors of height and width, which are then rounded; 1: no change.

    Returns:
      float32 [H, W, C].
    """
    return jax.vmap(_low_resolution, in_axes=-1, out_axes=-1)(image, factor)


def _low_resolution(image, factor):
    # Both steps are computed together: each pixel lies between two coarse pixels, which are copies of pixels.
    for axis in (0, 1):
        length = image.shape[axis]
        size = jnp.round(length * factor)
        position = jnp.maximum((jnp.arange(length) + 0.5) * (size / length) - 0.5, 0.0)
        before = jnp.floor(position)
        share = jnp.expand_dims(position - before, 1 - axis)
        after = jnp.minimum(before + 1, size - 1)
        before, after = (
            jnp.take(image, ((pixel + 0.5) * (length / size)).astype(jnp.int32), axis, mode="clip")
            for pixel in (before, after)
        )
        image = before + share * (after - before)
    return image


def gamma(image: jax.Array, factor: jax.Array, inverted: bool = False) -> jax.Array:
    """Raises each channel to a power within its range, and restores its mean and standard deviation.

    Args:
      image: float32 [H, W, C].
      factor: [C], the exponents; 1: no change.
      inverted: apply it to the inverted image, so that bright values change as dark values otherwise do.

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
    # Pairwise summation: it is as exact as float32 allows, and its order depends neither on the batch nor on the
    # devices.
    total = image
    for axis in (0, 1):
        while (length := total.shape[axis]) > 1:
            half = length // 2
            first, second, last = jnp.split(total, (half, 2 * half), axis)
            total = jnp.concatenate([first + second, last], axis)
    return jax.lax.optimization_barrier(total[0, 0] / (image.shape[0] * image.shape[1]))


def _deviation(image):
    values = image.shape[0] * image.shape[1]
    return jnp.sqrt(_mean((image - _mean(image)) ** 2) * (values / (values - 1)))
