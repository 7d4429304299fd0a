"""Random prompts on the ground truth of a tile, compiled for the device: objects, points, boxes.

Pixels are drawn uniformly. Ignored pixels belong to no object and are never drawn.

Source: Kirillov et al. 2023 (arXiv:2304.02643), appendix A, "Making the model promptable".
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

MIN_AREA = 64  # pixels of the smallest region that counts as an object, as in the evaluation of clicks
BOX_NOISE = 0.1  # standard deviation of the noise of a corner, as a share of the side of the box
MAX_BOX_NOISE = 20 / 1024  # largest noise of a corner, as a share of the longer side of the tile


class Object(NamedTuple):
    """A region of a tile that is to be segmented.

    Attributes:
      mask: bool (H, W), its pixels.
      known: bool (H, W), pixels with ground truth.
      exists: bool scalar; False: the tile has no region that is large enough, and nothing may be made of this.
    """

    mask: jax.Array
    known: jax.Array
    exists: jax.Array


def draw_object(labels: jax.Array, key: jax.Array, classes: tuple[int, ...], ignore_index: int | None) -> Object:
    """Draws a connected region of one class: first the class, then a pixel of it, whose region it is.

    Args:
      labels: integer (H, W).
      key: random key.
      classes: labels whose regions are objects, equally likely if the tile has them.
      ignore_index: label of pixels without ground truth; None: all have one.
    """
    of_class, of_pixel = jax.random.split(key)
    counts = jnp.stack([(labels == each).sum() for each in classes])
    noise = jax.random.uniform(of_class, counts.shape)
    chosen = jnp.argmax(jnp.where(counts >= MIN_AREA, noise, -1))
    same = labels == jnp.array(classes)[chosen]
    seed = jnp.zeros(labels.shape, bool).at[draw_pixel(same, of_pixel)].set(True) & same
    mask = connected(seed, same)
    known = jnp.ones(labels.shape, bool) if ignore_index is None else labels != ignore_index
    return Object(mask, known, mask.sum() >= MIN_AREA)


def draw_pixel(where: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns row and column of a pixel of bool (H, W), all equally likely; without any, (0, 0)."""
    noise = jax.random.uniform(key, where.shape)
    number = jnp.argmax(jnp.where(where, noise, -1))
    number = jnp.where(where.any(), number, 0)
    return number // where.shape[1], number % where.shape[1]


def connected(seed: jax.Array, within: jax.Array) -> jax.Array:
    """Returns the pixels of `within`, bool (H, W), that paths over edges of its pixels connect with those of `seed`.

    Whole runs of rows and columns are filled at once, so the number of passes is that of the turns of the paths.
    """

    def fill(filled, axis):
        place = jax.lax.broadcasted_iota(jnp.int32, within.shape, axis)
        for reverse in (False, True):
            step = -place if reverse else place
            first = jnp.iinfo(jnp.int32).min
            reached, broken = (
                jax.lax.cummax(jnp.where(each, step, first), axis=axis, reverse=reverse) for each in (filled, ~within)
            )
            filled = filled | (within & (reached > broken))
        return filled

    def more(carry):
        filled, _ = carry
        return fill(fill(filled, 1), 0), filled

    filled, _ = jax.lax.while_loop(lambda carry: (carry[0] != carry[1]).any(), more, (seed, jnp.zeros_like(seed)))
    return filled


def draw_box(mask: jax.Array, key: jax.Array) -> jax.Array:
    """Returns the box around bool (H, W) with noise on its corners: float32 (4,), x and y of the first and last one."""
    height, width = mask.shape
    spans = []
    for axis, size in ((0, width), (1, height)):
        present = mask.any(axis)
        first = jnp.argmax(present)
        spans.append((first, size - 1 - jnp.argmax(present[::-1])))
    (left, right), (top, bottom) = spans
    box = jnp.stack([left, top, right, bottom]).astype(jnp.float32)
    sides = jnp.tile(jnp.stack([right - left, bottom - top]) + 1.0, 2)
    limit = MAX_BOX_NOISE * max(height, width)
    box = box + (BOX_NOISE * sides * jax.random.normal(key, (4,))).clip(-limit, limit)
    box = box.clip(0, jnp.array([width - 1, height - 1] * 2, jnp.float32))
    return jnp.concatenate([jnp.minimum(box[:2], box[2:]), jnp.maximum(box[:2], box[2:])])


def draw_correction(mask: jax.Array, known: jax.Array, predicted: jax.Array, key: jax.Array):
    """Draws a point where a prediction is wrong.

    Args:
      mask: bool (H, W), the object.
      known: bool (H, W), pixels with ground truth.
      predicted: bool (H, W).
      key: random key.

    Returns:
      Row, column, and the label of the point: 1 where the object was missed, 0 where it does not reach. A point inside
      of the object if nothing is wrong.
    """
    wrong = known & (predicted != mask)
    row, column = draw_pixel(jnp.where(wrong.any(), wrong, mask), key)
    return row, column, mask[row, column].astype(jnp.int32)
