"""The step of the pretraining: a student learns the teacher's answers to other views, and the teacher follows it.

Sources: `train_one_epoch` of github.com/facebookresearch/dino, `SSLMetaArch` of github.com/facebookresearch/dinov2.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh

from bcss_jax.models.apply import normalize, split_model
from bcss_jax.models.image_normalization import ImageStatistics
from bcss_jax.pretraining.distillation import distillation_losses, patch_masks
from bcss_jax.pretraining.distillation.network import PretrainedNetwork, ViewOutputs
from bcss_jax.pretraining.distillation.optimizer import PretrainingOptimizer
from bcss_jax.pretraining.distillation.targets import centered, moved_center, sinkhorn
from bcss_jax.pretraining.views.make_views import Views
from bcss_jax.pretraining.visual_words import Words, clusters_of
from bcss_jax.training.loss_scale import LossScale, after_step, scaled, unscaled
from bcss_jax.training.sharding import replicated, split_over_data
from bcss_jax.training.step import TrainState

SPREADS = {"koleo": distillation_losses.koleo, "kde": distillation_losses.kde}


@dataclasses.dataclass(frozen=True)
class DistillationSettings:
    """What the student learns.

    Attributes:
      student_temperature: of the student's scores.
      center_momentum: share of the old center in the new one.
      targets: "centering" or "sinkhorn".
      patch_weight: of the loss of masked patches (iBOT); 0: nothing is masked.
      spread: "koleo", "kde" or "none": what spreads the features of a batch.
      spread_weight: of that loss.
      words_weight: of the loss of visual words; 0: there are none.
    """

    student_temperature: float = 0.1
    center_momentum: float = 0.9
    targets: Literal["centering", "sinkhorn"] = "centering"
    patch_weight: float = 0.0
    spread: Literal["none", "koleo", "kde"] = "none"
    spread_weight: float = 0.1
    words_weight: float = 0.0


class _Teaching(NamedTuple):
    """What the teacher says of the global views of (a part of) a batch.

    Attributes:
      targets: of the class token (2, N, K).
      patch_targets: of the masked patches, in the order of the masks (U, K); None if nothing is masked.
    """

    targets: jax.Array
    patch_targets: jax.Array | None


def new_state(
    network: PretrainedNetwork,
    optimizer: PretrainingOptimizer,
    loss_scale: LossScale | None = None,
    words: Words | None = None,
) -> TrainState:
    """Returns the state before the first step.

    `params` are the student's; `model_state` holds teacher and centers, and visual words if there are any.
    """
    _, params, rest = split_model(network)
    assert not jax.tree.leaves(rest), "the network has a state beside its parameters"
    prototypes = network.head.directions.shape[0]
    model_state = {
        "teacher": jax.tree.map(jnp.copy, params),
        "centers": {name: jnp.zeros(prototypes) for name in ("class", "patch")},
    } | ({} if words is None else {"words": words})
    return TrainState(np.int32(0), params, model_state, optimizer.init(params), jnp.float32(1), loss_scale)


def make_pretrain_step(
    network: PretrainedNetwork,
    optimizer: PretrainingOptimizer,
    mesh: Mesh,
    settings: DistillationSettings,
    make_views: Callable[[Any, jax.Array], Views],
    *,
    statistics: ImageStatistics,
    micro_batches: int = 1,
    seed: int = 0,
):
    """Builds the compiled step.

    Args:
      network: gives the structure; its arrays are not used.
      optimizer: of the student.
      mesh: devices; the batch is split over its `data` axis. Centers, targets and the spread of features are those of
        the whole batch.
      settings: what the student learns.
      make_views: `(images, keys [N]) -> Views`, with RGB values from 0 to 255.
      statistics: what the views are normalized with.
      micro_batches: number of parts that the networks see the batch in; must divide it. The result is that of the whole
        batch.
      seed: of views and drop path, which depend only on it, on the step and on the position in the batch.

    Returns:
      `step(state, images, masks, values) -> (state, report)`; the state is donated. `images` is what `make_views`
      takes, `masks` bool [N, 2, P] (None if nothing is masked), `values` are those of `Schedules.at`. The report holds
      replicated float32 scalars: `loss` and its parts `class_loss`, `patch_loss`, `spread_loss` and `words_loss`,
      `teacher_entropy`, `prototype_entropy` (of the mean target), `kl` (of teacher and student), `feature_deviation`,
      `center_norm`, `grad_norm`; and `finite` and `skipped_by_loss_scale` (bool). A step whose loss or gradient is
      not finite changes only `step` and, if the gradient alone is not finite, `loss_scale`.
    """
    graphdef, variables, _ = nnx.split(network, nnx.Param, ...)
    compute = _Distillation(graphdef, variables, settings, micro_batches)

    def step(state: TrainState, images, masks, values):
        step_key = jax.random.fold_in(jax.random.key(seed), state.step)
        count = len(jax.tree.leaves(images)[0])
        keys = jax.vmap(functools.partial(jax.random.fold_in, step_key))(jnp.arange(count))
        views = make_views(images, jax.vmap(functools.partial(jax.random.fold_in, data=0))(keys))
        clusters = None
        if settings.words_weight:
            of_view = functools.partial(
                clusters_of, state.model_state["words"], patch=network.encoder.architecture.patch
            )
            clusters = compute.of_parts(functools.partial(jax.lax.map, of_view), views.global_views)
        views = jax.tree.map(lambda v: normalize(v, statistics), views)
        grads, model_state, report = compute(state, views, masks, clusters, keys, values["teacher_temperature"])
        grads = unscaled(grads, state.loss_scale)
        grad_norm = optax.tree.norm(grads)
        finite = jnp.isfinite(report["loss"]) & jnp.isfinite(grad_norm)
        loss_scale, skipped = after_step(state.loss_scale, jnp.isfinite(report["loss"]), jnp.isfinite(grad_norm))
        params, opt_state = optimizer.update(grads, state.opt_state, state.params, values)
        momentum = values["momentum"]
        teacher = jax.tree.map(lambda t, s: momentum * t + (1 - momentum) * s, state.model_state["teacher"], params)
        new = (params, {**state.model_state, **model_state, "teacher": teacher}, opt_state)
        old = (state.params, state.model_state, state.opt_state)
        params, model_state, opt_state = jax.tree.map(lambda n, o: jnp.where(finite, n, o), new, old)
        report |= {"grad_norm": grad_norm, "finite": finite, "skipped_by_loss_scale": skipped}
        return TrainState(state.step + 1, params, model_state, opt_state, state.schedule, loss_scale), report

    everywhere, split = replicated(mesh), split_over_data(mesh)
    return jax.jit(
        step,
        donate_argnums=0,
        in_shardings=(everywhere, split, split, everywhere),
        out_shardings=(everywhere, everywhere),
    )


class _Distillation:
    """Gradients, new centers and figures of a batch."""

    def __init__(self, graphdef, variables, settings: DistillationSettings, micro_batches: int):
        self._graphdef, self._variables = graphdef, variables
        self._settings, self._parts = settings, micro_batches

    def __call__(self, state: TrainState, views: Views, masks, clusters, keys, temperature):
        """Returns (gradients of the scaled loss, {"centers": ...}, report)."""
        settings, count = self._settings, views.global_views.shape[1]
        parts = jax.tree.map(self._split, (*views, masks if masks is None else jnp.moveaxis(masks, 1, 0)))
        key_parts = self._split(keys[None])
        taught = self._mapped(functools.partial(self._teacher, state.model_state["teacher"]), (parts[0], parts[2]))
        teaching, centers, report = self._teaching(taught, state.model_state["centers"], temperature)
        spread_gradient = None
        if settings.spread != "none" and self._parts > 1:
            features = self._mapped(functools.partial(self._features, state.params), (parts[0], parts[2], key_parts))
            spread_gradient = self._split(jax.grad(self._spread)(self._join(features)))

        def loss(params, part):
            (global_views, local_views, masked, clusters), part_keys, taught, slope = part
            student = self._student(params, global_views, local_views, masked, part_keys[0])
            share = global_views.shape[1] / count
            parts_of_loss = {"class_loss": share * self._class_loss(student, taught.targets)}
            if masked is not None:
                parts_of_loss["patch_loss"] = self._patch_loss(params, student, masked, taught.patch_targets, count)
            total = parts_of_loss["class_loss"] + settings.patch_weight * parts_of_loss.get("patch_loss", 0.0)
            if clusters is not None:
                parts_of_loss["words_loss"] = share * self._words_loss(params, student, clusters)
                total += settings.words_weight * parts_of_loss["words_loss"]
            globals_ = student[0].features.astype(jnp.float32)
            if slope is not None:
                total += settings.spread_weight * jnp.sum(globals_ * slope)
            elif settings.spread != "none":
                parts_of_loss["spread_loss"] = self._spread(globals_)
                total += settings.spread_weight * parts_of_loss["spread_loss"]
            return scaled(total, state.loss_scale), parts_of_loss

        def add(total, part):
            grads, found = jax.grad(loss, has_aux=True)(state.params, part)
            return jax.tree.map(jnp.add, total, (grads, found)), None

        batch = ((*parts, clusters), key_parts, teaching, spread_gradient)
        first = jax.tree.map(lambda x: x[0], batch)
        if self._parts == 1:
            grads, found = jax.grad(loss, has_aux=True)(state.params, first)
        else:
            zeros = jax.tree.map(
                lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(jax.grad(loss, has_aux=True), state.params, first)
            )
            (grads, found), _ = jax.lax.scan(add, zeros, batch)
        if spread_gradient is not None:
            found["spread_loss"] = self._spread(self._join(features))
        return grads, {"centers": centers}, self._report(found, report)

    def _split(self, x: jax.Array) -> jax.Array:
        """(V, N, ...) -> (parts, V, N / parts, ...): every n-th example, so that each device keeps its own."""
        return jnp.moveaxis(x.reshape(x.shape[0], x.shape[1] // self._parts, self._parts, *x.shape[2:]), 2, 0)

    def _join(self, x: jax.Array) -> jax.Array:
        """The reverse of `_split`."""
        x = jnp.moveaxis(x, 0, 2)
        return x.reshape(x.shape[0], -1, *x.shape[3:])

    def of_parts(self, function: Callable, x: jax.Array) -> jax.Array:
        """Returns the results of a function of parts of the batch, (V, N, ...) -> (parts, ...)."""
        return self._mapped(function, self._split(x))

    def _mapped(self, function: Callable, parts):
        if self._parts == 1:
            return jax.tree.map(lambda x: x[None], function(jax.tree.map(lambda x: x[0], parts)))
        return jax.lax.map(function, parts)

    def _network(self, params: dict) -> PretrainedNetwork:
        variables = jax.tree.map(lambda x: x, self._variables)
        nnx.replace_by_pure_dict(variables, params)
        return nnx.merge(self._graphdef, variables)

    def _teacher(self, params: dict, part):
        """Returns class features and scores of the teacher (2, n, ...), and scores of masked patches (U, K) or None."""
        global_views, masked = part
        network = self._network(params)
        network.eval()
        found = network(global_views, patches=masked is not None)
        patches = None if found.patches is None else network.patch_scores(self._chosen(found.patches, masked))
        return found.features.astype(jnp.float32), found.scores, patches, masked

    def _most(self, masked: jax.Array) -> int:
        """Returns the largest number of masked patches in a part of the batch, masks (2, n, P)."""
        images, patches = math.prod(masked.shape[:2]), masked.shape[2]
        whole = patch_masks.most_masked(images * self._parts, patches)
        return min(whole, images * patch_masks.most_masked_of_one(patches))

    def _places(self, masked: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns where the masked patches are in the flattened masks (U,), and which of these places count."""
        flat, most = masked.reshape(-1), self._most(masked)
        return jnp.nonzero(flat, size=most, fill_value=0)[0], jnp.arange(most) < flat.sum()

    def _chosen(self, patches: jax.Array, masked: jax.Array) -> jax.Array:
        """Features (2, n, P, C) -> those of the masked patches (U, C)."""
        return patches.reshape(-1, patches.shape[-1])[self._places(masked)[0]]

    def _teaching(self, taught, centers: dict, temperature) -> tuple[_Teaching, dict, dict]:
        """Returns the targets of all parts, the new centers, and what is reported of the teacher."""
        settings = self._settings
        features, scores, patch_scores, masked = taught
        scores = self._join(scores)  # (2, N, K)
        if settings.targets == "sinkhorn":
            targets = sinkhorn(scores.reshape(-1, scores.shape[-1]), temperature).reshape(scores.shape)
        else:
            targets = centered(scores, centers["class"], temperature)
        moved = {"class": moved_center(centers["class"], scores.mean((0, 1)), settings.center_momentum)}
        patch_targets, moved["patch"] = None, centers["patch"]
        if masked is not None:
            valid = jax.vmap(lambda m: self._places(m)[1])(masked).reshape(-1)
            flat = patch_scores.reshape(-1, patch_scores.shape[-1])
            if settings.targets == "sinkhorn":
                patch_targets = sinkhorn(flat, temperature, valid)
            else:
                patch_targets = centered(flat, centers["patch"], temperature)
            mean = jnp.where(valid[:, None], flat, 0).sum(0) / jnp.maximum(valid.sum(), 1)
            moved["patch"] = moved_center(centers["patch"], mean, settings.center_momentum)
            patch_targets = patch_targets.reshape(patch_scores.shape)
        report = {
            "teacher_entropy": jnp.mean(_entropy(targets)),
            "prototype_entropy": _entropy(targets.mean((0, 1))),
            "feature_deviation": _deviation(self._join(features)[0]),
            "center_norm": jnp.linalg.norm(moved["class"]),
        }
        return _Teaching(self._split(targets), patch_targets), moved, report

    def _student(self, params: dict, global_views, local_views, masked, keys) -> tuple[ViewOutputs, ViewOutputs | None]:
        network = self._network(params)
        network.train()
        of_views = [
            jax.vmap(functools.partial(jax.random.fold_in, data=1 + view))(keys) for view in range(2 + len(local_views))
        ]
        patches = masked is not None or self._settings.words_weight > 0
        found = network(global_views, masked, jnp.stack(of_views[:2]), patches=patches)
        if not len(local_views):
            return found, None
        return found, network(local_views, None, jnp.stack(of_views[2:]))

    def _features(self, params: dict, part) -> jax.Array:
        """Returns the class features of the student's global views, float32 (2, n, C)."""
        global_views, masked, keys = part
        none = global_views[:0]
        return self._student(params, global_views, none, masked, keys[0])[0].features.astype(jnp.float32)

    def _class_loss(self, student, targets: jax.Array) -> jax.Array:
        of_globals, of_locals = student
        scores = [of_globals.scores] + ([] if of_locals is None else [of_locals.scores])
        return distillation_losses.class_loss(jnp.concatenate(scores), targets, self._settings.student_temperature)

    def _patch_loss(self, params: dict, student, masked, targets, count: int) -> jax.Array:
        """Returns this part's share of the mean over the images of the batch, 2 `count`, masked or not."""
        places, valid = self._places(masked)
        of_image = jnp.maximum(masked.sum(-1), 1).reshape(-1)[places // masked.shape[-1]]
        scores = self._network(params).patch_scores(self._chosen(student[0].patches, masked))
        weights = valid / of_image / (2 * count)
        return distillation_losses.patch_loss(scores, targets, weights, self._settings.student_temperature)

    def _words_loss(self, params: dict, student, clusters: jax.Array) -> jax.Array:
        """Returns the mean cross-entropy of the patches of global views with their clusters (2, n, P)."""
        scores = self._network(params).word_scores(student[0].patches)
        return optax.softmax_cross_entropy_with_integer_labels(scores, clusters).mean()

    def _spread(self, features: jax.Array) -> jax.Array:
        """Returns the sum over the two global views of what spreads their features (2, N, C)."""
        spread = SPREADS[self._settings.spread]
        return spread(features[0]) + spread(features[1])

    def _report(self, found: dict, report: dict) -> dict:
        zero = jnp.float32(0)
        found = {name: found.get(name, zero) for name in ("class_loss", "patch_loss", "spread_loss", "words_loss")}
        settings = self._settings
        total = found["class_loss"] + settings.patch_weight * found["patch_loss"]
        total += settings.words_weight * found["words_loss"]
        if settings.spread != "none":
            total += settings.spread_weight * found["spread_loss"]
        kl = found["class_loss"] - report["teacher_entropy"]
        return {"loss": total, "kl": kl, **found, **report}


def _entropy(shares: jax.Array) -> jax.Array:
    """Returns the entropy in nats of distributions (..., K)."""
    return -jnp.sum(jax.scipy.special.xlogy(shares, shares), axis=-1)


def _deviation(features: jax.Array) -> jax.Array:
    """Returns the mean over features of their deviation in the batch (N, C), after normalization to length one."""
    x = features / jnp.maximum(jnp.linalg.norm(features, axis=-1, keepdims=True), 1e-12)
    return jnp.mean(jnp.std(x, axis=0))
