"""The blur of DINOv2's views: torchvision's GaussianBlur with a kernel of 9 pixels, on the device."""

import jax
import jax.numpy as jnp

from bcss_jax.data.augmentation.sampling import weighted_sum

REACH = 4  # pixels on each side


def blur(image: jax.Array, sigma: jax.Array) -> jax.Array:
    """Blurs a view, for `jax.vmap`; its borders are mirrored.

    Args:
      image: float32 [H, W, 3] with whole numbers from 0 to 255.
      sigma: standard deviation in pixels; 0: no change.

    Returns:
      float32 [H, W, 3], rounded to whole numbers.
    """
    distance = jnp.arange(-REACH, REACH + 1)
    bell = jnp.exp(-0.5 * (distance / jnp.where(sigma > 0, sigma, 1.0)) ** 2)
    bell = jnp.where(sigma > 0, bell, distance == 0)
    for axis in (1, 0):
        # The barrier keeps XLA from computing what comes before once for each weight.
        image = weighted_sum(jax.lax.optimization_barrier(image), bell / jnp.sum(bell), axis, "reflect")
    return jnp.rint(image)
