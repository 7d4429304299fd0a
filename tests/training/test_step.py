"""The training step compiles once and gives the same result on any devices and in any number of micro-batches."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from bcss_jax import losses, metrics, models
from bcss_jax.errors import ConfigError
from bcss_jax.models.apply import ModelFunction, normalize, split_model
from bcss_jax.models.blocks import layers
from bcss_jax.models.image_normalization import ImageStatistics
from bcss_jax.training import optimizer, sharding, step

OBJECTIVE = losses.Objective(num_classes=3, ignore_index=0, classes=(1, 2))
TX = optimizer.adamw(1e-3, 1e-4)


class Pixelwise(nnx.Module):
    """No batch statistics and no receptive field."""

    def __init__(self, rngs):
        self.a, self.b = nnx.Linear(3, 8, rngs=rngs), nnx.Linear(8, 3, rngs=rngs)

    def __call__(self, x):
        return self.b(nnx.relu(self.a(x)))


def unet(dtype="float32"):
    return models.create("unet", num_classes=3, width=4, depth=2, dtype=dtype)


def start(model, mesh, tx=TX):
    state = step.TrainState.create(model, tx, optimizer.Plateau(0.5, 2))
    return sharding.place_replicated(state, mesh)


def batch(mesh, seed=0, n=8, size=16, ignored=0.2):
    rng = np.random.default_rng(seed)
    labels = rng.integers(1, 3, (n, size, size), np.uint8)
    labels[rng.random(labels.shape) < ignored] = 0
    images = rng.integers(0, 256, (n, size, size, 3), np.uint8)
    placed = sharding.place_batch({"image": images, "label": labels}, mesh)
    return placed["image"], placed["label"]


def run(model, devices, steps=5, micro_batches=1, objective=OBJECTIVE, remat=False, **batch_kwargs):
    mesh = sharding.make_mesh(jax.devices()[:devices])
    train_step = step.make_train_step(model, TX, mesh, objective, micro_batches=micro_batches, remat=remat)
    state, reports = start(model, mesh), []
    for i in range(steps):
        state, report = train_step(state, *batch(mesh, i, **batch_kwargs))
        reports.append(jax.device_get(report))
    assert train_step._cache_size() == 1  # compiled once
    return jax.device_get(state), reports


def test_eight_devices_equal_one_with_global_batch_statistics():
    one, reports_one = run(unet(), 1)
    eight, reports_eight = run(unet(), 8)
    for a, b in zip(reports_one, reports_eight, strict=True):
        np.testing.assert_allclose(a["loss"], b["loss"], rtol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), one.model_state, eight.model_state
    )
    assert int(one.step) == int(eight.step) == 5


@pytest.mark.parametrize("devices, micro_batches", ((1, 2), (1, 4), (2, 4)))
@pytest.mark.parametrize("dice_batch", (True, False))
def test_micro_batches_equal_the_whole_batch(devices, micro_batches, dice_batch):
    objective = dataclasses.replace(OBJECTIVE, dice_batch=dice_batch)
    model = Pixelwise(nnx.Rngs(0))
    whole, reports = run(model, 1, objective=objective)
    cut, cut_reports = run(model, devices, micro_batches=micro_batches, objective=objective)
    for a, b in zip(reports, cut_reports, strict=True):
        np.testing.assert_allclose(a["loss"], b["loss"], rtol=1e-5)
        np.testing.assert_allclose(a["grad_norm"], b["grad_norm"], rtol=1e-4)
        np.testing.assert_array_equal(a["confusion"].sum(), b["confusion"].sum())
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6), whole.params, cut.params)


def test_a_network_with_batch_statistics_learns_one_batch_in_micro_batches():
    mesh = sharding.make_mesh(jax.devices()[:1])
    model = unet()
    train_step = step.make_train_step(model, optimizer.adamw(1e-2, 1e-4), mesh, OBJECTIVE, micro_batches=2)
    state, data = start(model, mesh), batch(mesh, size=8, n=4)
    values = []
    for _ in range(60):
        state, report = train_step(state, *data)
        values.append(float(report["loss"]))
    assert values[-1] < 0.6 * values[0]


@pytest.mark.parametrize("micro_batches", (1, pytest.param(2, marks=pytest.mark.slow)))
def test_rematerialization_changes_memory_and_not_the_result(micro_batches):
    (kept, reports), (again, same) = (run(unet(), 1, 3, micro_batches, remat=remat) for remat in (False, True))
    np.testing.assert_allclose([r["loss"] for r in same], [r["loss"] for r in reports], rtol=1e-6)
    for a, b in zip(jax.tree.leaves(again.model_state), jax.tree.leaves(kept.model_state), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_rematerialization_keeps_less_for_the_gradient():
    model = unet()
    _, params, model_state = split_model(model)
    images, labels = batch(sharding.make_mesh(jax.devices()[:1]), size=64)

    def kept(remat):
        forward = step._forward(ModelFunction(model), OBJECTIVE, (), remat, 1)
        pullback = jax.eval_shape(
            lambda params: jax.vjp(lambda p: forward(p, {}, model_state, images, labels, None)[0], params)[1], params
        )
        return sum(each.size * each.dtype.itemsize for each in jax.tree.leaves(pullback))

    assert kept(True) < 0.7 * kept(False)


def test_the_step_is_the_gradient_of_the_loss():
    mesh = sharding.make_mesh(jax.devices()[:1])
    model = Pixelwise(nnx.Rngs(0))
    images, labels = batch(mesh)
    graphdef, params = nnx.split(model)

    def loss(params):
        return losses.ce_dice(nnx.merge(graphdef, params)(normalize(images)), labels, OBJECTIVE)

    value, grads = jax.value_and_grad(loss)(params)
    _, report = step.make_train_step(model, TX, mesh, OBJECTIVE)(start(model, mesh), images, labels)
    np.testing.assert_allclose(report["loss"], value, rtol=1e-6)
    norm = np.sqrt(sum(float(jnp.sum(g**2)) for g in jax.tree.leaves(grads)))
    np.testing.assert_allclose(report["grad_norm"], norm, rtol=1e-5)


def test_training_learns_one_batch():
    mesh = sharding.make_mesh(jax.devices()[:1])
    model = unet()
    train_step = step.make_train_step(model, optimizer.adamw(1e-2, 1e-4), mesh, OBJECTIVE)
    state, data = start(model, mesh), batch(mesh, size=8, n=2)
    values = []
    for _ in range(60):
        state, report = train_step(state, *data)
        values.append(float(report["loss"]))
    assert values[-1] < 0.5 * values[0]


def test_all_ignored_changes_nothing_but_the_step():
    mesh = sharding.make_mesh(jax.devices()[:1])
    model = unet()
    state = start(model, mesh)
    before = jax.tree.map(np.array, jax.device_get(state))
    images, labels = batch(mesh, ignored=1.1)
    after, report = step.make_train_step(model, TX, mesh, OBJECTIVE)(state, images, labels)
    assert not report["has_truth"] and float(report["loss"]) == 0.0 and float(report["grad_norm"]) == 0.0
    assert int(after.step) == 1
    jax.tree.map(np.testing.assert_array_equal, before.params, jax.device_get(after.params))
    jax.tree.map(np.testing.assert_array_equal, before.model_state, jax.device_get(after.model_state))
    jax.tree.map(np.testing.assert_array_equal, before.opt_state, jax.device_get(after.opt_state))


def test_a_non_finite_step_changes_nothing_but_the_step():
    mesh = sharding.make_mesh(jax.devices()[:1])
    model = unet()
    state = start(model, mesh)
    state.params["outc"]["bias"] = sharding.place_replicated(np.full(3, np.nan, np.float32), mesh)
    before = jax.tree.map(np.array, jax.device_get(state))
    after, report = step.make_train_step(model, TX, mesh, OBJECTIVE)(state, *batch(mesh))
    assert not report["finite"] and not np.isfinite(report["loss"])
    jax.tree.map(np.testing.assert_array_equal, before.params, jax.device_get(after.params))
    jax.tree.map(np.testing.assert_array_equal, before.model_state, jax.device_get(after.model_state))
    jax.tree.map(np.testing.assert_array_equal, before.opt_state, jax.device_get(after.opt_state))


def test_the_plateau_scale_scales_the_update():
    mesh = sharding.make_mesh(jax.devices()[:1])
    model = Pixelwise(nnx.Rngs(0))
    moved = []
    for scale in (1.0, 0.25):
        state = start(model, mesh)
        before = np.array(state.params["b"]["kernel"])
        state.schedule = state.schedule._replace(scale=jnp.float32(scale))
        state = sharding.place_replicated(jax.device_get(state), mesh)
        after, _ = step.make_train_step(model, TX, mesh, OBJECTIVE)(state, *batch(mesh))
        moved.append(np.asarray(after.params["b"]["kernel"]) - before)
    np.testing.assert_allclose(moved[1], moved[0] * 0.25, rtol=1e-3, atol=1e-7)


def test_bfloat16_computes_close_to_float32():
    _, exact = run(unet(), 1, steps=2)
    state, rounded = run(unet("bfloat16"), 1, steps=2)
    assert all(p.dtype == np.float32 for p in jax.tree.leaves(state.params))
    np.testing.assert_allclose(rounded[0]["loss"], exact[0]["loss"], rtol=0.02)


def test_evaluation_counts_and_ignores_padding():
    mesh = sharding.make_mesh(jax.devices()[:2])
    model = unet()
    state = start(model, mesh)
    eval_step = step.make_eval_step(model, mesh, OBJECTIVE)
    images, labels = batch(mesh, n=4)
    whole = jax.device_get(eval_step(state.params, state.model_state, images, labels))
    padded = sharding.place_batch(
        {"i": np.array(images), "l": np.array(labels) * (np.arange(4) < 3)[:, None, None].astype(np.uint8)}, mesh
    )
    padded_report = jax.device_get(eval_step(state.params, state.model_state, padded["i"], padded["l"]))
    np.testing.assert_array_equal(padded_report["confusion"][:3], whole["confusion"][:3])
    assert not padded_report["confusion"][3].any()
    assert padded_report["sums"]["pixels"] == (np.array(labels)[:3] != 0).sum()
    assert set(np.unique(whole["predictions"])) <= {1, 2}
    expected = metrics.confusion(jnp.asarray(whole["predictions"]), labels, 3, 0)
    np.testing.assert_array_equal(whole["confusion"], expected)


def test_normalization_is_imagenets():
    pixel = np.asarray([[[[0, 128, 255]]]], np.uint8)
    expected = (pixel / 255.0 - np.asarray([0.485, 0.456, 0.406])) / np.asarray([0.229, 0.224, 0.225])
    np.testing.assert_allclose(normalize(pixel), expected, atol=1e-6)


def test_batch_sizes_that_do_not_divide_are_refused_with_the_nearest():
    mesh = sharding.make_mesh(jax.devices()[:8])
    sharding.check_batch_size("config.batch_size", 128, 4, mesh)
    with pytest.raises(
        ConfigError, match=r"config.batch_size=20 does not divide over 8 devices; the nearest sizes are 16 or 24"
    ):
        sharding.check_batch_size("config.batch_size", 20, 1, mesh)
    with pytest.raises(ConfigError, match="8 devices x 2 micro-batches; the nearest sizes are 16"):
        sharding.check_batch_size("config.batch_size", 8, 2, mesh)


class Heads(nnx.Module):
    """An encoder with batch statistics, dropout, and a second head at half the resolution."""

    num_scales = 2

    def __init__(self, rngs):
        self.encoder = nnx.Sequential(nnx.Linear(3, 8, rngs=rngs), nnx.BatchNorm(8, rngs=rngs))
        self.dropout = layers.Dropout(0.5, number=0)
        self.a, self.b = nnx.Linear(8, 3, rngs=rngs), nnx.Linear(8, 3, rngs=rngs)

    def all_logits(self, x, dropout_keys=None):
        x = self.dropout(nnx.relu(self.encoder(x)), dropout_keys)
        return self.a(x), self.b(x[:, ::2, ::2])

    def __call__(self, x, dropout_keys=None):
        return self.all_logits(x, dropout_keys)[0]


class DropoutOnly(nnx.Module):
    """No layer mixes examples."""

    def __init__(self, rngs):
        self.a, self.dropout, self.b = nnx.Linear(3, 8, rngs=rngs), layers.Dropout(0.5, 0), nnx.Linear(8, 3, rngs=rngs)

    def __call__(self, x, dropout_keys=None):
        return self.b(self.dropout(nnx.relu(self.a(x)), dropout_keys))


@pytest.mark.parametrize("devices, micro_batches", ((1, 4), (8, 1), (2, 2)))
def test_dropout_is_a_function_of_seed_step_and_example(devices, micro_batches):
    model = DropoutOnly(nnx.Rngs(0))
    whole, reports = run(model, 1)
    other, other_reports = run(model, devices, micro_batches=micro_batches)
    for a, b in zip(reports, other_reports, strict=True):
        np.testing.assert_allclose(a["loss"], b["loss"], rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6), whole.params, other.params)


def test_dropout_changes_with_seed_and_step_and_not_in_evaluation():
    mesh = sharding.make_mesh(jax.devices()[:1])
    model = DropoutOnly(nnx.Rngs(0))
    data = batch(mesh)

    def loss(seed, at):
        state = start(model, mesh)
        state.step = sharding.place_replicated(np.int32(at), mesh)
        return float(step.make_train_step(model, TX, mesh, OBJECTIVE, seed=seed)(state, *data)[1]["loss"])

    assert loss(0, 0) == loss(0, 0) and len({loss(0, 0), loss(1, 0), loss(0, 1)}) == 3
    state = start(model, mesh)
    eval_step = step.make_eval_step(model, mesh, OBJECTIVE)
    sums = [eval_step(state.params, state.model_state, *data)["sums"]["cross_entropy"] for _ in range(2)]
    assert float(sums[0]) == float(sums[1])
    with pytest.raises(ValueError, match="dropout_keys"):
        model.train()
        model(jnp.zeros((1, 4, 4, 3)))


def test_deep_supervision_trains_every_head_and_reports_the_first():
    mesh = sharding.make_mesh(jax.devices()[:1])
    model = Heads(nnx.Rngs(0))
    data = batch(mesh)
    before = start(model, mesh)
    old = jax.tree.map(np.array, jax.device_get(before.params))
    deep = step.make_train_step(model, TX, mesh, dataclasses.replace(OBJECTIVE, deep_supervision=(0.75, 0.25)))
    after, report = deep(before, *data)
    for head in ("a", "b"):
        assert (np.asarray(after.params[head]["kernel"]) != old[head]["kernel"]).any()
    first = losses.loss_from_sums(report["sums"], OBJECTIVE)
    assert float(report["loss"]) != float(first) and float(report["sums"]["pixels"]) == (np.asarray(data[1]) != 0).sum()
    plain, plain_report = step.make_train_step(model, TX, mesh, OBJECTIVE)(start(model, mesh), *data)
    np.testing.assert_allclose(first, plain_report["loss"], rtol=1e-6)
    still = np.abs(np.asarray(plain.params["b"]["kernel"]) - old["b"]["kernel"])
    assert still.max() < 1e-6  # only weight decay; a step of AdamW is 1e-3


def test_a_frozen_encoder_does_not_change_and_starts_with_a_new_optimizer_state():
    mesh = sharding.make_mesh(jax.devices()[:1])
    model = Heads(nnx.Rngs(0))
    tx = optimizer.separate_encoder_optimizer(optimizer.adamw(1e-2, 1e-2), optimizer.adamw(1e-2, 1e-2))
    frozen = step.make_train_step(model, tx, mesh, OBJECTIVE, frozen=("encoder",))
    free = step.make_train_step(model, tx, mesh, OBJECTIVE)
    state = start(model, mesh, tx)
    first = jax.tree.map(np.array, jax.device_get(state))
    for i in range(3):
        state, _ = frozen(state, *batch(mesh, i))
    after = jax.tree.map(np.array, jax.device_get(state))
    for tree in ("params", "model_state"):
        jax.tree.map(np.testing.assert_array_equal, getattr(after, tree)["encoder"], getattr(first, tree)["encoder"])
    assert (after.params["a"]["kernel"] != first.params["a"]["kernel"]).any()
    optimizers = after.opt_state.inner_states
    jax.tree.map(np.testing.assert_array_equal, optimizers["encoder"], first.opt_state.inner_states["encoder"])
    state, _ = free(state, *batch(mesh, 3))
    moved = np.abs(
        np.asarray(state.params["encoder"]["layers"][0]["kernel"]) - after.params["encoder"]["layers"][0]["kernel"]
    )
    # AdamW's first step is as large as the learning rate, because its moments have not been updated yet.
    assert 0.5e-2 < moved.max() < 1.5e-2


def test_images_are_normalized_by_the_statistics():
    model = Pixelwise(nnx.Rngs(0))
    run = ModelFunction(model, ImageStatistics((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)))
    _, params, model_state = split_model(model)
    images = np.random.RandomState(0).randint(0, 256, (1, 4, 4, 3)).astype(np.uint8)
    logits, _ = run(params, model_state, images, train=False)
    np.testing.assert_allclose(logits, model(images / 127.5 - 1.0), atol=1e-5)
