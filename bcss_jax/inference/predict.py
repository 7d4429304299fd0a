"""Predicts class probabilities for batches of images, on the devices.

The probabilities of a pixel cover the evaluated classes only: the logit of an ignored class was never trained and must
not contribute to a mean. The functions work with logarithms, which do not underflow where a model is very confident.
Models with the same structure share their compiled code, because `ModelFunction`s of the same structure are equal.

Test-time augmentation averages the probabilities over flips and quarter turns of the image, each undone in the
prediction: all eight for a square image, and the four that keep the shape of a rectangle. An ensemble averages the
probabilities of its models in the same way.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bcss_jax.labels import LabelScheme
from bcss_jax.models.apply import ModelFunction

NOT_FINITE_REMEDY = "its weights are damaged or its training diverged; use another checkpoint, or train again"

# A model of an evaluation: uint8 images [N, H, W, 3] on the devices -> their `log_probabilities`.
Member = Callable[[jax.Array], jax.Array]


class View(NamedTuple):
    """One flip and turn of an image.

    Attributes:
      quarter_turns: number of counterclockwise quarter turns.
      flipped: whether left and right are exchanged before the turn.
    """

    quarter_turns: int
    flipped: bool


def views(height: int, width: int, tta: bool) -> tuple[View, ...]:
    """Returns the views to average for images of this size; the first is the unchanged image."""
    if not tta:
        return (View(0, False),)
    turns = (0, 1, 2, 3) if height == width else (0, 2)
    return tuple(View(quarter_turns, flipped) for flipped in (False, True) for quarter_turns in turns)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def log_probabilities(
    function: ModelFunction, scheme: LabelScheme, tta: bool, params: dict, model_state: dict, images: jax.Array
) -> jax.Array:
    """Returns the logarithm of the probability of each class at each pixel.

    Args:
      function: the model.
      scheme: its label scheme.
      tta: whether to average over flips and turns.
      params: parameters of the model.
      model_state: other state of the model, such as batch statistics.
      images: uint8 [N, H, W, 3].

    Returns:
      float32 [N, H, W, C], minus infinity for the classes that are not evaluated.
    """

    def predict(images):
        return log_probabilities_from_logits(scheme, function(params, model_state, images, train=False)[0])

    if not tta:
        return predict(images)
    nothing = jnp.full((*images.shape[:3], scheme.num_classes), -jnp.inf, jnp.float32)
    total = over_views(predict, images, jnp.logaddexp, nothing)
    return total - np.float32(np.log(len(views(*images.shape[1:3], tta=tta))))


def over_views(
    predict: Callable[[jax.Array], jax.Array], images: jax.Array, add: Callable[[Any, jax.Array], Any], start: Any
) -> Any:
    """Returns what `add` has made of the predictions for all flips and turns of images.

    Args:
      predict: images [N, H', W', 3] -> [N, H', W', C].
      images: [N, H, W, 3].
      add: (what it returned before, the prediction of a view, turned back: [N, H, W, C]) -> the same structure.
      start: what `add` gets first.
    """
    several = views(*images.shape[1:3], tta=True)
    undo = [functools.partial(_undo_view, view=view) for view in several]

    def step(carry, numbered):
        number, turned = numbered
        return add(carry, jax.lax.switch(number, undo, predict(turned))), None

    # A scan compiles the network once and needs no more memory than one view.
    turned = jnp.stack([_apply_view(images, view) for view in several])
    return jax.lax.scan(step, start, (jnp.arange(len(several)), turned))[0]


def log_probabilities_from_logits(scheme: LabelScheme, logits: jax.Array) -> jax.Array:
    """Turns logits [N, H, W, C] into the result of `log_probabilities`.

    A pixel with a logit that is not finite has NaN for all classes, so that it shows in every mean.
    """
    evaluated = np.isin(np.arange(scheme.num_classes), scheme.evaluated)
    log_probabilities = jax.nn.log_softmax(jnp.where(evaluated, logits.astype(jnp.float32), -jnp.inf))
    return jnp.where(jnp.isfinite(logits).all(-1, keepdims=True), log_probabilities, jnp.nan)


@jax.jit
def mean_log_probabilities(members: list[jax.Array]) -> jax.Array:
    """Returns the logarithm of the mean probabilities, given the `log_probabilities` of each model."""
    return functools.reduce(jnp.logaddexp, members) - np.float32(np.log(len(members)))


def _apply_view(images, view):
    images = jnp.flip(images, axis=2) if view.flipped else images
    return jnp.rot90(images, view.quarter_turns, axes=(1, 2))


def _undo_view(predicted, view):
    predicted = jnp.rot90(predicted, -view.quarter_turns, axes=(1, 2))
    return jnp.flip(predicted, axis=2) if view.flipped else predicted
