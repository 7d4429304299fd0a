"""The loss of networks that predict masks and classes by queries: Hungarian matching with the classes of each image.

Each class of an image is one mask. It is matched with one query; all other queries are to predict that they stand for
no class. Masks are compared at random pixels that have a ground truth, so ignored pixels change neither the loss nor
its gradient, and an image without ground truth does not count at all. The loss is computed from sums that can be
added, as in `losses`.

Source: Cheng et al. 2022 (Mask2Former, arXiv:2112.01527), with the weights of EoMT in transformers. Other than there,
the points are centers of pixels and not in between, so that each has one label.
"""

from collections.abc import Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import optax

from bcss_jax.losses import LossSums, Objective

# Weights of the three parts, in the matching and in the loss.
CLASS, MASK, DICE = 2.0, 5.0, 5.0
NO_CLASS = 0.1  # weight of the class for none in the cross-entropy
MOST_POINTS = 12544  # pixels of an image at which masks are compared
CELL = 16  # pixels for each of these points, in small images
OVERSAMPLED, UNCERTAIN = 3, 0.75  # points to choose from, and share of the most uncertain among those that are chosen
_FIRST_KEY = 1 << 21  # numbers of the random keys; dropout and masked attention have lower ones


class Predictions(Protocol):
    """Masks and classes, see `models.decoders.eomt.Queries`."""

    masks: jax.Array
    classes: jax.Array
    cell: Any


def query_sums(
    queries: Predictions, labels: jax.Array, objective: Objective, keys: jax.Array, number: int = 0
) -> LossSums:
    """Returns the sums over images that `loss_from_query_sums` needs. The sums of two sets of images can be added.

    Args:
      queries: the predictions; at least as many queries as classes.
      labels: [N, H, W] integers.
      objective: says how many classes there are, and which label is ignored.
      keys: JAX keys [N], one per example, which decide on the points.
      number: of the predictions, if a network makes several.

    Returns:
      `class` and `class_weight` (cross-entropy of all queries, and the sum of its weights), `mask`, `dice` and `masks`
      (losses of the matched masks, and their number).
    """

    def of_image(masks, classes, labels, key):
        return _sums_of_image(masks, classes, queries.cell, labels, key, objective)

    keys = jax.vmap(lambda key: jax.random.fold_in(key, _FIRST_KEY + number))(keys)
    masks, classes = (x.astype(jnp.float32) for x in (queries.masks, queries.classes))
    return jax.tree.map(jnp.sum, jax.vmap(of_image)(masks, classes, labels, keys))


def loss_from_query_sums(sums: Mapping[str, Any]) -> jax.Array:
    """Returns the weighted sum of the means: of the classes over the queries, of masks and Dice over the masks."""
    masks = jnp.maximum(sums["masks"], 1.0)
    classes = sums["class"] / jnp.maximum(sums["class_weight"], 1e-6)
    return CLASS * classes + MASK * sums["mask"] / masks + DICE * sums["dice"] / masks


