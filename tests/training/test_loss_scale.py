"""The loss scale of float16: flax's rule, steps that overflow, and gradients like those of float32."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.training import dynamic_scale
from helpers.small_networks import SMALL

from bcss_jax.losses import Objective
from bcss_jax.models.blocks import layers, norms
from bcss_jax.training import loss_scale, optimizer, sharding, step
from bcss_jax.training.loss_scale import LossScale, after_step

TX = optax.sgd(0.1)  # an update is a tenth of the negative gradient
HALF = "float16"


def test_only_float16_has_a_loss_scale():
    assert loss_scale.loss_scale_for("float32") is loss_scale.loss_scale_for("bfloat16") is None
    assert loss_scale.loss_scale_for(HALF) == LossScale(65536, 0)
    assert after_step(None, jnp.array(True), jnp.array(False)) == (None, False)


def test_the_rule_is_that_of_flax(monkeypatch):
    monkeypatch.setattr(loss_scale, "INTERVAL", 3)
    theirs = dynamic_scale.DynamicScale(growth_interval=3, scale=jnp.float32(2**10), fin_steps=jnp.int32(0))
    ours = LossScale(jnp.float32(2**10), jnp.int32(0))
    changes = set()
    for finite in np.random.default_rng(0).random(60) > 0.15:
        value = 1.0 if finite else np.inf
        theirs = theirs.value_and_grad(lambda x, value=value: x * value)(1.0).dynamic_scale
        new, skipped = after_step(ours, jnp.array(True), jnp.array(finite))
        assert skipped == (not finite)
        changes.add(float(new.scale / ours.scale))
        ours = new
        assert (ours.scale, ours.finite_steps) == (theirs.scale, theirs.fin_steps)
    assert changes == {0.5, 1.0, 2.0}


def test_the_limits_of_the_scale():
    finite, computed = jnp.array(True), jnp.array(True)
    largest = LossScale(jnp.float32(loss_scale.LARGEST), jnp.int32(loss_scale.INTERVAL))
    assert after_step(largest, computed, finite)[0].scale == loss_scale.LARGEST
    new, skipped = after_step(LossScale(jnp.float32(2), jnp.int32(0)), computed, ~finite)
    assert new.scale == loss_scale.SMALLEST and skipped
    new, skipped = after_step(new, computed, ~finite)  # no lower scale would help: a bad step
    assert new.scale == loss_scale.SMALLEST and not skipped


@pytest.mark.parametrize("finite", (True, False))
def test_a_step_without_a_finite_loss_says_nothing_about_the_scale(finite):
    state = LossScale(jnp.float32(64), jnp.int32(5))
    new, skipped = after_step(state, jnp.array(False), jnp.array(finite))
    assert new == state and not skipped


class Plain(nnx.Module):
    """Two convolutions with a BatchNorm: quick to compile."""

    def __init__(self, num_classes, dtype):
        rngs = nnx.Rngs(0)
        self.conv = layers.Conv(3, 8, 3, use_bias=False, dtype=dtype, rngs=rngs)
        self.norm = norms.BatchNorm(8, relu=True)
        self.head = layers.Conv(8, num_classes, 1, use_bias=True, dtype=dtype, rngs=rngs)

    def __call__(self, x):
        return self.head(self.norm(self.conv(x))).astype(jnp.float32)


def learned(state):
    return jax.tree.leaves((state.params, state.model_state, state.opt_state))


def trained(network, dtype, scale=loss_scale.START, steps=1, micro_batches=1, size=32):
    """Returns the states before and after each step on one batch, and the reports."""
    model, mesh = network(num_classes=3, dtype=jnp.dtype(dtype)), sharding.make_mesh(jax.devices()[:1])
    heads = tuple(0.5 ** (i + 1) for i in range(model.num_scales)) if hasattr(model, "all_logits") else ()
    objective = Objective(num_classes=3, ignore_index=0, classes=(1, 2), deep_supervision=heads)
    train_step = step.make_train_step(model, TX, mesh, objective, micro_batches=micro_batches)
    start = loss_scale.loss_scale_for(dtype)
    start = start and start._replace(scale=jnp.float32(scale))
    state = step.TrainState.create(model, TX, optimizer.Plateau(0.5, 2), start)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (4, size, size, 3), np.uint8)
    labels = (1 + (images.mean(-1) > 128)).astype(np.uint8)
    data = sharding.place_batch({"image": images, "label": labels}, mesh)
    state, states, reports = sharding.place_replicated(state, mesh), [], []
    states.append(jax.tree.map(np.array, jax.device_get(state)))
    for _ in range(steps):
        state, report = train_step(state, data["image"], data["label"])
        states.append(jax.tree.map(np.array, jax.device_get(state)))
        reports.append(jax.device_get(report))
    return states, reports


@pytest.mark.parametrize("micro_batches", (1, 2))
def test_a_step_that_overflows_is_skipped_and_training_goes_on(micro_batches):
    states, reports = trained(Plain, HALF, scale=2.0**24, steps=16, micro_batches=micro_batches)
    skipped = [bool(report["skipped_by_loss_scale"]) for report in reports]
    assert skipped[0] and not skipped[-1]
    for before, after, report, passed_over in zip(states, states[1:], reports, skipped, strict=False):
        assert np.isfinite(report["loss"]) and report["finite"] == (not passed_over)
        pairs = zip(learned(before), learned(after), strict=True)
        assert all(np.array_equal(a, b) for a, b in pairs) == passed_over
        assert after.step == before.step + 1
        assert after.loss_scale.scale == before.loss_scale.scale / (2 if passed_over else 1)
    assert reports[-1]["loss"] < reports[0]["loss"]


def test_a_loss_that_is_not_finite_is_not_blamed_on_the_scale(monkeypatch):
    monkeypatch.setattr(step.losses, "deep_supervision_loss", lambda sums, objective: jnp.nan * sums[0]["pixels"])
    states, reports = trained(Plain, HALF)
    assert not reports[0]["skipped_by_loss_scale"] and not reports[0]["finite"]
    assert states[1].loss_scale == states[0].loss_scale


FIVE_POOLINGS = ("unet_resnet34", "unet_resnet101", "dense_unet_121")
LONG_TO_COMPILE = (*FIVE_POOLINGS, "transunet", "dense_unet", "nnunet_resenc")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name in LONG_TO_COMPILE else ()) for name in SMALL]
)
def test_gradients_are_those_of_float32_within_rounding(name):
    size = 96 if name in FIVE_POOLINGS else 32  # with 32, BatchNorms over four values would amplify any rounding
    gradients = {}
    for dtype in ("float32", HALF):
        states, reports = trained(SMALL[name], dtype, scale=2.0**12, size=size)
        assert reports[0]["finite"]
        gradients[dtype] = jax.tree.map(lambda a, b: 10 * (a - b), states[0].params, states[1].params)
        assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(states[1].params))
    exact, rounded = (np.concatenate([g.ravel() for g in jax.tree.leaves(gradients[d])]) for d in ("float32", HALF))
    error = np.linalg.norm(exact - rounded) / np.linalg.norm(exact)
    print(name, "relative error of the gradient", error)
    assert 0 < error < 0.02
