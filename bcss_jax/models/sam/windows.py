"""Windows of tokens, in which attention is cheaper than over a whole map."""

import jax
import jax.numpy as jnp


def to_windows(x: jax.Array, size: int) -> jax.Array:
    """Cuts maps into windows, after zeros are added at the bottom and on the right up to whole windows.

    Args:
      x: (N, H, W, C).
      size: rows (and columns) of a window.

    Returns:
      (N * windows, size, size, C), the windows of an image row by row.
    """
    n, height, width, channels = x.shape
    x = jnp.pad(x, ((0, 0), (0, -height % size), (0, -width % size), (0, 0)))
    x = x.reshape(n, x.shape[1] // size, size, x.shape[2] // size, size, channels)
    return x.swapaxes(2, 3).reshape(-1, size, size, channels)


def from_windows(windows: jax.Array, height: int, width: int) -> jax.Array:
    """Inverts `to_windows`: (N * windows, size, size, C) -> (N, height, width, C)."""
    size, channels = windows.shape[2:]
    rows, columns = -(-height // size), -(-width // size)
    x = windows.reshape(-1, rows, columns, size, size, channels).swapaxes(2, 3)
    return x.reshape(-1, rows * size, columns * size, channels)[:, :height, :width]
