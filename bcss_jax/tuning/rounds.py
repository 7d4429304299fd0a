"""A user who corrects SAM, simulated: a first prompt, then points where the prediction is wrong.

Source: Kirillov et al. 2023 (arXiv:2304.02643), appendix A. As in SAM 2 (arXiv:2408.00714), one point is an ambiguous
prompt, a box or several points are clear ones.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bcss_jax.models.sam.mask_decoder import Features
from bcss_jax.models.sam.prompt_encoder import FOREGROUND, NO_TOKEN
from bcss_jax.models.sam.promptable import PromptableSam
from bcss_jax.prompting.simulation.training_prompts import Object, draw_box, draw_correction, draw_object, draw_pixel
from bcss_jax.tuning.mask_losses import mask_losses, prompt_loss


class Rounds(NamedTuple):
    """How P objects were segmented.

    Attributes:
      loss: float32 (P,), mean over the prompts of the object.
      iou: float32 (P, R), intersection over union after each prompt.
      points: int32 (P, R, 2), x and y of the points in pixels of the tile.
      labels: int32 (P, R), of the points: 1 inside, 0 outside, `NO_TOKEN` where the prompt was a box.
      boxes: float32 (P, 4), in pixels of the tile.
      has_box: bool (P,), whether the first prompt was the box.
      exists: bool (P,), whether there was an object.
    """

    loss: jax.Array
    iou: jax.Array
    points: jax.Array
    labels: jax.Array
    boxes: jax.Array
    has_box: jax.Array
    exists: jax.Array


def example_keys(seed: int, step: Any, indices: jax.Array) -> jax.Array:
    """Returns a key for each example of a batch, of the seed, the step, and the number of the example in the data."""
    key = jax.random.fold_in(jax.random.key(seed), step)
    return jax.vmap(functools.partial(jax.random.fold_in, key))(indices.astype(jnp.uint32))


def run_rounds(
    network: PromptableSam,
    maps: list[jax.Array],
    labels: jax.Array,
    keys: jax.Array,
    *,
    objects: int,
    clicks: int,
    classes: tuple[int, ...],
    ignore_index: int | None,
    remat: bool = False,
) -> Rounds:
    """Segments random objects of tiles, correcting each several times.

    Args:
      network: the network.
      maps: result of its `encode` for N tiles.
      labels: integer (N, H, W).
      keys: random keys (N,).
      objects: number of objects of a tile, P = N * objects.
      clicks: number of points after the first prompt, R = 1 + clicks.
      classes: labels whose regions are objects.
      ignore_index: label of pixels without ground truth; None: all have one.
      remat: keep of each round only what the next one takes, and compute the round again for the gradient.
    """
    features = network.features(maps)
    keys = jax.vmap(lambda key: jax.random.split(key, objects))(keys).reshape(-1)
    per_object = jnp.repeat(labels, objects, axis=0)
    of_object, of_kind, of_point, of_box, of_rounds = jnp.moveaxis(
        jax.vmap(lambda key: jax.random.split(key, 5))(keys), 1, 0
    )
    draw = functools.partial(draw_object, classes=classes, ignore_index=ignore_index)
    drawn: Object = jax.vmap(draw)(per_object, of_object)
    has_box = jax.vmap(jax.random.bernoulli)(of_kind)
    boxes = jax.vmap(draw_box)(drawn.mask, of_box)
    row, column = jax.vmap(draw_pixel)(drawn.mask, of_point)
    first = jnp.where(has_box, NO_TOKEN, FOREGROUND)

    rounds = 1 + clicks
    points = jnp.zeros((len(has_box), rounds, 2), jnp.int32).at[:, 0].set(jnp.stack([column, row], axis=-1))
    point_labels = jnp.full((len(has_box), rounds), NO_TOKEN).at[:, 0].set(jnp.where(has_box, NO_TOKEN, FOREGROUND))
    masks = jnp.zeros((len(has_box), network.mask_size, network.mask_size))

    def one_round(carry, number):
        points, point_labels, masks, predicted = carry
        keys = jax.vmap(jax.random.fold_in, (0, None))(of_rounds, number)
        row, column, label = jax.vmap(draw_correction)(drawn.mask, drawn.known, predicted, keys)
        corrected = points.at[:, number].set(jnp.stack([column, row], axis=-1)), point_labels.at[:, number].set(label)
        points, point_labels = jax.tree.map(
            lambda new, old: jnp.where(number > 0, new, old), corrected, (points, point_labels)
        )
        prompt = Prompt(points, point_labels, boxes, has_box, masks, number > 0)
        loss, iou, masks, predicted = _answer(network, features, drawn, prompt, ~has_box & (number == 0))
        return (points, point_labels, masks, predicted), (loss, iou)

    first = points, point_labels, masks, drawn.mask
    if remat:
        one_round = jax.checkpoint(one_round, prevent_cse=False)  # a scan has nothing to share with it
    (points, point_labels, _, _), (loss, iou) = jax.lax.scan(one_round, first, jnp.arange(rounds))
    return Rounds(loss.mean(0), iou.T, points, point_labels, boxes, has_box, drawn.exists)


class Prompt(NamedTuple):
    """P prompts in pixels of the tile; see `Rounds`, and `PromptableSam.decode` for the masks."""

    points: jax.Array
    labels: jax.Array
    boxes: jax.Array
    has_box: jax.Array
    masks: jax.Array
    has_masks: jax.Array


def _answer(network: PromptableSam, features: Features, drawn: Object, prompt: Prompt, ambiguous: jax.Array):
    """Returns loss (P,), IoU (P,), the logits to feed back (P, h, w), and the mask in the tile, bool (P, H, W)."""
    frame = network.frame(*drawn.mask.shape[1:])
    factors = jnp.asarray(frame.factors, jnp.float32)
    prompt = prompt._replace(
        points=prompt.points.astype(jnp.float32) * factors, boxes=prompt.boxes * jnp.tile(factors, 2)
    )
    answer = network.decode(features, *prompt)
    by_row, by_column = (jnp.asarray(m, jnp.float32) for m in frame.mask_matrices(*answer.masks.shape[2:]))
    logits = jnp.einsum("rh,pmhw,sw->pmrs", by_row, answer.masks, by_column)
    losses = mask_losses(logits, drawn.mask, drawn.known)
    # What the user sees: of several masks the one with the best score.
    best = jnp.where(ambiguous, 1 + answer.scores[:, 1:].argmax(1), 0)

    def chosen(x):
        return jax.lax.stop_gradient(jnp.take_along_axis(x, best.reshape(-1, *[1] * (x.ndim - 1)), axis=1)[:, 0])

    loss = prompt_loss(losses, answer.scores, ambiguous)
    return loss, chosen(losses.iou), chosen(answer.masks), chosen(logits) > 0
