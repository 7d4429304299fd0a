import functools
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from helpers.references import FOUNDATION, module_at

from bcss_jax.common.json_files import read_json
from bcss_jax.models.apply import split_model
from bcss_jax.models.encoders.vision_transformer.architecture import Architecture
from bcss_jax.models.encoders.vision_transformer.positions import Resizing
from bcss_jax.models.image_normalization import ImageStatistics
from bcss_jax.models.weights.pretrained import load_torch_state, to_torch_state
from bcss_jax.pretraining.distillation.network import PretrainedNetwork
from bcss_jax.pretraining.distillation.optimizer import OptimizerSettings, PretrainingOptimizer
from bcss_jax.pretraining.distillation.patch_masks import most_masked, most_masked_of_one, patch_masks
from bcss_jax.pretraining.distillation.schedules import make_schedules
from bcss_jax.pretraining.distillation.step import DistillationSettings, make_pretrain_step, new_state
from bcss_jax.pretraining.views.make_views import Views
from bcss_jax.pretraining.visual_words import CLUSTERS, clusters_of, empty_words
from bcss_jax.training.loss_scale import loss_scale_for
from bcss_jax.training.sharding import make_mesh, place_replicated

TINY = Architecture(24, 2, 3, 8, 96, table=4, resizing=Resizing.OFFSET)
AS_THEY_ARE = ImageStatistics((0, 0, 0), (1 / 255, 1 / 255, 1 / 255))  # views are normalized already
VALUES = {
    name: np.float32(value)
    for name, value in dict(
        learning_rate=1e-2,
        last_layer_learning_rate=1e-2,
        weight_decay=0.1,
        momentum=0.9,
        teacher_temperature=0.05,
        trains_last_layer=1,
    ).items()
}


def given_views(views, keys):
    return Views(jnp.moveaxis(views[0], 1, 0), jnp.moveaxis(views[1], 1, 0))


def batch_of(seed, count, local_views=2, rgb=False):
    """Returns views; with `rgb` none of their values is negative."""
    rng = np.random.default_rng(seed)
    views = (
        rng.standard_normal((count, 2, 32, 32, 3)).astype(np.float32),
        rng.standard_normal((count, local_views, 16, 16, 3)).astype(np.float32),
    )
    return tuple(np.maximum(view, 0) for view in views) if rgb else views


def drawn_words():
    """Returns words of random numbers, in arrays that a step does not free."""
    rng = np.random.default_rng(0)
    words = {name: rng.standard_normal(array.shape, np.float32) for name, array in empty_words().items()}
    return words | {"deviation": np.exp(words["deviation"])}


def setup(devices=1, settings=None, optimizer=None, micro_batches=1, dtype="float32", **network):
    words = drawn_words() if settings and settings.words_weight else None
    clusters = 0 if words is None else CLUSTERS
    network = PretrainedNetwork(
        TINY, prototypes=40, head_hidden=32, head_bottleneck=16, clusters=clusters, dtype=jnp.dtype(dtype), **network
    )
    tx = PretrainingOptimizer(optimizer or OptimizerSettings(), split_model(network)[1])
    mesh = make_mesh(jax.devices()[:devices])
    step = make_pretrain_step(
        network,
        tx,
        mesh,
        settings or DistillationSettings(),
        given_views,
        statistics=AS_THEY_ARE,
        micro_batches=micro_batches,
    )
    return network, place_replicated(new_state(network, tx, loss_scale_for(dtype), words), mesh), step


def state_of(network, params):
    _, variables, _ = nnx.split(network, nnx.Param, ...)
    variables = jax.tree.map(lambda x: x, variables)
    nnx.replace_by_pure_dict(variables, jax.device_get(params))
    nnx.update(network, variables)
    return to_torch_state(network)


@pytest.fixture(scope="module")
def reference():
    weights = module_at(FOUNDATION / "weights.py", "no reference values")
    return weights, read_json(FOUNDATION / "values.json", "reference values", "")["dino_steps"]


def probe(weights, state):
    """The sum of tensors times numbers drawn from their names. The part of the keys in the bias has no gradient."""
    return sum(
        float((value.astype(np.float64) * weights.image(zlib.crc32(name.encode()) % 2**31, value.shape)).sum())
        for name, value in state.items()
        if not name.endswith("qkv.bias")
    )


