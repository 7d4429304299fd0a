"""The training step and the evaluation step: pure functions of a pytree state, compiled once."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh

from bcss_jax import losses, metrics
from bcss_jax.losses import Objective
from bcss_jax.models.apply import ModelFunction, split_model
from bcss_jax.models.blocks import norms
from bcss_jax.models.blocks.layers import PRODUCT
from bcss_jax.models.decoders import query_loss
from bcss_jax.models.image_normalization import IMAGENET, ImageStatistics
from bcss_jax.training.loss_scale import LossScale, after_step, scaled, unscaled
from bcss_jax.training.optimizer import Plateau, Poly
from bcss_jax.training.sharding import replicated, split_over_data


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class TrainState:
    """The state of a training.

    Attributes:
      step: int32 scalar, number of batches so far.
      params: nested dict of the trained parameters.
      model_state: nested dict of the other state of the model (BatchNorm statistics).
      opt_state: state of the optimizer.
      schedule: state of the learning-rate scale (`optimizer.Plateau` or `optimizer.Poly`).
      loss_scale: state of the loss scale (`loss_scale.loss_scale_for`); None: the loss is not scaled.
    """

    step: jax.Array | np.int32
    params: Any
    model_state: Any
    opt_state: Any
    schedule: Any
    loss_scale: LossScale | None = None

    @classmethod
    def create(
        cls,
        model: nnx.Module,
        tx: optax.GradientTransformation,
        schedule: Plateau | Poly,
        loss_scale: LossScale | None = None,
    ) -> "TrainState":
        """Returns the state before the first step. It shares the arrays of the model."""
        _, params, model_state = split_model(model)
        return cls(np.int32(0), params, model_state, tx.init(params), schedule.init(), loss_scale)


def make_train_step(
    model: nnx.Module,
    tx: optax.GradientTransformation,
    mesh: Mesh,
    objective: Objective,
    *,
    statistics: ImageStatistics | None = IMAGENET,
    micro_batches: int = 1,
    seed: int = 0,
    frozen: tuple[str, ...] = (),
    augment: Callable | None = None,
    remat: bool = False,
    sync_batch_norm: bool = True,
    on_features: bool = False,
):
    """Builds the compiled training step.

    Args:
      model: gives the structure; its arrays are not used.
      tx: optimizer chain.
      mesh: devices; the batch is split over its `data` axis.
      objective: what the step minimizes and counts.
      statistics: mean and standard deviation that images are normalized with; None: images are floats that enter the
        network as they are.
      micro_batches: number of parts that the batch is computed in; must divide it. BatchNorm sees one part at a time.
      seed: of dropout and `augment`, which depend only on it, on the step and on the example's position in the batch.
      frozen: parts of the model (`encoder`) whose parameters, other state and optimizer state do not change.
      augment: `(images, labels, keys) -> (images, labels)` on the device, with one random key per example (N,).
      remat: keep only the results of convolutions and dense layers for the gradient and compute what lies between them
        again, which takes less memory and somewhat more time.
      sync_batch_norm: BatchNorm normalizes by the statistics of all devices; False: by those of each device's images.
      on_features: the step takes `features` as its fourth argument, which the frozen encoder computes for the images.

    Returns:
      `train_step(state, images, labels) -> (state, report)`; the state is donated. `images` uint8 [N, H, W, 3],
      `labels` uint8 [N, H, W], both split over the mesh. The report holds replicated arrays: `loss` and `grad_norm`
      (scalars), `sums` (`losses.loss_sums` of the full-resolution logits), `confusion` int32 [C, C], `finite`,
      `has_truth` and `skipped_by_loss_scale` (bool). A step whose loss or gradient is not finite, or whose pixels are
      all ignored, changes only `step` and, if the gradient alone is not finite, `loss_scale`.
    """
    forward = _forward(ModelFunction(model, statistics), objective, frozen, remat, 1 if sync_batch_norm else mesh.size)
    gradients = _gradients(forward, objective, micro_batches)

    def train_step(state: TrainState, images, labels, features=()):
        step_key = jax.random.fold_in(jax.random.key(seed), state.step)
        keys = jax.vmap(functools.partial(jax.random.fold_in, step_key))(jnp.arange(len(images)))
        if augment:
            images, labels = augment(images, labels, jax.vmap(functools.partial(jax.random.fold_in, data=0))(keys))
        trained, fixed = divided(state.params, frozen)
        grads, sums, model_state, counts = gradients(
            trained, fixed, state.model_state, state.loss_scale, images, labels, keys, *features
        )
        grads = unscaled(grads, state.loss_scale) | jax.tree.map(jnp.zeros_like, fixed)
        loss, grad_norm = _loss(sums, objective), optax.tree.norm(grads)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        updates = jax.tree.map(lambda u: u * state.schedule.scale, updates)
        finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
        has_truth = sums[0]["pixels"] > 0
        loss_scale, skipped = after_step(state.loss_scale, has_truth & jnp.isfinite(loss), jnp.isfinite(grad_norm))
        old = (state.params, state.model_state, state.opt_state)
        new = (optax.apply_updates(state.params, updates), model_state, opt_state)
        new = with_frozen(new, old, frozen)
        params, model_state, opt_state = jax.tree.map(lambda n, o: jnp.where(finite & has_truth, n, o), new, old)
        report = dict(loss=loss, grad_norm=grad_norm, sums=sums[0], confusion=counts)
        report |= dict(finite=finite, has_truth=has_truth, skipped_by_loss_scale=skipped)
        return TrainState(state.step + 1, params, model_state, opt_state, state.schedule, loss_scale), report

    everywhere, split = replicated(mesh), split_over_data(mesh)
    # Fixed output shardings: without them the second call would see another sharding and compile again.
    return jax.jit(
        train_step,
        donate_argnums=0,
        in_shardings=(everywhere, split, split, split) if on_features else (everywhere, split, split),
        out_shardings=(everywhere, everywhere),
    )


def _forward(run: ModelFunction, objective: Objective, frozen: tuple[str, ...], remat: bool, norm_parts: int):
    """Returns `(trained, fixed, model_state, images, labels, keys, *features) -> (sums, (model_state, confusion))`.

    The parameters are those that are trained and those of the frozen parts; the sums are those at each head; the
    confusion counts are [C, C]. Features that are known are not computed.
    `norm_parts` is the number of parts of the batch that BatchNorm normalizes by themselves.
    """

    method = "queries" if objective.queries else "all_logits" if objective.deep_supervision else ""

    def network(params, model_state, images, keys, features):
        how: dict[str, Any] = dict(dropout_keys=keys, frozen=frozen, method=method, features=features)
        with norms.parts_of_batch(norm_parts):
            return run(params, model_state, images, train=True, **how)

    if remat:
        network = jax.checkpoint(network, policy=jax.checkpoint_policies.save_only_these_names(PRODUCT))

    def forward(trained, fixed, model_state, images, labels, keys, *features):
        predicted, model_state = network(trained | fixed, model_state, images, keys, features)
        if objective.queries:
            logits, sums = _of_queries(predicted, labels, objective, keys)
        else:
            heads = predicted if objective.deep_supervision else (predicted,)
            logits, sums = heads[0], losses.deep_supervision_sums(heads, labels, objective)
        predictions = metrics.predict(logits, objective.classes)
        counts = metrics.confusion(predictions, labels, objective.num_classes, objective.ignore_index)
        return sums, (model_state, counts.sum(0))

    return forward


def _of_queries(predicted, labels, objective: Objective, keys):
    """Returns the logits of the last predictions, and the sums: those that are reported, then those of the loss."""
    *_, last = predicted
    logits = jax.lax.stop_gradient(last.logits(*labels.shape[1:]))
    sums = [query_loss.query_sums(each, labels, objective, keys, number) for number, each in enumerate(predicted)]
    return logits, (losses.loss_sums(logits, labels, objective), *sums)


def _loss(sums, objective: Objective):
    """Returns what is minimized, given the sums of `_forward`."""
    if objective.queries:
        return jnp.sum(jnp.stack([query_loss.loss_from_query_sums(each) for each in sums[1:]]))
    return losses.deep_supervision_loss(sums, objective)


def _gradients(forward, objective: Objective, micro_batches: int):
    """Returns what `_gradients_of_whole_batch` returns, for a batch in one or several parts."""
    if micro_batches == 1:
        return _gradients_of_whole_batch(forward, objective)
    return _gradients_of_micro_batches(forward, objective, micro_batches)


def _gradients_of_whole_batch(forward, objective: Objective):
    """Returns `(trained, fixed, model_state, loss_scale, *batch) -> (gradients, sums, model_state, confusion)`.

    The gradients are those of the scaled loss by the trained parameters; the confusion counts are [C, C]. The batch
    consists of images, labels, keys, and features if they are known.
    """

    def gradients(trained, fixed, model_state, loss_scale, *batch):
        def loss(trained):
            sums, aux = forward(trained, fixed, model_state, *batch)
            return scaled(_loss(sums, objective), loss_scale), (sums, aux)

        (_, (sums, (model_state, counts))), grads = jax.value_and_grad(loss, has_aux=True)(trained)
        return grads, sums, model_state, counts

    return gradients


def _gradients_of_micro_batches(forward, objective: Objective, micro_batches: int):
    """Returns a function like that of `_gradients_of_whole_batch`, which computes the batch in several parts.

    The first pass only adds up the loss sums. The second goes backward with the derivative of the loss at those
    totals. This gives Dice and cross-entropy of the whole batch exactly, at the price of a second forward pass.
    """

    def gradients(trained, fixed, model_state, loss_scale, *batch):
        # Every n-th example, so that each device keeps its own examples in each part.
        batch = [jnp.moveaxis(x.reshape(-1, micro_batches, *x.shape[1:]), 1, 0) for x in batch]

        def add_sums(total, micro_batch):
            sums, _ = forward(trained, fixed, model_state, *micro_batch)
            return jax.tree.map(jnp.add, total, sums), None

        def add_grads(carry, micro_batch):
            grads, model_state, counts = carry
            _, pullback, (model_state, more_counts) = jax.vjp(
                lambda p: forward(p, fixed, model_state, *micro_batch), trained, has_aux=True
            )
            return (jax.tree.map(jnp.add, grads, pullback(slope)[0]), model_state, counts + more_counts), None

        zeros = jax.tree.map(
            lambda s: jnp.zeros(s.shape, s.dtype),
            jax.eval_shape(forward, trained, fixed, model_state, *(x[0] for x in batch))[0],
        )
        sums, _ = jax.lax.scan(add_sums, zeros, batch)
        slope = jax.grad(lambda sums: scaled(_loss(sums, objective), loss_scale))(sums)
        no_grads = jax.tree.map(jnp.zeros_like, trained)
        no_counts = jnp.zeros((objective.num_classes, objective.num_classes), jnp.int32)
        start = (no_grads, model_state, no_counts)
        (grads, model_state, counts), _ = jax.lax.scan(add_grads, start, batch)
        return grads, sums, model_state, counts

    return gradients


def make_eval_step(
    model: nnx.Module,
    mesh: Mesh,
    objective: Objective,
    *,
    statistics: ImageStatistics | None = IMAGENET,
    choose_among: tuple[int, ...] = (),
    on_features: bool = False,
):
    """Builds the compiled evaluation step.

    Args:
      model: gives the structure; its arrays are not used.
      mesh: devices; the batch is split over its `data` axis.
      objective: what the step counts. Only the full-resolution logits are computed.
      statistics: as in `make_train_step`.
      choose_among: labels that predictions are chosen from; empty: the evaluated classes.
      on_features: as in `make_train_step`, but as the fifth argument.

    Returns:
      `eval_step(params, model_state, images, labels) -> report` with replicated arrays: `sums` (`losses.loss_sums`),
      `confusion` int32 [N, C, C] per image, `predictions` uint8 [N, H, W].
    """
    run = ModelFunction(model, statistics)

    def eval_step(params, model_state, images, labels, features=()):
        logits, _ = run(params, model_state, images, train=False, features=features)
        predictions = metrics.predict(logits, choose_among or objective.classes)
        return {
            "sums": losses.loss_sums(logits, labels, objective),
            "confusion": metrics.confusion(predictions, labels, objective.num_classes, objective.ignore_index),
            "predictions": predictions.astype(jnp.uint8),
        }

    everywhere, split = replicated(mesh), split_over_data(mesh)
    return jax.jit(
        eval_step,
        in_shardings=(everywhere, everywhere, split, split) + ((split,) if on_features else ()),
        out_shardings=everywhere,
    )


def divided(params: dict, frozen: tuple[str, ...]) -> tuple[dict, dict]:
    """Returns the parameters that are trained, and those of the frozen parts of the model."""
    fixed = {name: part for name, part in params.items() if name in frozen}
    return {name: part for name, part in params.items() if name not in frozen}, fixed


def with_frozen(new, old, frozen: tuple[str, ...]):
    """Returns `new` with the frozen parts of the model as they are in `old`."""
    if not frozen:
        return new

    def chosen(path, new, old):
        return old if any(getattr(key, "key", None) in frozen for key in path) else new

    return jax.tree.map_with_path(chosen, new, old)
