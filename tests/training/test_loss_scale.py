"""The loss scale of float16: flax's rule, steps that overflow, and gradients like those of float32."""

import functools
import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.training import dynamic_scale
from helpers.small_networks import LONG_TO_COMPILE, SMALL

from bcss_jax.losses import Objective
from bcss_jax.models.blocks import layers, norms
from bcss_jax.nnunet.record import FoldRecord, FoldRecordJson
from bcss_jax.training import checkpoint, loss_scale, optimizer, sharding, step
from bcss_jax.training.device_advice import advice_on_dtype
from bcss_jax.training.history import COLUMNS, RunRecord, RunRecordJson, history_csv, restored_record, skipped_text
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


MESH = sharding.make_mesh(jax.devices()[:1])


@functools.cache
def compiled(network, dtype, micro_batches):
    """Returns the network and its training step."""
    model = network(num_classes=3, dtype=jnp.dtype(dtype))
    heads = tuple(0.5 ** (i + 1) for i in range(model.num_scales)) if hasattr(model, "all_logits") else ()
    objective = Objective(num_classes=3, ignore_index=0, classes=(1, 2), deep_supervision=heads)
    return model, step.make_train_step(model, TX, MESH, objective, micro_batches=micro_batches)


def start(network, dtype, scale=loss_scale.START, micro_batches=1):
    """Returns the state before the first step."""
    first = loss_scale.loss_scale_for(dtype)
    first = first and first._replace(scale=jnp.float32(scale))
    state = step.TrainState.create(compiled(network, dtype, micro_batches)[0], TX, optimizer.Plateau(0.5, 2), first)
    return sharding.place_replicated(jax.device_get(state), MESH)


def trained(network, dtype, state, steps=1, micro_batches=1, size=32):
    """Returns the states before and after each step on one batch, and the reports."""
    _, train_step = compiled(network, dtype, micro_batches)
    images = np.random.default_rng(0).integers(0, 256, (4, size, size, 3), np.uint8)
    labels = (1 + (images.mean(-1) > 128)).astype(np.uint8)
    data = sharding.place_batch({"image": images, "label": labels}, MESH)
    states, reports = [jax.tree.map(np.array, jax.device_get(state))], []
    for _ in range(steps):
        state, report = train_step(state, data["image"], data["label"])
        states.append(jax.tree.map(np.array, jax.device_get(state)))
        reports.append(jax.device_get(report))
    return states, reports


@pytest.mark.parametrize("micro_batches", (1, 2))
def test_a_step_that_overflows_is_skipped_and_training_goes_on(micro_batches):
    first = start(Plain, HALF, 2.0**24, micro_batches)
    states, reports = trained(Plain, HALF, first, steps=16, micro_batches=micro_batches)
    skipped = [bool(report["skipped_by_loss_scale"]) for report in reports]
    assert skipped[0] and not skipped[-1]
    for before, after, report, passed_over in zip(states, states[1:], reports, skipped, strict=False):
        assert np.isfinite(report["loss"]) and report["finite"] == (not passed_over)
        pairs = zip(learned(before), learned(after), strict=True)
        assert all(np.array_equal(a, b) for a, b in pairs) == passed_over
        assert after.step == before.step + 1
        assert after.loss_scale.scale == before.loss_scale.scale / (2 if passed_over else 1)
    assert reports[-1]["loss"] < reports[0]["loss"]


def test_a_run_in_float16_resumes_to_the_same_bits(tmp_path):
    """The scale, which falls at first, is part of the checkpoint."""
    whole, _ = trained(Plain, HALF, start(Plain, HALF, 2.0**24), steps=12)
    checkpoints = checkpoint.Checkpoints(tmp_path)
    checkpoints.save(sharding.place_replicated(whole[5], MESH), {}, {})
    checkpoints.close()
    restored, _, _ = checkpoint.Checkpoints(tmp_path).restore(start(Plain, HALF))
    assert isinstance(restored.loss_scale, LossScale) and restored.loss_scale == whole[5].loss_scale
    assert restored.loss_scale.scale < 2.0**24
    resumed, _ = trained(Plain, HALF, restored, steps=7)
    for a, b in zip(jax.tree.leaves(resumed[-1]), jax.tree.leaves(whole[-1]), strict=True):
        np.testing.assert_array_equal(a, b)


