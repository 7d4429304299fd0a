"""Training of every architecture: all parameters learn, in bfloat16, on many devices, in micro-batches."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from helpers.small_networks import LONG_TO_COMPILE, SMALL

from bcss_jax import models
from bcss_jax.losses import Objective
from bcss_jax.models.apply import split_model
from bcss_jax.models.weights.pretrained import load_torch_state, to_torch_state
from bcss_jax.training import optimizer, sharding, step

NO_BATCH_STATISTICS = ("nnunet", "nnunet_resenc")
every_architecture = pytest.mark.parametrize("name", SMALL)


def build(name, dtype="float32"):
    return SMALL[name](num_classes=3, dtype=jnp.dtype(dtype))


def batch(n=8, size=32):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (n, size, size, 3), np.uint8)
    # Truth that can be seen: bright is class 2.
    labels = (1 + (images.mean(-1) > 128)).astype(np.uint8)
    labels[rng.random(labels.shape) < 0.1] = 0
    return {"image": images, "label": labels}


def start(model, mesh, tx):
    _, params, model_state = split_model(model)
    state = step.TrainState(np.int32(0), params, model_state, tx.init(params), optimizer.Plateau(0.5, 2).init())
    return sharding.place_replicated(state, mesh)


def run(name, devices=1, steps=2, dtype="float32", **kwargs):
    """Trains on one batch; returns the state before, the state after, and the losses."""
    model, mesh = build(name, dtype), sharding.make_mesh(jax.devices()[:devices])
    # These differ from nnU-Net's weights because nnU-Net's last weight is 0.
    heads = tuple(0.5 ** (i + 1) for i in range(model.num_scales)) if hasattr(model, "all_logits") else ()
    # A larger eps than training has: else rounding decides the sign of a whole step wherever a gradient is nearly zero.
    tx = optax.adam(1e-2, eps=1e-4)
    objective = Objective(num_classes=3, ignore_index=0, classes=(1, 2), deep_supervision=heads)
    train_step = step.make_train_step(model, tx, mesh, objective, **kwargs)
    state, data, values = start(model, mesh, tx), sharding.place_batch(batch(), mesh), []
    before = jax.tree.map(np.array, jax.device_get(state))
    for _ in range(steps):
        state, report = train_step(state, data["image"], data["label"])
        values.append(float(report["loss"]))
    return before, jax.device_get(state), values


def test_the_list_has_every_model():
    assert set(SMALL) | {"unet_resnet50"} == set(models.MODELS)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow if name in LONG_TO_COMPILE else ()) for name in SMALL]
)
def test_every_parameter_learns_in_both_precisions_and_on_many_devices(name):
    before, after, values = run(name, steps=8)
    assert values[-1] < 0.9 * values[0]
    # Without weight decay a parameter that gets no gradient stays where it was.
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), before.params, after.params)
    still = [jax.tree_util.keystr(path) for path, m in jax.tree.leaves_with_path(moved) if not m]
    # A softmax over the keys does not change with what is added to all of them: only rounding moves their bias.
    assert not [key for key in still if not key.endswith(("['key']['bias']", "['k_proj']['bias']"))]

    _, _, on_eight = run(name, devices=8)
    np.testing.assert_allclose(on_eight[0], values[0], rtol=1e-5)
    # After a step BatchNorms over a handful of pixels have made more of the rounding.
    np.testing.assert_allclose(on_eight[1], values[1], rtol=2e-3)

    _, state, rounded = run(name, steps=4, dtype="bfloat16")
    assert rounded[-1] < rounded[0] and abs(rounded[0] - values[0]) < 0.05 * values[0]
    assert all(p.dtype == np.float32 for p in jax.tree.leaves((state.params, state.model_state)))


@pytest.mark.parametrize("name", NO_BATCH_STATISTICS)
def test_micro_batches_equal_the_whole_batch(name):
    _, _, whole = run(name)
    _, _, cut = run(name, micro_batches=4)
    np.testing.assert_allclose(cut, whole, rtol=1e-4)


@every_architecture
def test_weights_survive_conversion_to_pytorch_names_and_back(name):
    one, other = build(name), SMALL[name](num_classes=3, seed=5)
    load_torch_state(other, to_torch_state(one))
    for a, b in zip(jax.tree.leaves(nnx.state(one)), jax.tree.leaves(nnx.state(other)), strict=True):
        np.testing.assert_array_equal(a, b)
