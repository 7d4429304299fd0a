"""The training and the evaluation step: pure functions over a pytree state, compiled once.

The model is an NNX module; its parameters and its other state (BatchNorm statistics) travel as plain dicts, and the
module is put together again inside the compiled function, which costs less per step than passing the module.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh

from bcss_jax import losses, metrics
from bcss_jax.sharding import replicated, split_over_data

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class TrainState:
    """Everything that training changes.

    Attributes:
      step: int32 scalar, batches seen so far.
      params: trained parameters, nested dict.
      rest: the model's other state (BatchNorm statistics), nested dict.
      opt_state: the optimizer's state.
      plateau: the learning-rate scale's state (`optimizer.Plateau`).
    """

    step: jax.Array
    params: Any
    rest: Any
    opt_state: Any
    plateau: Any


def split_model(model: nnx.Module) -> tuple[Any, dict, dict]:
    """Takes a module apart: (graph definition, parameters, other state), the last two as plain dicts of arrays."""
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)
    return graphdef, nnx.to_pure_dict(params), nnx.to_pure_dict(rest)


class ModelFunction:
    """A module as a pure function of (params, rest, images)."""

    def __init__(self, model: nnx.Module):
        """Keeps the module's structure; its arrays are given at each call."""
        self._graphdef, self._params, self._rest = nnx.split(model, nnx.Param, ...)
        # Only the structure is needed; shapes in place of arrays, so that no second copy of the model stays alive.
        self._params, self._rest = jax.eval_shape(lambda: (self._params, self._rest))

    def __call__(self, params: dict, rest: dict, images: jax.Array, *, train: bool) -> tuple[jax.Array, dict]:
        """Runs the model.

        Args:
          params: as from `split_model`.
          rest: as from `split_model`.
          images: [N, H, W, 3] uint8 RGB; normalised here with ImageNet's mean and standard deviation.
          train: batch statistics are used and updated, else the running ones.

        Returns:
          float32 logits [N, H, W, C] and the new `rest`.
        """
        p, r = jax.tree.map(lambda x: x, self._params), jax.tree.map(lambda x: x, self._rest)
        nnx.replace_by_pure_dict(p, params)
        nnx.replace_by_pure_dict(r, rest)
        model = nnx.merge(self._graphdef, p, r)
        model.train() if train else model.eval()
        logits = model(normalise(images))
        return logits, nnx.to_pure_dict(nnx.state(model, nnx.Not(nnx.Param)))


def normalise(images: jax.Array) -> jax.Array:
    """uint8 RGB [N, H, W, 3] -> float32 with ImageNet's mean 0 and standard deviation 1."""
    mean, std = np.asarray(IMAGENET_MEAN, np.float32), np.asarray(IMAGENET_STD, np.float32)
    return (images.astype(jnp.float32) - 255.0 * mean) / (255.0 * std)


