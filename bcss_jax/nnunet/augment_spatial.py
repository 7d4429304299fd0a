"""nnU-Net's spatial augmentations: rotation, scaling, mirroring. The functions take one example, for `jax.vmap`.

Source: SpatialTransform and MirrorTransform of batchgeneratorsv2 0.3.6, as nnU-Net 2.8.1 configures them.
"""

import jax
import jax.numpy as jnp

from bcss_jax.data.augmentation.sampling import four_neighbors

OUTSIDE = -1  # label of pixels outside the image

# Shares of a pixel that differ by less count as equal, because nnU-Net compares shares of 1000 in float16.
_TIE = 2.5e-4


def center_corner(shape: tuple[int, int], patch_size: tuple[int, int]) -> tuple[int, int]:
    """Returns the upper left pixel (y, x) of the patch in the center of an image."""
    y, x = (length // 2 - size // 2 for length, size in zip(shape, patch_size, strict=True))
    return y, x


def rotate_and_scale(
    image: jax.Array, label: jax.Array, angle: jax.Array, scale: jax.Array, patch_size: tuple[int, int]
) -> tuple[jax.Array, jax.Array]:
    """Samples the center of an image through a rotated and scaled window.

    Sampling is bilinear. The label of a pixel is the label with the largest share of it; if shares are equal, that of
    the nearest pixel. Outside the image the values are 0 and the label is -1. Angle 0 with scale 1 is exactly a crop;
    if the sizes of image and patch have different parity, the crop is shifted by half a pixel against the rotated
    window.

    Args:
      image: float32 [H0, W0, C].
      label: integers [H0, W0].
      angle: of the window, in radians, from rows to columns.
      scale: of the window; above 1 objects become smaller.
      patch_size: (H, W).

    Returns:
      float32 [H, W, C] and labels [H, W] of the input's type.
    """
    shape = (image.shape[0], image.shape[1])
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

    # Two rows and columns of "outside" are added on each side, so that the four neighbors always exist. Labels are
    # added as a channel, so that one gather fetches the neighbors of image and label together.
    both = jnp.concatenate([image, (label - OUTSIDE)[..., None].astype(image.dtype)], -1)
    both = jnp.pad(both, ((2, 2), (2, 2), (0, 0)))
    top, left = jnp.floor(rows), jnp.floor(columns)
    row_share, column_share = rows - top, columns - left
    start = jnp.stack([jnp.clip(top, -2, shape[0]), jnp.clip(left, -2, shape[1])], -1).astype(jnp.int32) + 2
    neighbors = four_neighbors(both, start)
    weights = [y * x for y in (1 - row_share, row_share) for x in (1 - column_share, column_share)]

    terms = [weight[..., None] * each[..., :-1] for weight, each in zip(weights, neighbors, strict=True)]
    sampled = sum(terms, start=jnp.zeros((), image.dtype))
    nearest = 2 * (jnp.round(rows) > top) + (jnp.round(columns) > left)
    labels = _largest_share([each[..., -1] for each in neighbors], weights, nearest)
    return sampled, labels.astype(label.dtype) + jnp.asarray(OUTSIDE, label.dtype)


def _largest_share(labels, weights, nearest):
    # Labels are compared one by one instead of with argmax, because XLA compiles this to a single pass over the pixels.
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
    """Flips an example vertically (if `axes[0]`) and horizontally (if `axes[1]`)."""
    # Flips are done by indexing, because XLA would compute everything twice to select between two arrays.
    rows, columns = (
        jnp.where(flip, jnp.arange(length)[::-1], jnp.arange(length))
        for flip, length in zip(axes, label.shape, strict=True)
    )
    return image[rows[:, None], columns], label[rows[:, None], columns]
