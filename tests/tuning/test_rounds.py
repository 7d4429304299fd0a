"""The prompts of a training depend on seed, step and example alone, and ignored pixels on nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers.sam_small import use_small_sams
from scipy import ndimage

from bcss_jax.models.sam.prompt_encoder import NO_TOKEN
from bcss_jax.models.sam.promptable import PromptableSam
from bcss_jax.tuning.rounds import example_keys, run_rounds

HOW = dict(objects=2, clicks=2, classes=(1, 2), ignore_index=0)


@nnx.jit
def rounds_of(network, images, labels, keys):
    return run_rounds(network, network.encode(images), labels, keys, **HOW)


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    labels = 1 + (ndimage.gaussian_filter(rng.standard_normal((4, 40, 40)), (0, 4, 4)) > 0).astype(np.uint8)
    labels[:, :4] = 0
    labels[3] = 0
    return rng.standard_normal((4, 40, 40, 3)).astype(np.float32), labels


@pytest.fixture
def network(monkeypatch):
    use_small_sams(monkeypatch)
    return PromptableSam("tiny", image_size=32)


def test_prompts_follow_seed_step_and_example_and_not_the_place_in_the_batch(network, batch):
    images, labels = batch
    indices = np.array([5, 0, 7, 2])
    one = rounds_of(network, images, labels, example_keys(3, 9, indices))
    order = np.array([2, 3, 0, 1])
    other = rounds_of(network, images[order], labels[order], example_keys(3, 9, indices[order]))
    for name in ("points", "labels", "has_box", "exists"):
        a, b = (np.asarray(getattr(each, name)) for each in (one, other))
        np.testing.assert_array_equal(a.reshape(4, 2, -1)[order], b.reshape(4, 2, -1), err_msg=name)
    for keys in (example_keys(4, 9, indices), example_keys(3, 10, indices), example_keys(3, 9, indices + 1)):
        assert not np.array_equal(one.points, rounds_of(network, images, labels, keys).points)
    assert np.asarray(one.exists).reshape(4, 2).tolist() == [[True, True]] * 3 + [[False, False]]
    points, at = np.asarray(one.points), np.asarray(one.labels) != NO_TOKEN
    for i, prompts in enumerate(points[:6]):
        x, y = prompts[at[i]].T
        assert (labels[i // 2][y, x] != 0).all()
    assert (np.asarray(one.labels)[:, 0] == NO_TOKEN).tolist() == np.asarray(one.has_box).tolist()


def test_the_gradient_of_a_tile_without_ground_truth_is_zero(network, batch):
    images, labels = batch
    graphdef, params, rest = nnx.split(network, nnx.Param, ...)
    keys = example_keys(0, 0, jnp.arange(1))

    @jax.jit
    def gradient(params, rest):
        def loss(params):
            merged = nnx.merge(graphdef, params, rest)
            found = run_rounds(merged, merged.encode(images[3:]), labels[3:], keys, **HOW)
            return jnp.where(found.exists, found.loss, 0).sum()

        return jax.grad(loss)(params)

    assert all((np.asarray(leaf) == 0).all() for leaf in jax.tree.leaves(gradient(params, rest)))
