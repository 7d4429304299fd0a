"""LoRA changes nothing before it is trained, and is then a change of the matrices."""

import functools

import jax
import numpy as np
import optax
import pytest
from flax import nnx
from helpers.small_networks import small_vit

from bcss_jax import losses, models
from bcss_jax.errors import ConfigError
from bcss_jax.models.apply import ModelFunction, split_model
from bcss_jax.models.weights.pretrained import load_torch_state, to_torch_state
from bcss_jax.training import optimizer, sharding, step

ALL = dict(lora_rank=2, lora_alpha=8, lora_on="qkv,proj,w12,w3")
IMAGES = np.random.default_rng(0).integers(0, 256, (4, 24, 24, 3), np.uint8)
LABELS = np.random.default_rng(1).integers(0, 3, (4, 24, 24), np.uint8)


@functools.cache
def trained(micro_batches=1, remat=False, **arguments):
    """A network after three steps in which its encoder is frozen, and both states."""
    model, mesh = small_vit(3, **arguments), sharding.make_mesh(jax.devices()[:1])
    tx = optimizer.separate_encoder_optimizer(optax.set_to_zero(), optimizer.adamw(1e-2, 1e-4))
    before = step.TrainState.create(model, tx, optimizer.Plateau(0.5, 2))
    before = jax.tree.map(np.array, before)
    train_step = step.make_train_step(
        model, tx, mesh, losses.Objective(3, 0), frozen=("encoder",), micro_batches=micro_batches, remat=remat
    )
    state = sharding.place_replicated(before, mesh)
    placed = sharding.place_batch({"image": IMAGES, "label": LABELS}, mesh)
    for _ in range(3):
        state, _ = train_step(state, placed["image"], placed["label"])
    return model, before, state


def test_it_begins_as_the_network_without_it():
    x = IMAGES.astype(np.float32) / 128 - 1
    np.testing.assert_array_equal(small_vit(3, **ALL)(x), small_vit(3)(x))


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(dict(lora_rank=2, lora_alpha=8, lora_on="qkv,proj,w12,w3"), marks=pytest.mark.slow),
        pytest.param(dict(lora_rank=2, lora_on="w3,proj", dtype="bfloat16"), marks=pytest.mark.slow),
    ],
)
def test_merged_weights_give_the_same_after_training(arguments):
    model, before, state = trained(**arguments)
    function = ModelFunction(model)
    unmerged = function(state.params, state.model_state, IMAGES, train=False)[0]
    _, params, model_state = nnx.split(model, nnx.Param, ...)
    nnx.replace_by_pure_dict(params, state.params)
    nnx.replace_by_pure_dict(model_state, state.model_state)
    nnx.update(model, params, model_state)
    plain = model.merged()
    rest = {name: value for name, value in arguments.items() if not name.startswith("lora")}
    assert jax.tree.structure(split_model(plain)[1:]) == jax.tree.structure(split_model(small_vit(3, **rest))[1:])
    merged = ModelFunction(plain)(*split_model(plain)[1:], IMAGES, train=False)[0]
    tolerance = 0.1 if arguments.get("dtype") else 1e-5
    np.testing.assert_allclose(merged, unmerged, atol=tolerance)
    untrained = function(before.params, state.model_state, IMAGES, train=False)[0]
    assert np.abs(untrained - unmerged).max() > 0.1  # the adapters have an effect
    again = load_torch_state(nnx.clone(model), to_torch_state(model))  # not added twice
    np.testing.assert_allclose(again.merged()(IMAGES / 255), plain(IMAGES / 255), atol=tolerance)
    loaded = load_torch_state(small_vit(3, **rest), to_torch_state(model))
    np.testing.assert_array_equal(loaded.encoder.blocks[0].attn.kernel[...], plain.encoder.blocks[0].attn.kernel[...])


@pytest.mark.parametrize("how", [dict(), pytest.param(dict(micro_batches=2, remat=True), marks=pytest.mark.slow)])
def test_the_encoder_stays_as_it_is_and_has_no_state_in_the_optimizer(how):
    _, before, after = trained(**ALL, **how)
    jax.tree.map(np.testing.assert_array_equal, before.params["encoder"], after.params["encoder"])
    for part in ("adapters", "decoder"):
        changed = jax.tree.map(lambda a, b: bool((a != b).any()), before.params[part], after.params[part])
        assert all(jax.tree.leaves(changed)), changed
    count = sum(leaf.size for leaf in jax.tree.leaves(after.opt_state))
    trained_count = sum(leaf.size for part in ("adapters", "decoder") for leaf in jax.tree.leaves(after.params[part]))
    assert count < 2 * trained_count + 10


def test_merging_leaves_a_network_without_adapters_alone():
    model = small_vit(3)
    assert model.merged() is model


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(lora_rank=-1), "lora_rank must be a positive integer"),
        (dict(lora_rank=193), "lora_rank must be a positive integer of at most 192"),
        (dict(lora_rank=2, lora_alpha=0), "lora_alpha must be a number above 0"),
        (dict(lora_rank=2, lora_on="qkv,w12"), "some of qkv, proj, fc1, fc2, each once"),
        (dict(lora_rank=2, lora_on=""), "some of qkv"),
        (dict(lora_rank=2, lora_on="qkv,qkv"), "each once"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(ConfigError, match=message):
        models.create("vit", num_classes=3, encoder="vit_tiny16", **arguments)
