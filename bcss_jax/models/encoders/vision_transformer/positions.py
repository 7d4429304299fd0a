"""Where a token is: tables of position embeddings, resized as their publishers do, and rotary positions."""

import enum

import jax
import jax.numpy as jnp
import numpy as np

ROTARY_BASE = 100.0  # longest period over the shortest one


class Resizing(enum.Enum):
    """How a table of positions is resized to the tokens of an image. All are bicubic.

    Attributes:
      OFFSET: steps of M / (n + 0.1) of the M rows instead of M / n, without antialiasing: DINO, and DINOv2 without
        registers.
      PLAIN: without antialiasing: Hugging Face's ViT and Dinov2.
      ANTIALIAS: with antialiasing: timm, and DINOv2 with registers.
    """

    OFFSET = "offset"
    PLAIN = "plain"
    ANTIALIAS = "antialias"


def resized_table(table: jax.Array, rows: int, columns: int, resizing: Resizing) -> jax.Array:
    """Returns the position embeddings of an image.

    Args:
      table: float32 (M, M, C).
      rows: of tokens.
      columns: of tokens.
      resizing: kind of interpolation.

    Returns:
      float32 (rows, columns, C); the table itself if that has its size.
    """
    size = table.shape[0]
    if (rows, columns) == (size, size):
        return table
    by_rows, by_columns = (jnp.asarray(_bicubic_matrix(size, n, resizing), jnp.float32) for n in (rows, columns))
    return jnp.einsum("rm,cn,mnd->rcd", by_rows, by_columns, table, precision="highest")


def _bicubic_matrix(size: int, to: int, resizing: Resizing) -> np.ndarray:
    """Returns the weights (to, size) with which PyTorch's `interpolate(mode="bicubic")` mixes `size` values."""
    antialias = resizing is Resizing.ANTIALIAS
    step = size / (to + 0.1) if resizing is Resizing.OFFSET else size / to
    center = (np.arange(to) + 0.5) * step - 0.5
    if antialias:
        weights = _cubic(-0.5, (center[:, None] - np.arange(size)) / max(step, 1))
        return weights / weights.sum(1, keepdims=True)
    taps = np.floor(center).astype(int)[:, None] + np.arange(-1, 3)
    weights = np.zeros((to, size))
    # Values beyond the border are those at the border.
    np.add.at(weights, (np.arange(to)[:, None], taps.clip(0, size - 1)), _cubic(-0.75, center[:, None] - taps))
    return weights


def _cubic(a: float, x: np.ndarray) -> np.ndarray:
    """Returns Keys' kernel (1981) with the parameter `a`."""
    x = np.abs(x)
    near = ((a + 2) * x - (a + 3)) * x**2 + 1
    far = ((x - 5) * x + 8) * a * x - 4 * a
    return np.where(x < 1, near, np.where(x < 2, far, 0))


def rotary_periods(head: int) -> np.ndarray:
    """Returns the periods (head / 4,) of the rotations of heads with `head` features."""
    return ROTARY_BASE ** (2 * np.arange(head // 4) / (head // 2))


def rotary_angles(rows: int, columns: int, head: int) -> np.ndarray:
    """Returns the angles of DINOv3's rotary positions: float64 (rows * columns, head / 2).

    The centers of the patches lie between -1 and 1 on both axes. The first half of the angles is that of the rows.
    """
    coordinates = np.meshgrid(*(2 * (np.arange(n) + 0.5) / n - 1 for n in (rows, columns)), indexing="ij")
    angles = 2 * np.pi * np.stack(coordinates, -1)[..., None] / rotary_periods(head)
    return angles.reshape(rows * columns, head // 2)


def rotated(x: jax.Array, angles: np.ndarray, prefix: int) -> jax.Array:
    """Rotates pairs of features, of which the second one lies half a head behind the first, by their angles.

    Args:
      x: queries or keys (N, T, heads, D).
      angles: (T - prefix, D / 2).
      prefix: tokens that come first and are not rotated.

    Returns:
      The shape and type of `x`. The rotation is float32.
    """
    cos, sin = (jnp.asarray(f(angles), jnp.float32)[:, None] for f in (np.cos, np.sin))
    first, second = jnp.split(x[:, prefix:].astype(jnp.float32), 2, axis=-1)
    patches = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return jnp.concatenate([x[:, :prefix], patches.astype(x.dtype)], axis=1)