@pytest.mark.parametrize("micro_batches", [1, 2])
def test_six_steps_of_the_first_version(reference, micro_batches):
    weights, values = reference
    expected = values["steps"]
    network, state, step = setup(
        optimizer=OptimizerSettings(clip_norm=0.3), settings=DistillationSettings(), micro_batches=micro_batches
    )
    tensors = {name: weights.tensor(name, shape) for name, shape in values["tensors"].items()}
    lengths = tensors.pop("head.last_layer.weight_g")
    assert (lengths == 1).all()
    load_torch_state(network, tensors)
    optimizer = PretrainingOptimizer(OptimizerSettings(clip_norm=0.3), split_model(network)[1])
    state = place_replicated(new_state(network, optimizer), make_mesh(jax.devices()[:1]))
    schedules = make_schedules(
        epochs=3,
        epoch_steps=2,
        learning_rate=2e-3,
        final_learning_rate=1e-6,
        warmup_epochs=1,
        weight_decay=0.04,
        final_weight_decay=0.4,
        momentum=0.9,
        teacher_temperature=0.07,
        first_teacher_temperature=0.04,
        teacher_warmup_epochs=2,
        frozen_last_layer_epochs=1,
    )
    for name, ours in (("lr", "learning_rate"), ("wd", "weight_decay"), ("momentum", "momentum")):
        np.testing.assert_allclose(getattr(schedules, ours), values[name], rtol=1e-12, atol=1e-15)
    for number, found in enumerate(expected[1:]):
        crops = [
            weights.image(100 + 10 * number + crop, (4, 3, side, side))
            for crop, side in enumerate((32,) * 2 + (16,) * 3)
        ]
        views = [np.stack([c.transpose(0, 2, 3, 1) for c in part], 1) for part in (crops[:2], crops[2:])]
        state, report = step(state, tuple(views), None, schedules.at(number))
        assert float(report["loss"]) == pytest.approx(found["loss"], rel=1e-4)
        student, teacher = (
            state_of(network, params) | {"head.last_layer.weight_g": lengths}
            for params in (state.params, state.model_state["teacher"])
        )
        center = np.asarray(state.model_state["centers"]["class"])
        assert np.abs(center).sum() == pytest.approx(found["center_abs_sum"], rel=1e-4)
        last_layer = {"head.last_layer.weight_v": student["head.last_layer.weight_v"]}
        assert probe(weights, last_layer) == pytest.approx(found["last_layer_v_probe"], rel=1e-6)
        assert probe(weights, student) == pytest.approx(found["student_probe"], rel=1e-6, abs=1e-4)
        assert probe(weights, teacher) == pytest.approx(found["teacher_probe"], rel=1e-6, abs=1e-4)


@pytest.fixture(scope="module")
def first_version():
    """A function that returns a new state, and the compiled step."""
    network, _, step = setup(free_lengths=True)
    optimizer = PretrainingOptimizer(OptimizerSettings(), split_model(network)[1])
    return lambda: place_replicated(new_state(network, optimizer), make_mesh(jax.devices()[:1])), step


FULL = DistillationSettings(targets="sinkhorn", patch_weight=1.0, spread="koleo", words_weight=0.5)
V2 = dict(free_lengths=True, mask_token=True, patch_head=True)


def steps(count=2, seed=0, batch=8, settings=FULL, **arguments):
    _, state, step = setup(settings=settings, **(V2 | arguments))
    reports = []
    for number in range(count):
        masks = patch_masks(2 * batch, 4, 4, seed, number).reshape(batch, 2, -1)
        state, report = step(state, batch_of(number, batch, rgb=True), masks if settings.patch_weight else None, VALUES)
        reports.append(jax.device_get(report))
    return jax.device_get(state), reports


