"""Changes of color as Pillow makes them of 8-bit images, on the device.

The functions take one view, for `jax.vmap`: float32 [H, W, 3], RGB, with whole numbers from 0 to 255, and return the
same, rounded as Pillow 13.0 rounds. For each there is a value with which the view does not change in any bit.
"""

import jax
import jax.numpy as jnp


def brightness(image: jax.Array, factor: jax.Array) -> jax.Array:
    """Multiplies all values by the factor, as ImageEnhance.Brightness; 1: no change."""
    return _blended(jnp.float32(0), image, factor)


def contrast(image: jax.Array, factor: jax.Array) -> jax.Array:
    """Stretches all values around the mean brightness, as ImageEnhance.Contrast; 1: no change."""
    pixels = image.shape[0] * image.shape[1]
    mean = jnp.sum(_brightness_of(image).astype(jnp.int32)).astype(jnp.float32) / pixels
    return _blended(jnp.floor(mean + 0.5), image, factor)


def saturation(image: jax.Array, factor: jax.Array) -> jax.Array:
    """Moves the values of a pixel away from its brightness (factor above 1), or towards it; 1: no change."""
    return _blended(_brightness_of(image)[..., None], image, factor)


def hue(image: jax.Array, shift: jax.Array) -> jax.Array:
    """Shifts the hue by a fraction of the color circle, as torchvision does of Pillow's images; 0: no change.

    The image becomes hue, saturation and value, rounded to 8 bits, and RGB again.
    """
    red, green, blue = (image[..., i] for i in range(3))
    value = jnp.max(image, -1)
    difference = value - jnp.min(image, -1)
    divisor = jnp.maximum(difference, 1)
    color = jnp.where(
        value == red,
        (green - blue) / divisor,
        jnp.where(value == green, 2 + (blue - red) / divisor, 4 + (red - green) / divisor),
    )
    angle = jnp.trunc(jnp.mod(color / 6 + 1, 1) * 255) + jnp.trunc(shift * 255)
    share = jnp.trunc(difference / jnp.maximum(value, 1) * 255) / 255
    sixths = jnp.mod(angle, 256) * (6 / 255)
    sector = jnp.floor(sixths)
    rest = sixths - sector
    low, falling, rising = (
        jnp.floor(value * (1 - share * part) + 0.5) for part in (jnp.ones_like(rest), rest, 1 - rest)
    )
    channels = (
        (value, falling, low, low, rising, value),  # red in the six sectors
        (rising, value, value, falling, low, low),
        (low, low, rising, value, value, falling),
    )
    sector = jnp.mod(sector, 6)
    shifted = jnp.stack([jnp.select([sector == i for i in range(5)], each[:5], each[5]) for each in channels], -1)
    return jnp.where(shift == 0, image, shifted)


def gray(image: jax.Array) -> jax.Array:
    """Returns the brightness in all three channels, as ImageOps.grayscale and back to RGB."""
    return jnp.broadcast_to(_brightness_of(image)[..., None], image.shape)


def solarize(image: jax.Array) -> jax.Array:
    """Inverts values of 128 and more, as ImageOps.solarize."""
    return jnp.where(image < 128, image, 255 - image)


def _brightness_of(image: jax.Array) -> jax.Array:
    """Returns the brightness [H, W] as Image.convert("L") rounds it, with weights in 1/65536."""
    # The sum is below 2**24, so that float32 has it exactly.
    total = image[..., 0] * 19595 + image[..., 1] * 38470 + image[..., 2] * 7471
    return jnp.floor((total + 32768) * (1 / 65536))


def _blended(base: jax.Array, image: jax.Array, factor: jax.Array) -> jax.Array:
    return jnp.trunc(jnp.clip(base + factor * (image - base), 0, 255))