def make_train_step(
    model: nnx.Module,
    tx: optax.GradientTransformation,
    mesh: Mesh,
    *,
    num_classes: int,
    ignore_index: int,
    classes: tuple[int, ...],
    dice_batch: bool = True,
    smooth: float = 1e-5,
    suppress_ignored_logit: bool = False,
    micro_batches: int = 1,
):
    """Builds the compiled training step.

    With micro-batches the step makes a first pass that only adds up the loss sums, then one that goes backward with
    the loss's derivative at those totals: Dice and cross-entropy of the whole batch exactly, at the price of a second
    forward pass. BatchNorm sees one micro-batch at a time.

    Args:
      model: gives the structure; its arrays are not used.
      tx: optimizer chain.
      mesh: devices; the batch is split over its `data` axis.
      num_classes: logits.
      ignore_index: label without truth.
      classes: evaluated labels: they count in the Dice and predictions are among them.
      dice_batch: Dice over the batch, else per image.
      smooth: of the Dice.
      suppress_ignored_logit: see `losses`.
      micro_batches: into how many parts the batch is cut; must divide it.

    Returns:
      `train_step(state, images, labels) -> (state, report)`; the state is donated. `images` uint8 [N, H, W, 3],
      `labels` uint8 [N, H, W], both split over the mesh. The report holds replicated arrays: `loss` and `grad_norm`
      (scalars), `sums` (`losses.loss_sums` of the batch), `confusion` int32 [C, C], `finite` and `has_truth` (bool).
      A step whose loss or gradient is not finite, or whose pixels are all ignored, changes nothing but `step`.
    """
    run = ModelFunction(model)
    sums_of = functools.partial(
        losses.loss_sums,
        ignore_index=ignore_index,
        classes=classes,
        batch=dice_batch,
        smooth=smooth,
        suppress_ignored_logit=suppress_ignored_logit,
    )
    loss_of = functools.partial(losses.loss_from_sums, smooth=smooth)

    def forward(params, rest, images, labels):
        logits, rest = run(params, rest, images, train=True)
        counts = metrics.confusion(metrics.predict(logits, classes), labels, num_classes, ignore_index)
        return sums_of(logits, labels), (rest, counts.sum(0))

    def whole(params, rest, images, labels):
        def loss(params):
            sums, aux = forward(params, rest, images, labels)
            return loss_of(sums), (sums, aux)

        (_, (sums, (rest, counts))), grads = jax.value_and_grad(loss, has_aux=True)(params)
        return grads, sums, rest, counts

    def in_parts(params, rest, images, labels):
        # Every n-th example, so that each device keeps its own examples in each part.
        images, labels = (jnp.moveaxis(x.reshape(-1, micro_batches, *x.shape[1:]), 1, 0) for x in (images, labels))

        def add_sums(total, part):
            sums, _ = forward(params, rest, *part)
            return jax.tree.map(jnp.add, total, sums), None

        def add_grads(carry, part):
            grads, rest, counts = carry
            _, pullback, (rest, part_counts) = jax.vjp(lambda p: forward(p, rest, *part), params, has_aux=True)
            return (jax.tree.map(jnp.add, grads, pullback(slope)[0]), rest, counts + part_counts), None

        zeros = jax.tree.map(
            lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(forward, params, rest, images[0], labels[0])[0]
        )
        sums, _ = jax.lax.scan(add_sums, zeros, (images, labels))
        slope = jax.grad(loss_of)(sums)
        start = (jax.tree.map(jnp.zeros_like, params), rest, jnp.zeros((num_classes, num_classes), jnp.int32))
        (grads, rest, counts), _ = jax.lax.scan(add_grads, start, (images, labels))
        return grads, sums, rest, counts

    def train_step(state: TrainState, images, labels):
        gradients = whole if micro_batches == 1 else in_parts
        grads, sums, rest, counts = gradients(state.params, state.rest, images, labels)
        loss, grad_norm = loss_of(sums), optax.tree.norm(grads)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        updates = jax.tree.map(lambda u: u * state.plateau.scale, updates)
        finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
        has_truth = sums["pixels"] > 0
        old = (state.params, state.rest, state.opt_state)
        new = (optax.apply_updates(state.params, updates), rest, opt_state)
        params, rest, opt_state = jax.tree.map(lambda n, o: jnp.where(finite & has_truth, n, o), new, old)
        report = {
            "loss": loss,
            "grad_norm": grad_norm,
            "sums": sums,
            "confusion": counts,
            "finite": finite,
            "has_truth": has_truth,
        }
        return TrainState(state.step + 1, params, rest, opt_state, state.plateau), report

    everywhere, split = replicated(mesh), split_over_data(mesh)
    # Fixed output shardings: without them the second call would see another sharding and compile again.
    return jax.jit(
        train_step,
        donate_argnums=0,
        in_shardings=(everywhere, split, split),
        out_shardings=(everywhere, everywhere),
    )


def make_eval_step(
    model: nnx.Module,
    mesh: Mesh,
    *,
    num_classes: int,
    ignore_index: int,
    classes: tuple[int, ...],
    dice_batch: bool = True,
    smooth: float = 1e-5,
    suppress_ignored_logit: bool = False,
):
    """Builds the compiled evaluation step; arguments as `make_train_step`.

    Returns:
      `eval_step(params, rest, images, labels) -> report` with replicated arrays: `sums` (`losses.loss_sums`),
      `confusion` int32 [N, C, C] per image, `predictions` uint8 [N, H, W].
    """
    run = ModelFunction(model)

    def eval_step(params, rest, images, labels):
        logits, _ = run(params, rest, images, train=False)
        predictions = metrics.predict(logits, classes)
        return {
            "sums": losses.loss_sums(
                logits,
                labels,
                ignore_index=ignore_index,
                classes=classes,
                batch=dice_batch,
                smooth=smooth,
                suppress_ignored_logit=suppress_ignored_logit,
            ),
            "confusion": metrics.confusion(predictions, labels, num_classes, ignore_index),
            "predictions": predictions.astype(jnp.uint8),
        }

    everywhere, split = replicated(mesh), split_over_data(mesh)
    return jax.jit(
        eval_step,
        in_shardings=(everywhere, everywhere, split, split),
        out_shardings=everywhere,
    )
