"""`config.sync_batch_norm`: BatchNorm by the statistics of all devices, or of each device's own images."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bcss_jax import losses, models
from bcss_jax.models.apply import ModelFunction, split_model
from bcss_jax.training import optimizer, sharding, step

OBJECTIVE = losses.Objective(num_classes=3, ignore_index=0, classes=(1, 2))
# The statistics of dense blocks are shared by several norms.
NETWORKS = {
    "unet": {"width": 4, "depth": 1},
    "dense_unet": {
        "growth": 2,
        "layers": (1,),
        "bottleneck_layers": 1,
        "init_width": 4,
    },
}
PER_DEVICE, SIDE = 2, 16


def batch(devices):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (PER_DEVICE * devices, SIDE, SIDE, 3), np.uint8)
    images[PER_DEVICE:] //= 2  # so that the devices have different statistics
    return images, rng.integers(0, 3, images.shape[:3], np.uint8)


def after_a_step(model, devices, **settings):
    """Returns parameters and other state after one step of plain gradient descent, and the exchanges of the program."""
    mesh = sharding.make_mesh(jax.devices()[:devices])
    tx = optax.sgd(1.0)
    run = step.make_train_step(model, tx, mesh, OBJECTIVE, **settings)
    state = sharding.place_replicated(step.TrainState.create(model, tx, optimizer.Plateau(0.5, 2)), mesh)
    placed = sharding.place_batch(dict(zip(("image", "label"), batch(devices), strict=True)), mesh)
    text = run.lower(state, placed["image"], placed["label"]).compile().as_text()
    state, _ = run(state, placed["image"], placed["label"])
    state = jax.device_get(state)
    return state.params, state.model_state, len(re.findall(r" all-reduce(?:-start)?\(", text))


def by_hand(model, devices):
    """Returns the same from a loop over the devices' images."""
    run, (_, params, model_state) = ModelFunction(model), split_model(model)
    images, labels = (x.reshape(devices, PER_DEVICE, *x.shape[1:]) for x in batch(devices))

    def loss(params):
        found = [run(params, model_state, x, train=True) for x in images]
        sums = [losses.loss_sums(logits, y, OBJECTIVE) for (logits, _), y in zip(found, labels, strict=True)]
        total = jax.tree.map(lambda *each: sum(each), *sums)
        return losses.loss_from_sums(total, OBJECTIVE), [state for _, state in found]

    grads, states = jax.jit(jax.grad(loss, has_aux=True))(params)
    mean = jax.tree.map(lambda *each: jnp.stack(each).mean(0), *states)
    return jax.tree.map(lambda p, g: p - g, params, grads), mean


def close(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=2e-4, atol=2e-5), a, b)


@pytest.mark.parametrize("network", sorted(NETWORKS))
def test_statistics_of_each_device_are_those_of_its_own_images(network):
    model = models.create(network, num_classes=3, **NETWORKS[network])
    params, state, few = after_a_step(model, 4, sync_batch_norm=False)
    expected_params, expected_state = by_hand(model, 4)
    close(params, expected_params)
    close(state, expected_state)
    synced_params, synced_state, many = after_a_step(model, 4)
    with pytest.raises(AssertionError):
        close(state, synced_state)
    assert few < many


def test_one_device_has_one_kind_of_statistics():
    model = models.create("unet", num_classes=3, **NETWORKS["unet"])
    same = [after_a_step(model, 1, sync_batch_norm=sync) for sync in (True, False)]
    jax.tree.map(np.testing.assert_array_equal, *same)
