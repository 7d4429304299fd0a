"""Probabilities that trained models predict for a batch of images, on the devices.

A pixel's probabilities are those of the evaluated classes alone: the logit of an ignored class was never trained, so it
must not weigh in a mean. They are kept as logarithms, which do not underflow where a model is sure of itself. Models of
one structure share what is compiled, because a `ModelFunction` is equal to another of the same structure.

Test-time augmentation is the mean of the probabilities over flips and turns of the image, each undone in the
prediction: the eight of a square, or the four that leave a rectangle's shape as it is. An ensemble is the mean over
models, of the same kind.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bcss_jax.labels import LabelScheme
from bcss_jax.models.apply import ModelFunction

# What a trained run says of images: uint8 [N, H, W, 3] on the devices -> `log_probabilities` of them.
Member = Callable[[jax.Array], jax.Array]


class View(NamedTuple):
    """One of the flips and turns of an image."""

    quarter_turns: int
    flipped: bool  # left and right exchanged, before it is turned


def views(height: int, width: int, tta: bool) -> tuple[View, ...]:
    """The views that are averaged for images of a size; the first is the image as it is."""
    if not tta:
        return (View(0, False),)
    turns = (0, 1, 2, 3) if height == width else (0, 2)
    return tuple(View(quarter_turns, flipped) for flipped in (False, True) for quarter_turns in turns)


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def log_probabilities(
    function: ModelFunction, scheme: LabelScheme, tta: bool, params: dict, model_state: dict, images: jax.Array
) -> jax.Array:
    """Logarithms of the probabilities that a model gives the classes of each pixel.

    Args:
      function: the model.
      scheme: its label scheme.
      tta: mean over flips and turns.
      params: of the model.
      model_state: of the model.
      images: uint8 [N, H, W, 3].

    Returns:
      float32 [N, H, W, C], minus infinity for the classes that are not evaluated.
    """

    def seen(images):
        return of_logits(scheme, function(params, model_state, images, train=False)[0])

    several = views(*images.shape[1:3], tta)
    if len(several) == 1:
        return seen(images)
    undo = [functools.partial(_undone, view=view) for view in several]

    def add(total, numbered):
        number, turned = numbered
        return jnp.logaddexp(total, jax.lax.switch(number, undo, seen(turned))), None

    # One after the other: the network is compiled once, and needs no more memory than for one view.
    turned = jnp.stack([_turned(images, view) for view in several])
    nothing = jnp.full((*images.shape[:3], scheme.num_classes), -jnp.inf, jnp.float32)
    total, _ = jax.lax.scan(add, nothing, (jnp.arange(len(several)), turned))
    return total - np.float32(np.log(len(several)))


def of_logits(scheme: LabelScheme, logits: jax.Array) -> jax.Array:
    """Logits [N, H, W, C] as `log_probabilities`."""
    evaluated = np.isin(np.arange(scheme.num_classes), scheme.evaluated)
    return jax.nn.log_softmax(jnp.where(evaluated, logits.astype(jnp.float32), -jnp.inf))


@jax.jit
def mean(each: list[jax.Array]) -> jax.Array:
    """Logarithms of the mean probabilities, from the logarithms of each model's."""
    return functools.reduce(jnp.logaddexp, each) - np.float32(np.log(len(each)))


def _turned(images, view):
    images = jnp.flip(images, axis=2) if view.flipped else images
    return jnp.rot90(images, view.quarter_turns, axes=(1, 2))


def _undone(predicted, view):
    predicted = jnp.rot90(predicted, -view.quarter_turns, axes=(1, 2))
    return jnp.flip(predicted, axis=2) if view.flipped else predicted
