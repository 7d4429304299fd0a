"""The compiled steps of a training with simulated prompts."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh

from bcss_jax.models.apply import normalize
from bcss_jax.models.image_normalization import IMAGENET
from bcss_jax.models.sam.promptable import PromptableSam
from bcss_jax.training.loss_scale import after_step, scaled, unscaled
from bcss_jax.training.sharding import replicated, split_over_data
from bcss_jax.training.step import TrainState, divided, with_frozen
from bcss_jax.tuning.rounds import example_keys, run_rounds

VALIDATION_STEP = 2**32 - 1  # stands for the step in the keys of validation prompts


def _network_with(network: PromptableSam) -> Callable[[dict, dict], PromptableSam]:
    """Returns `(params, model_state) -> network`; of the given network only the structure is used."""
    graphdef, *variables = nnx.split(network, nnx.Param, ...)
    structure = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), variables)

    def merged(params, model_state):
        filled = jax.tree.map(lambda x: x, structure)
        for variables, values in zip(filled, (params, model_state), strict=True):
            nnx.replace_by_pure_dict(variables, values)
        return nnx.merge(graphdef, *filled)

    return merged


def _sums(rounds) -> dict[str, jax.Array]:
    """Returns sums over the objects of a batch, and their number."""
    there = rounds.exists
    return {
        "loss": jnp.where(there, rounds.loss, 0).sum(),
        "iou": jnp.where(there[:, None], rounds.iou, 0).sum(0),
        "objects": there.sum().astype(jnp.float32),
    }


def make_train_step(
    network: PromptableSam,
    tx: optax.GradientTransformation,
    mesh: Mesh,
    *,
    micro_batches: int,
    seed: int,
    frozen: tuple[str, ...],
    on_features: bool,
    **how: Any,
) -> Callable:
    """Builds the compiled training step.

    Args:
      network: gives the structure; its arrays are not used.
      tx: optimizer chain.
      mesh: devices; the batch is split over its `data` axis.
      micro_batches: number of parts that the batch is computed in; must divide it.
      seed: of the prompts.
      frozen: parts of the network whose parameters do not change.
      on_features: the step takes the result of the network's `encode` as its fourth argument.
      **how: objects, clicks, classes, ignore_index and remat of `rounds.run_rounds`.

    Returns:
      `step(state, images, labels, indices[, maps]) -> (state, report)`; the state is donated. `images` uint8
      [N, H, W, 3], `labels` uint8 [N, H, W], `indices` int32 [N], the number of each example in the data. The report
      holds `sums` (loss, iou [R] and their number of objects), `loss`, `grad_norm`, `finite`, `has_truth` and
      `skipped_by_loss_scale`. A step that is not finite, or has no object, changes nothing but `step`.
    """
    merged = _network_with(network)

    def loss_sum(trained, fixed, model_state, loss_scale, images, labels, keys, *maps):
        model = merged(trained | fixed, model_state)
        maps = list(maps) or model.encode(normalize(images, IMAGENET))
        sums = _sums(run_rounds(model, maps, labels, keys, **how))
        return scaled(sums["loss"], loss_scale), sums

    def gradients(trained, fixed, model_state, loss_scale, *batch):
        of_part = jax.grad(loss_sum, has_aux=True)
        if micro_batches == 1:
            return of_part(trained, fixed, model_state, loss_scale, *batch)
        # Every n-th example, so that each device keeps its own examples in each part.
        batch = [jnp.moveaxis(x.reshape(-1, micro_batches, *x.shape[1:]), 1, 0) for x in batch]

        def add(total, part):
            return jax.tree.map(jnp.add, total, of_part(trained, fixed, model_state, loss_scale, *part)), None

        shapes = jax.eval_shape(of_part, trained, fixed, model_state, loss_scale, *(x[0] for x in batch))
        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
        return jax.lax.scan(add, zeros, batch)[0]

    def train_step(state: TrainState, images, labels, indices, maps=()):
        keys = example_keys(seed, state.step, indices)
        trained, fixed = divided(state.params, frozen)
        grads, sums = gradients(trained, fixed, state.model_state, state.loss_scale, images, labels, keys, *maps)
        count = jnp.maximum(sums["objects"], 1)
        grads = jax.tree.map(lambda g: g / count, unscaled(grads, state.loss_scale))
        grads = grads | jax.tree.map(jnp.zeros_like, fixed)
        loss, grad_norm = sums["loss"] / count, optax.tree.norm(grads)
        updates, opt_state = tx.update(grads, state.opt_state, state.params)
        updates = jax.tree.map(lambda u: u * state.schedule.scale, updates)
        finite, has_truth = jnp.isfinite(loss) & jnp.isfinite(grad_norm), sums["objects"] > 0
        loss_scale, skipped = after_step(state.loss_scale, has_truth & jnp.isfinite(loss), jnp.isfinite(grad_norm))
        old = state.params, state.opt_state
        new = with_frozen((optax.apply_updates(state.params, updates), opt_state), old, frozen)
        params, opt_state = jax.tree.map(lambda n, o: jnp.where(finite & has_truth, n, o), new, old)
        report = dict(sums=sums, loss=loss, grad_norm=grad_norm)
        report |= dict(finite=finite, has_truth=has_truth, skipped_by_loss_scale=skipped)
        return TrainState(state.step + 1, params, state.model_state, opt_state, state.schedule, loss_scale), report

    everywhere, split = replicated(mesh), split_over_data(mesh)
    return jax.jit(
        train_step,
        donate_argnums=0,
        in_shardings=(everywhere, *[split] * (4 if on_features else 3)),
        out_shardings=(everywhere, everywhere),
    )


def make_eval_step(network: PromptableSam, mesh: Mesh, *, seed: int, on_features: bool, **how: Any) -> Callable:
    """Builds the compiled evaluation step, whose prompts depend on the seed and the example alone.

    Args:
      network: as in `make_train_step`, and so are the others.
      mesh: see there.
      seed: see there.
      on_features: see there, but as the sixth argument.
      **how: see there.

    Returns:
      `step(params, model_state, images, labels, indices[, maps]) -> sums` with replicated arrays.
    """
    merged = _network_with(network)

    def eval_step(params, model_state, images, labels, indices, maps=()):
        model = merged(params, model_state)
        maps = list(maps) or model.encode(normalize(images, IMAGENET))
        return _sums(run_rounds(model, maps, labels, example_keys(seed, VALIDATION_STEP, indices), **how))

    everywhere, split = replicated(mesh), split_over_data(mesh)
    return jax.jit(
        eval_step,
        in_shardings=(everywhere, everywhere, *[split] * (4 if on_features else 3)),
        out_shardings=everywhere,
    )
