"""Other strengths of hematoxylin and eosin: the same on host and device, off in the published recipe."""

import dataclasses

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from skimage.color import rgb2hed

from bcss_jax import config as configs
from bcss_jax.data.augmentation import colors, on_host
from bcss_jax.data.augmentation.on_device import draw_changes
from bcss_jax.data.augmentation.settings import FULL, NONE
from bcss_jax.data.augmentation.stain import restain

ONLY_STAIN = dataclasses.replace(NONE, stain=1.0)


def tissue(seed=0, size=64):
    """Returns densities of both stains that vary smoothly, as an image uint8 [size, size, 3]."""
    rng = np.random.default_rng(seed)
    amounts = cv2.resize(rng.uniform(0, 0.6, (5, 5, 2)), (size, size), interpolation=cv2.INTER_LINEAR)
    vectors = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11]])
    return np.rint(255 * 10 ** -(amounts @ vectors)).astype(np.uint8)


def test_each_factor_changes_its_stain_as_scikit_image_measures_it():
    image = tissue()
    before = rgb2hed(image)[..., :2].reshape(-1, 2)
    for number in range(2):
        factors = np.ones(3)
        factors[number] = 0.7
        after = rgb2hed(restain(image, factors))[..., :2].reshape(-1, 2)
        slopes = [np.polyfit(before[:, i], after[:, i], 1)[0] for i in range(2)]
        assert slopes[number] == pytest.approx(0.7, abs=0.03) and slopes[1 - number] == pytest.approx(1, abs=0.03)


def test_white_and_a_factor_of_one_change_nothing():
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3)).astype(np.uint8)
    np.testing.assert_array_equal(restain(image, np.ones(3)), image)
    np.testing.assert_array_equal(colors.restain(jnp.asarray(image, jnp.float32), jnp.ones(3)), image)
    white = np.full((4, 4, 3), 255, np.uint8)
    np.testing.assert_array_equal(restain(white, np.array([1.5, 0.4, 2])), white)


@pytest.mark.parametrize("factors", ((0.7, 1.3, 1.0), (1.3, 1.2, 0.8)))
def test_the_device_does_what_the_host_does(factors):
    image = tissue(1)
    device = np.asarray(jax.jit(colors.restain)(jnp.asarray(image, jnp.float32), jnp.asarray(factors)))
    difference = np.abs(device - restain(image, np.asarray(factors)).astype(float))
    assert difference.max() <= 1 and (difference > 0).mean() < 0.01  # another rounding of a half


def test_what_is_drawn_has_the_same_range_on_both():
    drawn = jax.vmap(lambda key: draw_changes(key, dataclasses.replace(ONLY_STAIN, stain=0.5)).stain)(
        jax.random.split(jax.random.key(0), 4000)
    )
    changed = np.asarray(drawn)[(np.asarray(drawn) != 1).any(1)]
    assert len(changed) / 4000 == pytest.approx(0.5, abs=0.04)
    host = on_host._recipe(ONLY_STAIN, 255).transforms[4 + 1]
    host.set_random_state(np.random.default_rng(0), __import__("random").Random(0))
    for values in (changed, np.array([host.get_params()["factors"] for _ in range(4000)])):
        assert values.min() >= 0.7 and values.max() <= 1.3
        np.testing.assert_allclose(values.mean(0), 1, atol=0.02)
        np.testing.assert_allclose(values.std(0), 0.6 / np.sqrt(12), atol=0.01)
        assert np.abs(np.corrcoef(values.T) - np.eye(3)).max() < 0.1


def test_the_published_recipe_draws_what_it_drew_before():
    assert FULL.stain == 0 and draw_changes(jax.random.key(3), FULL).stain is None
    with_stain = draw_changes(jax.random.key(3), dataclasses.replace(FULL, stain=1.0))
    for one, other in zip(draw_changes(jax.random.key(3), FULL)[:-1], with_stain[:-1], strict=True):
        np.testing.assert_array_equal(one, other)
    assert "_Stain" not in {type(each).__name__ for each in on_host._recipe(FULL, 255).transforms}


def test_the_host_changes_the_image_and_not_the_labels():
    image, label = tissue(2), np.zeros((64, 64), np.uint8)
    seen = {on_host.augment(image, label, (seed,), ONLY_STAIN, 255)[0].tobytes() for seed in range(5)}
    assert len(seen) == 5 and (on_host.augment(image, label, (0,), ONLY_STAIN, 255)[1] == 0).all()


def test_the_preset_robust_turns_it_on():
    for argument, expected in (("kaggle224", 0), ("kaggle224,robust", 0.8), ("kaggle224,few,robust", 0.8)):
        config = configs.default("unet")
        configs.apply_data_preset(config, "unet", argument)
        assert config.augment.stain == expected
