"""What augmentations on the device read from an image: the four neighbors of positions, and sums along an axis.

The functions take one example, for `jax.vmap`. Their results depend neither on the batch nor on the devices.
"""

import jax
import jax.numpy as jnp

_COMPILED_AT_ONCE = 128  # weights; more are added in a loop, because compiling them takes long


def four_neighbors(image: jax.Array, corners: jax.Array) -> list[jax.Array]:
    """Returns the pixels at (y, x), (y, x + 1), (y + 1, x) and (y + 1, x + 1) of each corner (y, x).

    Args:
      image: [H, W, C].
      corners: int32 [h, w, 2], from (0, 0) to (H - 2, W - 2).

    Returns:
      Four arrays [h, w, C].
    """
    windows = jax.lax.gather(  # one gather for all of them
        image,
        corners,
        jax.lax.GatherDimensionNumbers(offset_dims=(2, 3, 4), collapsed_slice_dims=(), start_index_map=(0, 1)),
        (2, 2, image.shape[-1]),
        mode="promise_in_bounds",
    )
    return [windows[:, :, i, j] for i in (0, 1) for j in (0, 1)]


def weighted_sum(image: jax.Array, weights: jax.Array, axis: int, border: str) -> jax.Array:
    """Correlates an image with a kernel along one axis.

    Args:
      image: floats [H, W, ...].
      weights: [K, ...] with an odd K; what follows K is broadcast to the shape of the image.
      axis: 0 or 1.
      border: how the image goes on outside: a mode of `jnp.pad`.

    Returns:
      Floats of the shape of the image.
    """
    reach = len(weights) // 2
    padding = [(0, 0)] * image.ndim
    padding[axis] = (reach, reach)
    padded = jnp.pad(image, padding, mode=border)
    length = image.shape[axis]
    if len(weights) <= _COMPILED_AT_ONCE:
        terms = [weight * jax.lax.slice_in_dim(padded, i, i + length, axis=axis) for i, weight in enumerate(weights)]
        return sum(terms, start=jnp.zeros((), image.dtype))

    def add(i, total):
        return total + weights[i] * jax.lax.dynamic_slice_in_dim(padded, i, length, axis=axis)

    return jax.lax.fori_loop(0, len(weights), add, jnp.zeros_like(image), unroll=8)
