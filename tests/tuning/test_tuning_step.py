"""A training step with prompts gives the same in parts of the batch, on several devices, and if it keeps less."""

import jax
import numpy as np
import optax
import pytest
from helpers.sam_small import use_small_sams
from scipy import ndimage

from bcss_jax.models.sam.promptable import PromptableSam
from bcss_jax.training.optimizer import Plateau
from bcss_jax.training.sharding import make_mesh, place_replicated
from bcss_jax.training.step import TrainState
from bcss_jax.tuning.step import make_train_step

HOW = dict(seed=1, frozen=("encoder",), objects=2, clicks=1, classes=(1, 2), ignore_index=0)
TX = optax.sgd(0.1)


def batch():
    rng = np.random.default_rng(0)
    labels = 1 + (ndimage.gaussian_filter(rng.standard_normal((4, 40, 40)), (0, 4, 4)) > 0).astype(np.uint8)
    labels[1] = 0  # so that the parts have different numbers of objects
    return rng.integers(0, 256, (4, 40, 40, 3), np.uint8), labels, np.array([3, 0, 9, -1], np.int32)


@pytest.mark.slow
@pytest.mark.parametrize("on_features", [False, True])
def test_parts_of_a_batch_devices_and_computing_again_change_nothing(monkeypatch, on_features):
    use_small_sams(monkeypatch)
    network, found = PromptableSam("tiny", image_size=32), []
    arguments = batch()
    if on_features:
        arguments = *arguments, tuple(jax.jit(network.encode)(arguments[0].astype(np.float32)))
    for micro_batches, devices, remat in ((1, 1, False), (2, 1, False), (2, 2, False), (1, 1, True)):
        mesh = make_mesh(jax.devices()[:devices])
        how = HOW | dict(micro_batches=micro_batches, remat=remat)
        step = make_train_step(network, TX, mesh, on_features=on_features, **how)
        state = place_replicated(TrainState.create(network, TX, Plateau(0.5, 2)), mesh)
        found.append(jax.device_get(step(state, *arguments)))
    (one, report), *others = found
    assert report["sums"]["objects"] == 6 and report["finite"] and report["has_truth"]
    for other, its_report in others:
        for name in ("loss", "grad_norm", "sums"):
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3), report[name], its_report[name])
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), one.params, other.params)
