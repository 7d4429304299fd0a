"""Blurs of views as Pillow and torchvision make them, on the device: a product of matrices along each axis.

The functions take one view, for `jax.vmap`: float32 [S, S, 3] with whole numbers from 0 to 255, and return the same,
rounded. With 0 the view does not change in any bit.
"""

import jax
import jax.numpy as jnp
import numpy as np

LARGEST_RADIUS = 2.4  # of `pillow`, whose boxes then reach two pixels at most
TORCH_REACH = 4  # pixels on each side: DINOv2 has a kernel of 9
_EXACT = jax.lax.Precision.HIGHEST


def pillow(image: jax.Array, radius: jax.Array) -> jax.Array:
    """Blurs as ImageFilter.GaussianBlur: three box filters along each axis, beyond the borders the last pixel.

    Pillow rounds after each of the six; here only the result is rounded, so that it may differ by three gray levels
    where neighboring pixels have nothing in common.

    Args:
      image: see the docstring of the module.
      radius: standard deviation in pixels, up to `LARGEST_RADIUS`.
    """
    variance = radius**2 / 3  # of each box
    whole = jnp.floor((jnp.sqrt(12 * variance + 1) - 1) / 2)
    part = (2 * whole + 1) * (whole * (whole + 1) - 3 * variance) / (6 * (variance - (whole + 1) ** 2))
    box = whole + part
    weights = jnp.clip(box + 1 - jnp.abs(jnp.arange(-2, 3)), 0, 1) / (2 * box + 1)
    once = _matrix(weights, len(image), "edge")
    return _filtered(image, jnp.linalg.matrix_power(once, 3))


def torchvision(image: jax.Array, sigma: jax.Array) -> jax.Array:
    """Blurs as torchvision's GaussianBlur with a kernel of 9 pixels; the view is mirrored at its borders.

    Args:
      image: see the docstring of the module.
      sigma: standard deviation in pixels.
    """
    distance = jnp.arange(-TORCH_REACH, TORCH_REACH + 1)
    bell = jnp.exp(-0.5 * (distance / jnp.where(sigma > 0, sigma, 1.0)) ** 2)
    bell = jnp.where(sigma > 0, bell, distance == 0)
    return _filtered(image, _matrix(bell / bell.sum(), len(image), "reflect"))


def _matrix(weights: jax.Array, size: int, border: str) -> jax.Array:
    """Returns the matrix [size, size] that applies a kernel along an axis.

    Args:
      weights: [K] with an odd K.
      size: pixels of the axis.
      border: how the axis goes on outside: a mode of `numpy.pad`.
    """
    reach = len(weights) // 2
    pixels = np.pad(np.arange(size), reach, mode=border)  # type: ignore[call-overload]
    taken = np.arange(size)[:, None] + np.arange(len(weights))
    places = pixels[taken][..., None] == np.arange(size)  # [size, K, size]
    return jnp.einsum("iks,k->is", jnp.asarray(places, jnp.float32), weights, precision=_EXACT)


def _filtered(image: jax.Array, matrix: jax.Array) -> jax.Array:
    rows = jnp.einsum("xw,hwc->hxc", matrix, image, precision=_EXACT)
    return jnp.floor(jnp.einsum("yh,hxc->yxc", matrix, rows, precision=_EXACT) + 0.5)
