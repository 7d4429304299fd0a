"""EoMT is trained by its own loss, which is the same on any devices and in any number of micro-batches."""

import functools

import jax
import numpy as np
import pytest
from helpers.small_networks import small_vit

from bcss_jax.losses import Objective, loss_from_sums
from bcss_jax.models.decoders.eomt import mask_probabilities
from bcss_jax.training import optimizer, sharding, step

OBJECTIVE = Objective(num_classes=3, ignore_index=0, classes=(1, 2), queries=True)
TX = optimizer.adamw(1e-3, 1e-4)


@functools.cache
def trained(steps=2, devices=1, **how):
    model = small_vit(3, decoder="eomt", queries=6, query_blocks=2)
    mesh = sharding.make_mesh(jax.devices()[:devices])
    train_step = step.make_train_step(model, TX, mesh, OBJECTIVE, **how)
    state = jax.tree.map(np.array, step.TrainState.create(model, TX, optimizer.Plateau(0.5, 2)))
    state.model_state["decoder"]["mask_probability"] = np.full(2, 0.5, np.float32)
    state = sharding.place_replicated(state, mesh)
    images = np.random.default_rng(0).integers(0, 256, (4, 3, 3, 3), np.uint8).repeat(8, 1).repeat(8, 2)
    labels = np.where(images[..., 0] > 128, 1, 2).astype(np.uint8)
    labels[:, :6], labels[3] = 0, 0  # an example without ground truth
    placed = sharding.place_batch({"image": images, "label": labels}, mesh)
    reports = []
    for _ in range(steps):
        state, report = train_step(state, placed["image"], placed["label"])
        reports.append(jax.device_get(report))
    return jax.device_get(state), reports


@pytest.mark.slow
@pytest.mark.parametrize(
    "how",
    [
        dict(devices=2, micro_batches=2, remat=True),
        pytest.param(dict(devices=4), marks=pytest.mark.slow),
        pytest.param(dict(micro_batches=2), marks=pytest.mark.slow),
    ],
)
def test_devices_and_micro_batches_change_nothing(how):
    whole, reports = trained()
    other, others = trained(**how)
    for one, two in zip(reports, others, strict=True):
        assert float(one["loss"]) == pytest.approx(float(two["loss"]), rel=1e-5)
        np.testing.assert_array_equal(one["confusion"], two["confusion"])
    assert float(reports[0]["loss"]) != float(loss_from_sums(reports[0]["sums"], OBJECTIVE))
    assert reports[0]["confusion"].sum() == reports[0]["sums"]["pixels"] == 3 * 18 * 24
    # The loss has jumps where a query is matched with another class, and AdamW divides by small gradients.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-3), whole.params, other.params)


@pytest.mark.slow
def test_it_learns():
    _, reports = trained(steps=60)
    assert reports[-1]["loss"] < 0.6 * reports[0]["loss"]
    assert loss_from_sums(reports[-1]["sums"], OBJECTIVE) < 0.6 * loss_from_sums(reports[0]["sums"], OBJECTIVE)


@pytest.mark.slow
def test_masked_attention_is_drawn_for_each_example():
    model = small_vit(3, decoder="eomt", queries=6, query_blocks=2)
    model.decoder.query[...] = 50 * model.decoder.query[...]
    image = np.random.default_rng(0).standard_normal((1, 32, 32, 3), np.float32)
    keys = jax.random.split(jax.random.key(0), 3)

    def of(probability, keys):
        model.decoder.mask_probability[...] = np.full(2, probability, np.float32)
        return np.asarray(model.queries(np.repeat(image, len(keys), 0), keys)[-1].masks)

    half = of(0.5, keys)
    np.testing.assert_allclose(of(0.5, keys[1:2]), half[1:2], atol=1e-5)
    assert not np.allclose(half[0], half[1]) and not np.allclose(half[1], half[2])
    free = np.asarray(model._queries(image, model.encode(image), masked=False)[-1].masks)
    np.testing.assert_allclose(of(0, keys[:1]), free, atol=1e-5)
    assert not np.allclose(of(1, keys[:1]), free)


def test_masked_attention_becomes_rare_from_the_first_block_to_the_last():
    np.testing.assert_array_equal(mask_probabilities(0, 4), 1)
    np.testing.assert_array_equal(mask_probabilities(1, 4), 0)
    # Of the settings for ADE20K in EoMT's repository: 24,877 steps, the first block from 3,317 to 6,634.
    assert mask_probabilities(3317 / 24877, 4)[0] == pytest.approx(1, abs=1e-3)
    assert 0.5 < mask_probabilities(4975 / 24877, 4)[0] < 0.6
    assert mask_probabilities(6634 / 24877, 4)[0] == pytest.approx(0, abs=1e-3)
    assert mask_probabilities(21561 / 24877, 4)[3] == pytest.approx(0, abs=1e-3)
    assert list(mask_probabilities(0.5, 3)) == sorted(mask_probabilities(0.5, 3))
