"""The training and the evaluation step: pure functions over a pytree state, compiled once."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh

from bcss_jax import losses, metrics
from bcss_jax.models.apply import IMAGENET, ImageStatistics, ModelFunction
from bcss_jax.training.sharding import replicated, split_over_data


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class TrainState:
    """Everything that training changes.

    Attributes:
      step: int32 scalar, batches seen so far.
      params: trained parameters, nested dict.
      model_state: the model's other state (BatchNorm statistics), nested dict.
      opt_state: the optimizer's state.
      schedule: the learning-rate scale's state (`optimizer.Plateau` or `optimizer.Poly`).
    """

    step: jax.Array
    params: Any
    model_state: Any
    opt_state: Any
    schedule: Any


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
    statistics: ImageStatistics | None = IMAGENET,
    seed: int = 0,
    deep_supervision: tuple[float, ...] = (),
    frozen: tuple[str, ...] = (),
    augment: Callable | None = None,
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
      statistics: of the images, taken out before the network sees them; None: the images are floats that it takes.
      seed: of dropout and `augment`, which depend on it, on the step and on the example's place in the batch alone.
      deep_supervision: weights of the losses at all heads, full resolution first (`losses.deep_supervision_weights`);
        none: the loss is that of the logits.
      frozen: parts of the model (`encoder`) whose parameters, other state and optimizer state stay as they are.
      augment: `(images, labels, keys) -> (images, labels)` on the device, with one random key per example (N,).

    Returns:
      `train_step(state, images, labels) -> (state, report)`; the state is donated. `images` uint8 [N, H, W, 3],
      `labels` uint8 [N, H, W], both split over the mesh. The report holds replicated arrays: `loss` and `grad_norm`
      (scalars), `sums` (`losses.loss_sums` of the full-resolution logits), `confusion` int32 [C, C], `finite` and `has_truth` (bool).
      A step whose loss or gradient is not finite, or whose pixels are all ignored, changes nothing but `step`.
    """
    run = ModelFunction(model, statistics)
    weights = deep_supervision or (1.0,)
    sums_of = functools.partial(
        losses.deep_supervision_sums,
        weights=weights,
        ignore_index=ignore_index,
        classes=classes,
        batch=dice_batch,
        smooth=smooth,
        suppress_ignored_logit=suppress_ignored_logit,
    )
    loss_of = functools.partial(losses.deep_supervision_loss, weights=weights, smooth=smooth)

    def forward(params, model_state, images, labels, keys):
        params = {name: jax.lax.stop_gradient(p) if name in frozen else p for name, p in params.items()}
        logits, model_state = run(
            params, model_state, images, train=True, dropout_keys=keys, frozen=frozen, all_logits=bool(deep_supervision)
        )
        logits = logits if deep_supervision else (logits,)
        counts = metrics.confusion(metrics.predict(logits[0], classes), labels, num_classes, ignore_index)
        return sums_of(logits, labels), (model_state, counts.sum(0))

    def whole(params, model_state, *batch):
        def loss(params):
            sums, aux = forward(params, model_state, *batch)
            return loss_of(sums), (sums, aux)

        (_, (sums, (model_state, counts))), grads = jax.value_and_grad(loss, has_aux=True)(params)
        return grads, sums, model_state, counts

    def in_parts(params, model_state, *batch):
        # Every n-th example, so that each device keeps its own examples in each part.
        batch = [jnp.moveaxis(x.reshape(-1, micro_batches, *x.shape[1:]), 1, 0) for x in batch]

        def add_sums(total, part):
            sums, _ = forward(params, model_state, *part)
            return jax.tree.map(jnp.add, total, sums), None

        def add_grads(carry, part):
            grads, model_state, counts = carry
            _, pullback, (model_state, part_counts) = jax.vjp(
                lambda p: forward(p, model_state, *part), params, has_aux=True
            )
            return (jax.tree.map(jnp.add, grads, pullback(slope)[0]), model_state, counts + part_counts), None

        zeros = jax.tree.map(
            lambda s: jnp.zeros(s.shape, s.dtype),
            jax.eval_shape(forward, params, model_state, *(x[0] for x in batch))[0],
        )
        sums, _ = jax.lax.scan(add_sums, zeros, batch)
        slope = jax.grad(loss_of)(sums)
        start = (jax.tree.map(jnp.zeros_like, params), model_state, jnp.zeros((num_classes, num_classes), jnp.int32))
        (grads, model_state, counts), _ = jax.lax.scan(add_grads, start, batch)
        return grads, sums, model_state, counts

    def train_step(state: TrainState, images, labels):
        gradients = whole if micro_batches == 1 else in_parts
        step_key = jax.random.fold_in(jax.random.key(seed), state.step)
        keys = jax.vmap(functools.partial(jax.random.fold_in, step_key))(jnp.arange(len(images)))
        if augment:
            images, labels = augment(images, labels, jax.vmap(functools.partial(jax.random.fold_in, data=0))(keys))
        grads, sums, model_state, counts = gradients(state.params, state.model_state, images, labels, keys)
        loss, grad_norm = loss_of(sums), optax.tree.norm(grads)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        updates = jax.tree.map(lambda u: u * state.schedule.scale, updates)
        finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
        has_truth = sums[0]["pixels"] > 0
        old = (state.params, state.model_state, state.opt_state)
        new = (optax.apply_updates(state.params, updates), model_state, opt_state)
        new = _with_frozen(new, old, frozen)
        params, model_state, opt_state = jax.tree.map(lambda n, o: jnp.where(finite & has_truth, n, o), new, old)
        report = {
            "loss": loss,
            "grad_norm": grad_norm,
            "sums": sums[0],
            "confusion": counts,
            "finite": finite,
            "has_truth": has_truth,
        }
        return TrainState(state.step + 1, params, model_state, opt_state, state.schedule), report

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
    statistics: ImageStatistics | None = IMAGENET,
    choose_among: tuple[int, ...] | None = None,
):
    """Builds the compiled evaluation step.

    Arguments as `make_train_step`, and `choose_among`: the labels that predictions are chosen from, if not `classes`.

    Returns:
      `eval_step(params, model_state, images, labels) -> report` with replicated arrays: `sums` (`losses.loss_sums`),
      `confusion` int32 [N, C, C] per image, `predictions` uint8 [N, H, W].
    """
    run = ModelFunction(model, statistics)

    def eval_step(params, model_state, images, labels):
        logits, _ = run(params, model_state, images, train=False)
        predictions = metrics.predict(logits, choose_among or classes)
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


def _with_frozen(new, old, frozen: tuple[str, ...]):
    """`new`, with everything that stands under the name of a frozen part as it is in `old`."""
    if not frozen:
        return new

    def chosen(path, new, old):
        return old if any(getattr(key, "key", None) in frozen for key in path) else new

    return jax.tree.map_with_path(chosen, new, old)
