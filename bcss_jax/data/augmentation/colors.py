"""Changes of color and sharpness on the device, as Albumentations 2.0.8 with OpenCV makes them of uint8 images.

The functions take one example, for `jax.vmap`: float32 [H, W, 3], RGB, with whole numbers from 0 to 255, and return the
same. They round and cut off as the functions of the host do. For each of them there is a value with which the image
does not change in any bit, so that skipping a change needs no second code path.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from bcss_jax.data.augmentation.stain import DENSITY, SEPARATION, STAINS


def brightness(image: jax.Array, factor: jax.Array) -> jax.Array:
    """Multiplies all values by the factor; 1: no change."""
    return jnp.trunc(jnp.clip(image * factor, 0, 255))


def contrast(image: jax.Array, factor: jax.Array) -> jax.Array:
    """Stretches all values around the mean brightness; factor 1: no change."""
    pixels = image.shape[0] * image.shape[1]
    mean = jnp.sum(_gray(image).astype(jnp.int32)).astype(jnp.float32) / pixels  # whole numbers add up exactly
    return jnp.trunc(jnp.clip(image * factor + mean * (1 - factor), 0, 255))


def saturation(image: jax.Array, factor: jax.Array) -> jax.Array:
    """Moves the values of a pixel away from its brightness (factor above 1), or towards it; 1: no change."""
    return jnp.clip(jnp.rint(image * factor + _gray(image)[..., None] * (1 - factor)), 0, 255)


def hue(image: jax.Array, shift: jax.Array) -> jax.Array:
    """Shifts the hue by a fraction of the color circle; 0: no change.

    The image becomes hue (0 to 179), saturation and value (0 to 255), rounded to whole numbers, and RGB again, rounded
    down, as in OpenCV.
    """
    # All numbers are whole and below 2**23, so that float32 computes the same as integers, on every device.
    red, green, blue = (image[..., i] for i in range(3))
    value = jnp.max(image, -1)
    difference = value - jnp.min(image, -1)
    color = jnp.where(
        value == red,
        green - blue,
        jnp.where(value == green, blue - red + 2 * difference, red - green + 4 * difference),
    )
    saturation = _divided_by_4096(difference * _quotient(255 * 4096, value))
    degrees = _divided_by_4096(color * _quotient(180 * 4096 // 6, difference)) + jnp.floor(180 * shift)
    degrees = degrees - 180 * jnp.floor((degrees + 0.5) * (1 / 180))
    return jnp.where(shift == 0, image, _rgb(degrees, saturation, value))


def _quotient(numerator: int, x: jax.Array) -> jax.Array:
    """Returns numerator / x, rounded to whole numbers; 0 where x is 0. Exact although division on GPUs is not."""
    divisor = jnp.maximum(x, 1)
    near = jnp.rint(numerator / divisor)
    left = numerator - near * divisor
    exact = near + jnp.where(2 * left >= divisor, 1.0, 0.0) - jnp.where(2 * left < -divisor, 1.0, 0.0)
    return jnp.where(x > 0, exact, 0.0)


def _divided_by_4096(x: jax.Array) -> jax.Array:
    return jnp.floor((x + 2048) * (1 / 4096))


def _rgb(degrees: jax.Array, saturation: jax.Array, value: jax.Array) -> jax.Array:
    sector = jnp.floor((degrees + 0.5) * (1 / 30))
    share = degrees - 30 * sector

    def rounded_down(numerator):
        return jnp.floor((numerator + 0.5) * (1 / (30 * 255)))

    low = rounded_down(value * (30 * 255 - saturation * 30))
    falling = rounded_down(value * (30 * 255 - saturation * share))
    rising = rounded_down(value * (30 * 255 - saturation * (30 - share)))
    channels = (
        (value, falling, low, low, rising, value),  # red in the six sectors
        (rising, value, value, falling, low, low),
        (low, low, rising, value, value, falling),
    )
    return jnp.stack([jnp.select([sector == i for i in range(5)], each[:5], each[5]) for each in channels], -1)


def jitter(
    image: jax.Array, factors: jax.Array, order: jax.Array, changes: Sequence[Callable | None] | None = None
) -> jax.Array:
    """Changes brightness, contrast, saturation and hue in any order.

    Args:
      image: see the docstring of the module.
      factors: [4], of brightness, contrast, saturation, and the shift of the hue; (1, 1, 1, 0): no change.
      order: integers [4], a permutation of 0 to 3: the changes in their order.
      changes: functions of image and factor that make the four changes, with None for those that are never made; by
        default those of this module.
    """
    for turn in range(4):
        image = jax.lax.optimization_barrier(image)  # otherwise XLA computes the former turns again in each turn
        chosen = order[turn] == jnp.arange(4)
        now = jnp.where(chosen, factors, jnp.asarray((1.0, 1.0, 1.0, 0.0)))
        for i, change in enumerate(changes or (brightness, contrast, saturation, hue)):
            if change is not None:
                image = change(image, now[i])
    return image


def restain(image: jax.Array, factors: jax.Array) -> jax.Array:
    """Changes the strength of the stains, as `stain.restain` does on the host.

    Args:
      image: see the docstring of the module.
      factors: [3], of hematoxylin, eosin and the remainder; all 1: no change.
    """
    exact = jax.lax.Precision.HIGHEST
    separation, stains = jnp.asarray(SEPARATION, jnp.float32), jnp.asarray(STAINS, jnp.float32)
    matrix = jnp.matmul(separation * factors, stains, precision=exact)
    density = jnp.matmul(jnp.asarray(DENSITY)[image.astype(jnp.int32)], matrix, precision=exact)
    changed = jnp.clip(jnp.rint(256 * jnp.exp2(-density) - 1), 0, 255)
    return jnp.where(jnp.all(factors == 1), image, changed)


def _gray(image: jax.Array) -> jax.Array:
    """Returns the brightness [H, W] as OpenCV rounds it, with weights in 1/32768."""
    total = image[..., 0] * 9798 + image[..., 1] * 19235 + image[..., 2] * 3735
    return jnp.floor((total + 16384) * (1 / 32768))