def assert_equal(found, expected, tolerance):
    for (path, a), b in zip(jax.tree.leaves_with_path(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance, err_msg=jax.tree_util.keystr(path))


@pytest.fixture(scope="module")
def whole():
    return steps()


@pytest.mark.parametrize(
    "arguments", [pytest.param({"devices": 8}, marks=pytest.mark.slow), {"devices": 2, "micro_batches": 2}], ids=str
)
def test_devices_and_micro_batches_change_nothing(whole, arguments):
    state, reports = steps(**arguments)
    assert_equal(reports, whole[1], 2e-4)
    assert_equal(state.model_state, whole[0].model_state, 2e-3)  # Adam divides small gradients by their size


@pytest.mark.slow
def test_devices_change_nothing_with_centers():
    settings = DistillationSettings()
    state, reports = steps(settings=settings, batch=8, devices=8)
    expected, expected_reports = steps(settings=settings, batch=8)
    assert_equal(reports, expected_reports, 2e-4)
    assert_equal(state.model_state["centers"], expected.model_state["centers"], 1e-5)


def test_what_is_reported(whole):
    (report, _) = whole[1]
    assert report["loss"] == pytest.approx(
        report["class_loss"] + report["patch_loss"] + 0.1 * report["spread_loss"] + 0.5 * report["words_loss"],
        rel=1e-6,
    )
    assert report["kl"] == pytest.approx(report["class_loss"] - report["teacher_entropy"], rel=1e-5)
    assert 0 < report["teacher_entropy"] < np.log(40)
    assert 0 < report["feature_deviation"] < 2 / np.sqrt(24)
    assert report["finite"] and not report["skipped_by_loss_scale"]


def test_the_loss_of_words_is_added_to_the_others(first_version):
    batch, words = batch_of(0, 4, rgb=True), drawn_words()
    network, state, step = setup(settings=DistillationSettings(words_weight=2.0), free_lengths=True)
    before = jax.device_get(state.params["word_head"])
    state, report = step(state, batch, None, VALUES)
    views = np.moveaxis(batch[0], 1, 0).reshape(8, 32, 32, 3)
    clusters = np.asarray(clusters_of(words, jnp.asarray(views), TINY.patch))
    assert len(np.unique(clusters)) > 3
    scores = np.asarray(network.word_scores(network(views[None], patches=True).patches)[0], np.float64)
    shares = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
    expected = -np.log(np.take_along_axis(shares, clusters[..., None], -1)).mean()
    assert report["words_loss"] == pytest.approx(expected, rel=1e-4)
    assert report["loss"] == pytest.approx(float(report["class_loss"] + 2 * report["words_loss"]), rel=1e-6)
    assert not np.array_equal(state.params["word_head"]["kernel"], before["kernel"])
    assert_equal(state.model_state["words"], words, 0)
    new, step = first_version
    state, without = step(new(), batch, None, VALUES)
    assert without["words_loss"] == 0 and "words" not in state.model_state
    assert without["loss"] == pytest.approx(float(report["class_loss"]), rel=1e-5)


def test_a_step_that_is_not_finite_changes_only_its_number(first_version):
    new, step = first_version
    state = new()
    before = jax.device_get(state)
    batch = batch_of(0, 4)
    batch[0][0, 0, 0, 0, 0] = np.inf
    state, report = step(state, batch, None, VALUES)
    assert not report["finite"] and state.step == 1
    assert_equal(
        jax.device_get((state.params, state.model_state, state.opt_state)),
        (before.params, before.model_state, before.opt_state),
        0,
    )


def test_float16_has_a_loss_scale_and_the_same_loss(first_version):
    _, state, step = setup(dtype="float16", free_lengths=True)
    state, report = step(state, batch_of(0, 4), None, VALUES)
    new, step32 = first_version
    _, report32 = step32(new(), batch_of(0, 4), None, VALUES)
    assert report["finite"] or report["skipped_by_loss_scale"]
    assert report["loss"] == pytest.approx(float(report32["loss"]), rel=2e-3)
    assert state.loss_scale.scale in (2**15, 2**16)


def test_a_passed_over_last_layer_has_no_state_and_one_with_rate_zero_has(first_version):
    new, step = first_version
    for version, key, moved in ((1, "trains_last_layer", False), (2, "last_layer_learning_rate", True)):
        state = new()
        before = jax.device_get(state)
        state, _ = step(state, batch_of(0, 4), None, {**VALUES, key: np.float32(0)})
        np.testing.assert_array_equal(state.params["head"]["directions"], before.params["head"]["directions"])
        inner = state.opt_state.inner_states["last_layer"]
        counts = [int(x) for x in jax.tree.leaves(inner) if x.ndim == 0]
        assert counts == [int(moved)], version
        assert not np.array_equal(state.params["head"]["dense3"]["kernel"], before.params["head"]["dense3"]["kernel"])


def test_clipping_by_part_and_layer_decay():
    network = PretrainedNetwork(TINY, prototypes=40, head_hidden=32, head_bottleneck=16)
    params = jax.device_get(split_model(network)[1])
    gradients = jax.tree.map(lambda p: np.full(p.shape, 2, np.float32), params)
    by_part = PretrainingOptimizer(OptimizerSettings(clip_norm=1.0, clip="part"), params)._clipped(gradients)
    assert float(optax.tree.norm(by_part["encoder"])) == pytest.approx(1, rel=1e-5)
    assert float(optax.tree.norm(by_part["head"])) == pytest.approx(1, rel=1e-5)
    decayed = PretrainingOptimizer(OptimizerSettings(layer_decay=0.5, patch_embedding_scale=0.2), params)
    values = {**VALUES, "weight_decay": np.float32(0)}
    new, _ = jax.jit(decayed.update)(gradients, decayed.init(params), params, values)
    step = jax.tree.map(lambda n, o: float(np.abs(np.asarray(n) - np.asarray(o)).max()), new, params)
    rate = 1e-2
    assert step["head"]["dense1"]["bias"] == pytest.approx(rate, rel=1e-3)
    assert step["encoder"]["norm"]["bias"] == pytest.approx(rate, rel=1e-3)
    assert step["encoder"]["blocks"][1]["norm1"]["bias"] == pytest.approx(rate / 2, rel=1e-3)
    assert step["encoder"]["blocks"][0]["norm1"]["bias"] == pytest.approx(rate / 4, rel=1e-3)
    assert step["encoder"]["pos_embed"] == pytest.approx(rate / 8, rel=1e-2)
    assert step["encoder"]["patch_bias"] == pytest.approx(rate / 8 * 0.2, rel=1e-2)


def test_vectors_do_not_decay():
    network = PretrainedNetwork(TINY, prototypes=40, head_hidden=32, head_bottleneck=16)
    params = jax.tree.map(lambda p: np.asarray(p) + 1.0, split_model(network)[1])
    optimizer = PretrainingOptimizer(OptimizerSettings(), params)
    gradients = jax.tree.map(np.zeros_like, params)
    new, _ = jax.jit(optimizer.update)(gradients, optimizer.init(params), params, VALUES)
    for (path, a), b in zip(jax.tree.leaves_with_path(new), jax.tree.leaves(params), strict=True):
        expected = b * (1 - 1e-3) if b.ndim > 1 else b
        np.testing.assert_allclose(a, expected, rtol=1e-6, err_msg=jax.tree_util.keystr(path))


@pytest.mark.parametrize("images,rows,columns", [(16, 14, 14), (6, 8, 16), (5, 4, 4), (2, 6, 6)])
def test_patch_masks(images, rows, columns):
    found = [patch_masks(images, rows, columns, 3, step) for step in range(20)]
    np.testing.assert_array_equal(found[4], patch_masks(images, rows, columns, 3, 4))
    counts = np.stack(found).sum(-1)
    assert ((counts > 0).sum(1) <= images // 2).all()
    assert counts.max() <= most_masked_of_one(rows * columns)
    assert counts.sum(1).max() <= most_masked(images, rows * columns)
    if rows * columns > 30:
        shares = counts[counts > 0] / (rows * columns)
        assert 0.15 < shares.mean() < 0.4
        assert len(np.unique(np.nonzero(counts)[1])) == images  # every image is masked at times


def test_views_depend_on_the_position_in_the_batch_alone():
    seen = []

    def spy(images, keys):
        seen.append(jax.random.key_data(keys).shape)
        noise = jax.vmap(functools.partial(jax.random.normal, shape=(2, 32, 32, 3)))(keys)
        return Views(jnp.moveaxis(noise, 1, 0), jnp.zeros((0, len(images), 16, 16, 3)))

    network = PretrainedNetwork(TINY, prototypes=40, head_hidden=32, head_bottleneck=16)
    optimizer = PretrainingOptimizer(OptimizerSettings(), split_model(network)[1])
    losses, mesh = [], make_mesh(jax.devices()[:1])
    for seed in (0, 1):
        step = make_pretrain_step(
            network, optimizer, mesh, DistillationSettings(), spy, statistics=AS_THEY_ARE, seed=seed
        )
        for _ in range(2):
            state = place_replicated(new_state(network, optimizer), mesh)
            losses.append(float(step(state, np.zeros((4, 8, 8, 3), np.uint8), None, VALUES)[1]["loss"]))
    assert losses[0] == losses[1] != losses[2] == losses[3]
    assert seen[0][0] == 4
