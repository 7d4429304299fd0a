"""A frozen encoder sees each image once, and the training is the same as if it saw it every time."""

import jax
import numpy as np
import optax
import pytest
from helpers.small_networks import small_vit

from bcss_jax.data.augmentation.settings import Augmentation
from bcss_jax.losses import Objective
from bcss_jax.models.apply import split_model
from bcss_jax.models.image_normalization import IMAGENET
from bcss_jax.training import optimizer, sharding, step
from bcss_jax.training.frozen.feature_cache import FeatureCache, images_recur, make_encode

IMAGES = np.random.default_rng(0).integers(0, 256, (6, 24, 24, 3), np.uint8)
LABELS = np.random.default_rng(1).integers(0, 3, (6, 24, 24), np.uint8)


class Counted:
    """An encoder that counts the images that it is given."""

    def __init__(self, model, mesh):
        self.encode, self.images = make_encode(model, mesh, IMAGENET), 0

    def __call__(self, params, model_state, images):
        self.images += len(images)
        return self.encode(params, model_state, images)


@pytest.mark.parametrize("devices", [1, 2])
def test_each_image_is_encoded_once(devices):
    model, mesh = small_vit(3, decoder="linear", decoded_blocks=2), sharding.make_mesh(jax.devices()[:devices])
    encode, weights = Counted(model, mesh), split_model(model)[1:]
    weights = sharding.place_replicated(weights, mesh)
    cache = FeatureCache(encode, mesh, capacity=10**9)
    first = cache.features(*weights, IMAGES[[0, 1, 2, 1]])
    assert encode.images == (3 if devices == 1 else 4)
    again = cache.features(*weights, IMAGES[[4, 2, 0]])
    assert encode.images == (4 if devices == 1 else 6)
    assert [array.shape for array in again] == [(3, 3, 3, 16)] * 2
    expected = model.encode((IMAGES[[4, 2, 0]].astype(np.float32) / 255 - IMAGENET.mean) / np.array(IMAGENET.std))
    for one, other in zip(again, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4)
    for one, other in zip(first, again, strict=True):  # to the bit, in another batch
        np.testing.assert_array_equal(one[2], other[1])
        np.testing.assert_array_equal(one[1], one[3])


def test_features_beyond_the_limit_are_computed_again():
    model, mesh = small_vit(3, decoder="linear"), sharding.make_mesh(jax.devices()[:1])
    encode, weights = Counted(model, mesh), split_model(model)[1:]
    cache = FeatureCache(encode, mesh, capacity=2 * 9 * 16 * 4)  # of two images
    one = cache.features(*weights, IMAGES[:4])
    other = cache.features(*weights, IMAGES[:4])
    assert encode.images == 4 + 2
    np.testing.assert_array_equal(one[0], other[0])


@pytest.mark.parametrize(
    "how",
    [
        dict(decoder="linear"),
        pytest.param(dict(decoder="eomt", queries=5, query_blocks=1), marks=pytest.mark.slow),
    ],
)
def test_steps_on_features_are_those_on_images(how):
    model, mesh = small_vit(3, **how), sharding.make_mesh(jax.devices()[:1])
    objective = Objective(3, 0, queries=model.has_queries)
    tx = optimizer.separate_encoder_optimizer(optax.set_to_zero(), optimizer.adamw(1e-3, 1e-4))
    start = jax.tree.map(np.array, step.TrainState.create(model, tx, optimizer.Plateau(0.5, 2)))
    cache = FeatureCache(make_encode(model, mesh, IMAGENET), mesh, capacity=10**9)
    states, losses = [], []
    for on_features in (False, True):
        train_step = step.make_train_step(
            model, tx, mesh, objective, frozen=("encoder",), micro_batches=2, on_features=on_features
        )
        evaluate = step.make_eval_step(model, mesh, objective, on_features=on_features)
        state = sharding.place_replicated(start, mesh)
        for _ in range(2):
            features = [cache.features(state.params, state.model_state, IMAGES)] if on_features else []
            state, report = train_step(state, IMAGES, LABELS, *features)
            losses.append(float(report["loss"]))
        losses.append(
            float(evaluate(state.params, state.model_state, IMAGES, LABELS, *features)["sums"]["cross_entropy"])
        )
        states.append(state.params)
    np.testing.assert_allclose(losses[:3], losses[3:], rtol=1e-4)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), *states)


def test_which_images_recur():
    still = dict(rotate=0, elastic=0, color_jitter=0, blur=0, stain=0)
    assert images_recur(Augmentation(**still))
    for name in still:
        assert not images_recur(Augmentation(**(still | {name: 0.1})))
