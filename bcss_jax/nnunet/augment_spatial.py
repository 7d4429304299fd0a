"""nnU-Net's changes of where things are: rotation and scaling, mirroring. One example at a time, for `jax.vmap`.

Source: SpatialTransform and MirrorTransform of batchgeneratorsv2 0.3.6 as nnU-Net 2.8.1 sets them up.
"""

import jax
import jax.numpy as jnp

OUTSIDE = -1  # label of pixels without a picture

# Two labels whose shares of a pixel differ by less are equal: nnU-Net compares shares of 1000 in float16.
_TIE = 2.5e-4


def center_corner(shape: tuple[int, int], patch_size: tuple[int, int]) -> tuple[int, int]:
    """Upper left pixel of the patch in the middle of a larger one."""
    return tuple(length // 2 - size // 2 for length, size in zip(shape, patch_size, strict=True))


def rotate_and_scale(
    image: jax.Array, label: jax.Array, angle: jax.Array, scale: jax.Array, patch_size: tuple[int, int]
) -> tuple[jax.Array, jax.Array]:
    """The middle of a picture, seen through a turned and scaled window.

    Bilinear. A pixel's label is the one with the largest share of it; where shares are equal, the nearest pixel's.
    Outside of the picture the image is 0 and the label -1. Angle 0 with scale 1 is a plain crop, to the bit: with sizes
    of different parity it lies half a pixel beside the window that turns.

    Args:
      image: float32 [H0, W0, C].
      label: integers [H0, W0].
      angle: of the window, in radians, from rows to columns.
      scale: of the window: above 1 objects become smaller.
      patch_size: (H, W).

    Returns:
      float32 [H, W, C] and labels [H, W] of the type that came.
    """
    shape = image.shape[:2]
    moved = (angle != 0) | (scale != 1)
    from_middle = [jnp.arange(size) - (size - 1) / 2 for size in patch_size]
    middles = [
        jnp.where(moved, (length - 1) / 2, corner + (size - 1) / 2)
        for length, size, corner in zip(shape, patch_size, center_corner(shape, patch_size), strict=True)
    ]
    down, right = from_middle[0][:, None], from_middle[1][None, :]
    cosine, sine = scale * jnp.cos(angle), scale * jnp.sin(angle)
    rows = middles[0] + cosine * down - sine * right
    columns = middles[1] + sine * down + cosine * right

    # Two rows and columns of "outside" all around, so that every window's four neighbors exist. Labels travel as a
    # further channel of the one gather, which fetches the neighbors together.
    both = jnp.concatenate([image, (label - OUTSIDE)[..., None].astype(image.dtype)], -1)
    both = jnp.pad(both, ((2, 2), (2, 2), (0, 0)))
    top, left = jnp.floor(rows), jnp.floor(columns)
    below, beside = rows - top, columns - left
    start = jnp.stack([jnp.clip(top, -2, shape[0]), jnp.clip(left, -2, shape[1])], -1).astype(jnp.int32) + 2
    fours = jax.lax.gather(
        both,
        start,
        jax.lax.GatherDimensionNumbers(offset_dims=(2, 3, 4), collapsed_slice_dims=(), start_index_map=(0, 1)),
        (2, 2, both.shape[-1]),
        mode="promise_in_bounds",
    )
    neighbors = [fours[:, :, i, j] for i in (0, 1) for j in (0, 1)]
    weights = [y * x for y in (1 - below, below) for x in (1 - beside, beside)]

    sampled = sum(weight[..., None] * each[..., :-1] for weight, each in zip(weights, neighbors, strict=True))
    nearest = 2 * (jnp.round(rows) > top) + (jnp.round(columns) > left)
    labels = _largest_share([each[..., -1] for each in neighbors], weights, nearest)
    return sampled, labels.astype(label.dtype) + jnp.asarray(OUTSIDE, label.dtype)


def _largest_share(labels, weights, nearest):
    # Comparisons one by one, not argmax: XLA makes one pass over the pixels of them.
    shares = [
        sum(jnp.where(other == label, weight, 0.0) for other, weight in zip(labels, weights, strict=True))
        for label in labels
    ]
    largest, winner = nearest_share, nearest_label = shares[0], labels[0]
    for i in (1, 2, 3):
        winner = jnp.where(shares[i] > largest, labels[i], winner)
        largest = jnp.maximum(shares[i], largest)
        nearest_share = jnp.where(nearest == i, shares[i], nearest_share)
        nearest_label = jnp.where(nearest == i, labels[i], nearest_label)
    return jnp.where(nearest_share >= largest - _TIE, nearest_label, winner)


def mirror(image: jax.Array, label: jax.Array, axes: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Turns an example upside down (`axes[0]`) and left to right (`axes[1]`)."""
    # By index: choosing between two arrays would have XLA compute each twice.
    rows, columns = (
        jnp.where(turned, jnp.arange(length)[::-1], jnp.arange(length))
        for turned, length in zip(axes, label.shape, strict=True)
    )
    return image[rows[:, None], columns], label[rows[:, None], columns]