def test_other_checkpoints_do_not_change():
    """Without a loss scale the same items are saved as before there was one, and the same record."""
    state = step.TrainState.create(Plain(3, jnp.float32), TX, optimizer.Plateau(0.5, 2))
    assert set(checkpoint._array_items(state)["optimizer"]) == {"step", "opt_state", "schedule"}
    assert "skipped_by_loss_scale" not in RunRecord().to_json()
    row = {"epoch": 1, "val_loss": 1.0, **RunRecord().loss_scale_columns(None)}
    assert history_csv([row]).splitlines()[0].split(",") == list(COLUMNS) and not skipped_text(row)


@pytest.mark.parametrize("kind, shape", ((RunRecord, RunRecordJson), (FoldRecord, FoldRecordJson)))
def test_skipped_steps_are_counted_by_epoch(kind, shape, tmp_path):
    record = kind(skipped_by_loss_scale=3)
    state = LossScale(jnp.float32(8192), jnp.int32(0))
    row = {"epoch": 1, "val_loss": 1.0, "smoothed_dice": 0.5, **record.loss_scale_columns(state)}
    assert row["skipped_by_loss_scale"] == 3 and row["loss_scale"] == 8192
    assert skipped_text(row) == "  3 skipped by the loss scale, now 8192"
    record.end_epoch(row)
    record.skipped_by_loss_scale += 1
    assert record.loss_scale_columns(state)["skipped_by_loss_scale"] == 1
    again = restored_record(kind.from_json, shape, json.loads(json.dumps(record.to_json())), tmp_path)
    assert again.skipped_by_loss_scale == 4 and again.bad_steps == 0
    assert history_csv(again.history).splitlines()[0].endswith("best,skipped_by_loss_scale,loss_scale")
    assert history_csv(again.history).splitlines()[1].endswith("True,3,8192.0")


def test_float16_is_advised_on_cards_that_are_fast_in_nothing_else():
    t4, a100, amd = (SimpleNamespace(compute_capability=c, device_kind=f"card {c}") for c in ("7.5", "8.0", "gfx90a"))
    assert advice_on_dtype("bfloat16", [t4]).startswith("card 7.5 has tensor cores for float16 alone")
    assert "--config.dtype=float16" in advice_on_dtype("float32", [a100, t4])
    assert advice_on_dtype("float16", [t4]) is None
    assert advice_on_dtype("float32", [a100, amd, *jax.devices()]) is None


def test_a_loss_that_is_not_finite_is_not_blamed_on_the_scale():
    state = start(Plain, HALF)
    state.params["head"]["bias"] = sharding.place_replicated(np.full(3, np.nan, np.float32), MESH)
    states, reports = trained(Plain, HALF, state)
    assert not reports[0]["skipped_by_loss_scale"] and not reports[0]["finite"]
    assert states[1].loss_scale == states[0].loss_scale


FIVE_POOLINGS = ("unet_resnet34", "unet_resnet101", "dense_unet_121", "tiatoolbox_unet")
# Deep ReLUs amplify rounding; that of bfloat16 is eight times larger.
AMPLIFYING = (*FIVE_POOLINGS, "transunet", "report_unet", "report_dense_unet", "report_transunet")


def gradient(name, dtype):
    """Returns the gradient of all parameters in one vector."""
    size = 96 if name in FIVE_POOLINGS else 32  # with 32, BatchNorms over four values would amplify any rounding
    states, reports = trained(SMALL[name], dtype, start(SMALL[name], dtype, 2.0**12), size=size)
    assert reports[0]["finite"]
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(states[1].params))
    updates = jax.tree.map(lambda a, b: 10 * (a - b), states[0].params, states[1].params)
    return np.concatenate([update.ravel() for update in jax.tree.leaves(updates)])


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.slow if name in (*LONG_TO_COMPILE, "nnunet") else ()) for name in SMALL],
)
def test_gradients_are_those_of_float32_within_rounding(name):
    exact, rounded = gradient(name, "float32"), gradient(name, HALF)
    allowed = 0.02
    if name in AMPLIFYING:
        allowed = 0.6 * np.linalg.norm(exact - gradient(name, "bfloat16")) / np.linalg.norm(exact)
    error = np.linalg.norm(exact - rounded) / np.linalg.norm(exact)
    print(f"{name}: relative error of the gradient {error}, allowed {allowed}")
    assert 0 < error < allowed