def _sums_of_image(masks, classes, cell, labels, key, objective: Objective) -> LossSums:
    """Returns the sums of one image: masks [Q, h, w], classes [Q, C + 1], labels [H, W]."""
    count, labels = objective.num_classes, labels.astype(jnp.int32)
    counts = jnp.ones(labels.shape, bool) if objective.ignore_index is None else labels != objective.ignore_index
    is_class = (labels.reshape(-1, 1) == jnp.arange(count)) & counts.reshape(-1, 1)  # [HW, C]
    present = is_class.any(0)
    points = min(MOST_POINTS, -(-labels.size // CELL))
    keys = jax.random.split(key, 2 + count)
    flat = masks.reshape(len(masks), -1).T  # [hw, Q]

    places = _places(keys[0], counts, points)
    values = _at(flat, masks.shape[1:], places, labels.shape[1], cell)  # [P, Q]
    matched = _matched(values, classes, is_class[places].astype(jnp.float32), present)

    target = jnp.full(len(classes), count).at[jnp.where(present, matched, len(classes))].set(jnp.arange(count))
    weight = jnp.where(target == count, NO_CLASS, 1.0) * counts.any()
    cross_entropy = -jnp.take_along_axis(jax.nn.log_softmax(classes), target[:, None], axis=1)[:, 0]

    def sampled(column, places):
        return _at(column[:, None], masks.shape[1:], places, labels.shape[1], cell)[:, 0]

    def of_mask(column, is_class, key):
        """Returns cross-entropy and Dice of one matched mask, at points of its own."""
        candidates, drawn = jax.random.split(key)
        candidates = _places(candidates, counts, OVERSAMPLED * points)
        certain = jnp.abs(
            _at(jax.lax.stop_gradient(column[:, None]), masks.shape[1:], candidates, labels.shape[1], cell)
        )
        uncertain = int(UNCERTAIN * points)
        chosen = candidates[jax.lax.top_k(-certain[:, 0], uncertain)[1]]
        places = jnp.concatenate([chosen, _places(drawn, counts, points - uncertain)])
        value = sampled(column, places)
        truth = is_class[places].astype(jnp.float32)
        p = jax.nn.sigmoid(value)
        dice = 1 - (2 * jnp.sum(p * truth) + 1) / (jnp.sum(p) + jnp.sum(truth) + 1)
        return jnp.mean(jax.nn.softplus(value) - value * truth), dice

    mask, dice = jax.vmap(of_mask)(flat[:, matched].T, is_class.T, keys[2:])
    return {
        "class": jnp.sum(weight * cross_entropy),
        "class_weight": jnp.sum(weight),
        "mask": jnp.sum(jnp.where(present, mask, 0.0)),
        "dice": jnp.sum(jnp.where(present, dice, 0.0)),
        "masks": jnp.sum(present, dtype=jnp.float32),
    }


def _matched(values: jax.Array, classes: jax.Array, truth: jax.Array, present: jax.Array) -> jax.Array:
    """Returns the query of each class, int32 [C]; those of absent classes mean nothing.

    Args:
      values: logits of the masks at the points, [P, Q].
      classes: logits [Q, C + 1].
      truth: 1 where a point has the class, [P, C].
      present: bool [C].
    """
    values, classes = jax.lax.stop_gradient((values, classes))
    count = truth.shape[1]
    p = jax.nn.sigmoid(values)
    cross_entropy = (jax.nn.softplus(values).sum(0)[:, None] - values.T @ truth) / len(values)
    dice = 1 - (2 * p.T @ truth + 1) / (p.sum(0)[:, None] + truth.sum(0) + 1)
    cost = MASK * cross_entropy + DICE * dice - CLASS * jax.nn.softmax(classes)[:, :count]
    # An absent class costs the same with every query, so it takes none away from a present one. What is not finite
    # must not keep the search from ending.
    cost = jnp.where(present, jnp.nan_to_num(jnp.clip(cost, -1e10, 1e10), nan=0.0), 0.0)
    query, label = optax.assignment.hungarian_algorithm(cost)
    return jnp.zeros(count, jnp.int32).at[label].set(query.astype(jnp.int32))


def _places(key: jax.Array, counts: jax.Array, number: int) -> jax.Array:
    """Returns the numbers of random pixels that count, with repetitions: int32 [number]."""
    up_to = jnp.cumsum(counts.reshape(-1))
    drawn = jax.random.randint(key, (number,), 0, jnp.maximum(up_to[-1], 1))
    return jnp.minimum(jnp.searchsorted(up_to, drawn, side="right"), counts.size - 1)


def _at(flat: jax.Array, shape: tuple[int, ...], places: jax.Array, width: int, cell: jax.Array | float) -> jax.Array:
    """Returns maps at the centers of pixels, bilinearly interpolated: [P, M].

    Args:
      flat: maps, [h * w, M].
      shape: (h, w).
      places: numbers of pixels of the image, [P].
      width: of the image.
      cell: side of a pixel of the maps, in pixels of the image.
    """
    (rows, columns), result = shape, 0.0
    y, x = ((place + 0.5) / cell - 0.5 for place in (places // width, places % width))
    top, left = jnp.floor(y), jnp.floor(x)
    for row in (top, top + 1):
        for column in (left, left + 1):
            weight = (1 - jnp.abs(y - row)) * (1 - jnp.abs(x - column))
            inside = jnp.clip(row, 0, rows - 1) * columns + jnp.clip(column, 0, columns - 1)
            result += weight[:, None] * flat[inside.astype(jnp.int32)]
    return jnp.asarray(result)
