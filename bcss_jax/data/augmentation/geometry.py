"""Changes of position on the device, as Albumentations 2.0.8 with OpenCV makes them of uint8 images and labels.

The functions take one example, for `jax.vmap`: an image uint8 [H, W, 3] and its labels uint8 [H, W], both sides at
least 2. Images are sampled bilinearly and mirrored at their borders; labels are those of the nearest pixel, and
`ignore_index` outside the image.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from bcss_jax.data.augmentation.sampling import four_neighbors, weighted_sum


def turn(
    image: jax.Array,
    label: jax.Array,
    quarter_turns: jax.Array,
    flips: jax.Array,
    angle: jax.Array,
    ignore_index: int,
) -> tuple[jax.Array, jax.Array]:
    """Turns an example by quarters, flips it, and rotates it about its center.

    Args:
      image: see the docstring of the module.
      label: see there.
      quarter_turns: counterclockwise, 0 to 3; only square images may be turned.
      flips: bool [2], left to right and upside down.
      angle: of the rotation, counterclockwise, in radians; 0: no change in any bit.
      ignore_index: label of pixels from outside.
    """
    height, width = label.shape
    middle = (height - 1) / 2, (width - 1) / 2
    down, right = jnp.arange(height)[:, None] - middle[0], jnp.arange(width)[None, :] - middle[1]
    rows = middle[0] + jnp.sin(angle) * right + jnp.cos(angle) * down
    columns = middle[1] + jnp.cos(angle) * right - jnp.sin(angle) * down
    inside = _is_inside(rows, columns, height, width)
    rows, columns = _mirrored(rows, height), _mirrored(columns, width)
    columns = jnp.where(flips[0], width - 1 - columns, columns)
    rows = jnp.where(flips[1], height - 1 - rows, rows)
    if height == width:
        rows, columns = (
            jnp.select([quarter_turns == i for i in range(3)], each[:3], each[3])
            for each in (
                (rows, columns, height - 1 - rows, width - 1 - columns),
                (columns, width - 1 - rows, width - 1 - columns, rows),
            )
        )
    return _sampled(image, label, rows, columns, inside, ignore_index)


def displace(
    image: jax.Array, label: jax.Array, displacement: jax.Array, ignore_index: int
) -> tuple[jax.Array, jax.Array]:
    """Moves each pixel by its displacement.

    Args:
      image: see the docstring of the module.
      label: see there.
      displacement: float32 [2, H, W]: where a pixel comes from, to the right and down, in pixels; 0: no change.
      ignore_index: label of pixels from outside.
    """
    height, width = label.shape
    rows = jnp.arange(height)[:, None] + displacement[1]
    columns = jnp.arange(width)[None, :] + displacement[0]
    inside = _is_inside(rows, columns, height, width)
    return _sampled(image, label, _mirrored(rows, height), _mirrored(columns, width), inside, ignore_index)


def smooth_displacement(noise: jax.Array, smoothness: float, factor: jax.Array | float) -> jax.Array:
    """Returns a smooth displacement.

    Args:
      noise: float32 [2, H, W], normally distributed. It is divided by its largest absolute value.
      smoothness: standard deviation of the Gaussian that smooths it, in pixels.
      factor: on the result.

    Returns:
      float32 [2, H, W] in pixels.
    """
    noise = noise / jnp.maximum(jnp.max(jnp.abs(noise)), 1e-6)
    reach = round(8 * smoothness + 1) // 2
    bell = np.exp(-0.5 * (np.arange(-reach, reach + 1) / smoothness) ** 2)
    weights = jnp.asarray(bell / bell.sum(), jnp.float32)
    # Both directions are smoothed as one image, as Albumentations does it: near the border between them they mix.
    both = noise.reshape(-1, noise.shape[-1])
    for axis in (1, 0):
        both = weighted_sum(jax.lax.optimization_barrier(both), weights, axis, "edge")
    return factor * both.reshape(noise.shape)


def blur(image: jax.Array, sigma: jax.Array, largest: float) -> jax.Array:
    """Applies a Gaussian blur; the image is mirrored at its borders.

    Args:
      image: float32 [H, W, 3] with whole numbers.
      sigma: standard deviation in pixels; 0: no change. The kernel reaches as far as 3.5 sigma, rounded down.
      largest: upper bound of sigma, which determines how much is computed.

    Returns:
      float32 [H, W, 3], rounded to whole numbers.
    """
    reach = math.floor(3.5 * largest)
    offsets = jnp.arange(-reach, reach + 1)
    bell = jnp.exp(-0.5 * (offsets / jnp.where(sigma > 0, sigma, 1.0)) ** 2)
    bell = jnp.where(jnp.abs(offsets) <= jnp.floor(3.5 * sigma), bell, 0.0)
    for axis in (1, 0):
        # The barrier keeps XLA from computing what comes before once for each weight.
        image = weighted_sum(jax.lax.optimization_barrier(image), bell / jnp.sum(bell), axis, "reflect")
    return jnp.rint(image)


def _mirrored(positions: jax.Array, length: int) -> jax.Array:
    """Returns the positions in [0, length - 1] that hold the same values if the image is mirrored at its borders."""
    last = length - 1
    positions = jnp.mod(jnp.abs(positions), 2 * last)
    return jnp.where(positions > last, 2 * last - positions, positions)


def _is_inside(rows: jax.Array, columns: jax.Array, height: int, width: int) -> jax.Array:
    """Returns whether the pixels nearest to the positions are inside the image."""
    rows, columns = jnp.rint(rows), jnp.rint(columns)
    return (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)


def _sampled(image, label, rows, columns, inside, ignore_index):
    top = jnp.minimum(jnp.floor(rows), label.shape[0] - 2)
    left = jnp.minimum(jnp.floor(columns), label.shape[1] - 2)
    # Joined, so that one gather fetches image and labels. The barrier keeps XLA from computing what comes before once
    # for each neighbor.
    both = jax.lax.optimization_barrier(jnp.concatenate([image, label[..., None]], -1))
    corners = jnp.stack([top, left], -1).astype(jnp.int32)
    upper_left, upper_right, lower_left, lower_right = four_neighbors(both, corners)
    down, right = rows - top, columns - left

    def between(first, second, share):
        return first * (1 - share) + second * share

    share_down, share_right = down[..., None], right[..., None]
    upper, lower = (
        between(a[..., :3].astype(jnp.float32), b[..., :3].astype(jnp.float32), share_right)
        for a, b in ((upper_left, upper_right), (lower_left, lower_right))
    )
    sampled = jnp.rint(between(upper, lower, share_down)).astype(jnp.uint8)
    nearest = jnp.where(
        down > 0.5,
        jnp.where(right > 0.5, lower_right[..., 3], lower_left[..., 3]),
        jnp.where(right > 0.5, upper_right[..., 3], upper_left[..., 3]),
    )
    return sampled, jnp.where(inside, nearest, jnp.uint8(ignore_index))
