"""The recipe on the device, compared with Albumentations as `on_host` configures it."""

import dataclasses
import functools
import math
import random

import albumentations as A
import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from bcss_jax.data.augmentation import colors, geometry, on_host
from bcss_jax.data.augmentation.on_device import Changes, apply_changes, draw_changes, make_augment
from bcss_jax.data.augmentation.sampling import weighted_sum
from bcss_jax.data.augmentation.settings import FLIPS_AND_QUARTER_TURNS, FULL, NONE
from bcss_jax.errors import ConfigError

IGNORED, SIZE = 255, 64  # OpenCV rounds hues down in blocks of 32 columns, and to the nearest in the rest of a row
ALWAYS = dataclasses.replace(FULL, rotate=1.0, elastic=1.0, color_jitter=1.0, blur=1.0)
SMALL = dataclasses.replace(FULL, elastic_smoothness=1.5)  # compiles faster


def only(**settings):
    return dataclasses.replace(NONE, **settings)


TURNS, ELASTIC, COLORS, BLUR = only(rotate=1.0), only(elastic=1.0), only(color_jitter=1.0), only(blur=1.0)
NOTHING = Changes(
    jnp.int32(0),
    jnp.zeros(2, bool),
    jnp.float32(0),
    jnp.bool(False),
    jnp.asarray((1.0, 1.0, 1.0, 0.0)),
    jnp.arange(4),
    jnp.float32(0),
)
NOISE = jax.random.key(5)


def example(seed=0, shape=(SIZE, SIZE)):
    """Returns a colored image with structure and noise, all values between 0 and 255, and labels in blobs."""
    rng = np.random.default_rng(seed)
    coarse = cv2.resize(rng.normal(128, 90, (7, 7, 3)), shape[::-1], interpolation=cv2.INTER_CUBIC)
    image = np.clip(coarse + rng.normal(0, 12, (*shape, 3)), 0, 255).astype(np.uint8)
    return image, (coarse[..., 0] // 60).clip(0, 4).astype(np.uint8)


def theirs(settings):
    """Returns the transforms that `on_host` applies, by the name of their class."""
    return {type(each).__name__: each for each in on_host._recipe(settings, IGNORED).transforms}


@functools.partial(jax.jit, static_argnums=(4, 5))
def apply(image, label, changes, noise_key, settings, ignored):
    return apply_changes(image, label, changes, noise_key, settings, ignored)


def ours(pair, settings, **changed):
    changes = NOTHING._replace(**{name: jnp.asarray(value) for name, value in changed.items()})
    return jax.tree.map(np.asarray, apply(*pair, changes, NOISE, settings, IGNORED))


def assert_almost_equal(found, expected, share):
    """Checks that values differ by at most 1, and at most a share of them at all: both round, in another order."""
    difference = np.abs(found.astype(int) - expected)
    assert difference.max() <= 1 and (difference > 0).mean() <= share, (difference.max(), (difference > 0).mean())


def test_no_change_changes_nothing():
    pair = example()
    for found, expected in zip(ours(pair, SMALL), pair, strict=True):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("turns", range(4))
@pytest.mark.parametrize("across, over", [(False, False), (True, False), (False, True), (True, True)])
def test_quarter_turns_and_flips_equal_albumentations(turns, across, over):
    pair = example()
    transforms = theirs(ALWAYS)
    expected = [transforms["RandomRotate90"].apply(each, factor=turns) for each in pair]
    expected = [transforms["HorizontalFlip"].apply(each) if across else each for each in expected]
    expected = [transforms["VerticalFlip"].apply(each) if over else each for each in expected]
    for found, array in zip(ours(pair, TURNS, quarter_turns=turns, flips=(across, over)), expected, strict=True):
        np.testing.assert_array_equal(found, array)


@pytest.mark.parametrize("degrees", [0.3, 17.0, -44.9, 100.0, 171.0])
@pytest.mark.parametrize("shape", [(SIZE, SIZE), (40, 57)])
def test_rotation_equals_albumentations(degrees, shape):
    image, label = pair = example(1, shape)
    rotate = theirs(dataclasses.replace(ALWAYS, rotate_degrees=180.0))["_Rotate"]
    rotate.limit = (degrees, degrees)
    parameters = {"shape": image.shape}
    parameters |= rotate.get_params_dependent_on_data(parameters, {})
    found, found_label = ours(pair, TURNS, angle=math.radians(degrees))
    assert_almost_equal(found, rotate.apply(image, **parameters), 0.002)
    expected_label = rotate.apply_to_mask(label, **parameters)
    assert (found_label != expected_label).mean() <= 0.001
    assert (expected_label == IGNORED).any() == (degrees != 0.3)


def test_after_turns_and_flips_comes_the_rotation():
    pair = example(2)
    turned = ours(pair, TURNS, quarter_turns=1, flips=(True, False))
    expected = ours(turned, TURNS, angle=0.4)
    together = ours(pair, TURNS, quarter_turns=1, flips=(True, False), angle=0.4)
    for found, array in zip(together, expected, strict=True):
        assert (found != array).mean() <= 0.001


@pytest.mark.parametrize("pixels, smoothness, shape", [(2.0, 4.0, (40, 57)), (40.0, 1.5, (SIZE, SIZE))])
def test_elastic_deformation_equals_albumentations(pixels, smoothness, shape):
    image, label = pair = example(3, shape)
    settings = dataclasses.replace(ELASTIC, elastic_pixels=pixels, elastic_smoothness=smoothness)
    noise = np.asarray(jax.random.normal(NOISE, (2, *shape)))
    elastic = theirs(settings)["_Elastic"]
    elastic.random_generator = type("Drawn", (), {"standard_normal": staticmethod(lambda *_, **__: noise.copy())})()
    parameters = elastic.get_params_dependent_on_data({"shape": image.shape}, {})

    smooth = jax.jit(geometry.smooth_displacement, static_argnums=1)
    displacement = np.asarray(smooth(noise, smoothness, settings.displacement_factor()))
    grid = np.mgrid[: shape[0], : shape[1]]
    np.testing.assert_allclose(displacement[0], parameters["map_x"] - grid[1], atol=2e-5 * pixels + 1e-5)
    np.testing.assert_allclose(displacement[1], parameters["map_y"] - grid[0], atol=2e-5 * pixels + 1e-5)
    found, found_label = ours(pair, settings, elastic=True)
    assert_almost_equal(found, elastic.apply(image, **parameters), 0.005)
    expected_label = elastic.apply_to_mask(label, **parameters)
    assert (found_label != expected_label).mean() <= 0.001
    assert (expected_label == IGNORED).any() and (found != image).any()


@pytest.mark.parametrize("factor", [0.3, 0.8, 0.93, 1.0, 1.07, 1.2, 2.0])
@pytest.mark.parametrize("number, name", [(0, "brightness"), (1, "contrast"), (2, "saturation")])
def test_brightness_contrast_and_saturation_equal_albumentations(factor, number, name):
    image, _ = example(4)
    expected = theirs(ALWAYS)["ColorJitter"].transforms[number](image, factor)
    found = jax.jit(getattr(colors, name))(image.astype(np.float32), np.float32(factor))
    assert_almost_equal(np.asarray(found), expected, 0.0 if name == "brightness" else 0.01)
    assert (expected != image).any() == (factor != 1)


@pytest.mark.parametrize("shift", [-0.5, -0.05, -0.001, 0.0, 0.013, 0.049, 0.5])
def test_hue_equals_albumentations(shift):
    image = np.random.default_rng(0).integers(0, 256, (96, 32, 3), np.uint8)
    image[0], image[1, :, 0], image[2] = np.arange(32)[:, None] * 8, image[1, :, 1], 0  # gray, two equal, black
    expected = theirs(ALWAYS)["ColorJitter"].transforms[3](image, shift)
    found = jax.jit(colors.hue)(image.astype(np.float32), np.float32(shift))
    assert_almost_equal(np.asarray(found), expected, 0.02)  # OpenCV rounds some whole numbers down
    assert (expected != image).any() == (shift != 0)


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 2, 1, 0), (1, 3, 0, 2), (2, 0, 3, 1)])
def test_color_jitter_equals_albumentations(order):
    image, label = pair = example(6)
    factors = (0.85, 1.15, 1.2, 0.04)
    names = ("brightness", "contrast", "saturation", "hue")
    parameters = dict(zip(names, map(float, np.float32(factors)), strict=True))
    expected = theirs(ALWAYS)["ColorJitter"].apply(image, **parameters, order=list(order))
    found, found_label = ours(pair, COLORS, jitter=factors, order=order)
    # A value that one change rounds to the other side is stretched by the following ones.
    difference = np.abs(found.astype(int) - expected)
    assert difference.max() <= 3 and (difference > 0).mean() <= 0.06
    np.testing.assert_array_equal(found_label, label)


@pytest.mark.parametrize("sigma", [0.5, 0.87, 1.2, 1.5])
def test_blur_equals_albumentations(sigma):
    image, label = pair = example(7, (40, 57))
    gaussian = theirs(ALWAYS)["GaussianBlur"]
    gaussian.sigma_limit = (sigma, sigma)
    parameters = gaussian.get_params_dependent_on_data({"shape": image.shape}, {})
    found, found_label = ours(pair, BLUR, blur=sigma)
    assert_almost_equal(found, gaussian.apply(image, **parameters), 0.001)
    np.testing.assert_array_equal(found_label, label)


@pytest.mark.parametrize("ignored", [0, 255])
def test_pixels_from_outside_are_ignored_and_the_image_is_mirrored(ignored):
    white, ones = np.full((SIZE, SIZE, 3), 255, np.uint8), np.ones((SIZE, SIZE), np.uint8)
    changes = NOTHING._replace(angle=jnp.float32(0.7), elastic=jnp.bool(True))
    image, label = apply(white, ones, changes, NOISE, SMALL, ignored)
    assert image.min() == 255
    assert set(np.unique(label)) == {1, ignored}


@functools.cache
def draws(settings=FULL, count=20000):
    keys = jax.random.split(jax.random.key(11), count)
    return jax.tree.map(np.asarray, jax.vmap(lambda key: draw_changes(key, settings))(keys))


@functools.cache
def their_draws(settings=FULL, count=2000):
    """Returns what Albumentations draws, as `on_host` sets its random state."""
    values = {name: np.zeros(count) for name in ("turns", "across", "over", "angle", "elastic", "blur")}
    values |= {"jitter": np.tile([1.0, 1.0, 1.0, 0.0], (count, 1)), "order": np.tile(np.arange(4), (count, 1))}
    transforms = theirs(settings)
    for i in range(count):
        generator = np.random.default_rng(i)
        state = random.Random(int(generator.integers(2**63)))
        for name, each in transforms.items():
            each.set_random_state(generator, state)
            if not each.should_apply():
                continue
            drawn = each.get_params()
            if name == "RandomRotate90":
                values["turns"][i] = drawn["factor"]
            elif name == "ColorJitter":
                values["jitter"][i] = [drawn[key] for key in ("brightness", "contrast", "saturation", "hue")]
                values["order"][i] = drawn["order"]
            elif name == "_Rotate":
                matrix = each.get_params_dependent_on_data({"shape": (8, 8, 3)}, {})["matrix"]
                values["angle"][i] = np.arctan2(matrix[0, 1], matrix[0, 0])
            elif name == "GaussianBlur":
                values["blur"][i] = state.uniform(*each.sigma_limit)
            else:
                values[{"HorizontalFlip": "across", "VerticalFlip": "over", "_Elastic": "elastic"}[name]][i] = 1
    return values


def test_what_is_drawn_has_the_distribution_of_albumentations():
    """Compares the distribution functions: two samples of these sizes differ by 0.046 in one of a thousand cases."""
    found, expected = draws(), their_draws()
    pairs = {
        "turns": (found.quarter_turns, expected["turns"]),
        "across": (found.flips[:, 0], expected["across"]),
        "over": (found.flips[:, 1], expected["over"]),
        "angle": (found.angle, expected["angle"]),
        "elastic": (found.elastic, expected["elastic"]),
        "blur": (found.blur, expected["blur"]),
    }
    pairs |= {f"jitter {i}": (found.jitter[:, i], expected["jitter"][:, i]) for i in range(4)}
    code = np.asarray((64, 16, 4, 1))  # of the order, where colors change at all
    happened = [jitter[:, 0] != 1 for jitter in (found.jitter, expected["jitter"])]
    pairs["order"] = tuple(o[h] @ code for o, h in zip((found.order, expected["order"]), happened, strict=True))
    for name, (ours, theirs) in pairs.items():
        points = np.unique(np.concatenate([ours, theirs]).astype(float))
        steps = [np.searchsorted(np.sort(each.astype(float)), points + 1e-6) / len(each) for each in (ours, theirs)]
        assert np.abs(steps[0] - steps[1]).max() < 0.045, name


def test_changes_are_drawn_independently():
    found = draws()
    numbers = [found.quarter_turns, *found.flips.T, found.angle, found.elastic, *found.jitter.T, found.blur]
    together = np.corrcoef(np.stack([number.astype(float) for number in numbers]))
    assert np.abs(together - np.eye(len(together))).max() < 0.035
    happened = np.corrcoef(np.stack([found.angle != 0, found.elastic, found.jitter[:, 0] != 1, found.blur != 0]))
    assert np.abs(happened - np.eye(4)).max() < 0.035
    assert len(np.unique(found.order, axis=0)) == 24


def test_settings_that_never_happen_change_nothing():
    images, labels = map(np.stack, zip(*(example(i) for i in range(8)), strict=True))
    run = make_augment(NONE, IGNORED, mesh(1), 0)
    for found, expected in zip(run(images, labels, np.arange(8, dtype=np.int32), 3), (images, labels), strict=True):
        np.testing.assert_array_equal(found, expected)
    run = make_augment(only(horizontal_flip=1.0), IGNORED, mesh(1), 0)
    np.testing.assert_array_equal(run(images, labels, np.arange(8, dtype=np.int32), 3)[0], images[:, :, ::-1])


def mesh(devices):
    return Mesh(np.array(jax.devices("cpu")[:devices]), ("data",))


def test_an_example_depends_on_seed_epoch_and_number_alone():
    """Not on the batch, its position, or the devices; and nothing is exchanged between devices."""
    images, labels = map(np.stack, zip(*(example(i, (24, 24)) for i in range(8)), strict=True))
    numbers = np.asarray([3, 40, 5, 2, 77, 31, -1, 8], np.int32)
    run = make_augment(SMALL, IGNORED, mesh(1), 7)
    whole = run(images, labels, numbers, 2)
    assert sum((np.asarray(whole[0][i]) != images[i]).any() for i in range(8)) >= 6
    some = np.asarray([6, 0])
    for found, expected in zip(run(images[some], labels[some], numbers[some], 2), whole, strict=True):
        np.testing.assert_array_equal(found, expected[some])
    later = run(images, labels, numbers, 3)[0]
    assert sum((np.asarray(one) != np.asarray(two)).any() for one, two in zip(whole[0], later, strict=True)) >= 6

    compiled = make_augment(SMALL, IGNORED, mesh(8), 7).lower(images, labels, numbers, 2).compile()
    for word in ("all-gather", "all-reduce", "all-to-all", "collective-permute"):
        assert word not in compiled.as_text()
    split = NamedSharding(mesh(8), PartitionSpec("data"))
    placed = jax.device_put((images, labels, numbers), split)
    found = compiled(*placed, jax.device_put(2, NamedSharding(mesh(8), PartitionSpec())))
    for one, two in zip(found, whole, strict=True):
        assert one.sharding.is_equivalent_to(split, one.ndim)
        np.testing.assert_array_equal(one, two)


def test_other_seeds_change_other_examples():
    images, labels = map(np.stack, zip(*(example(i, (24, 24)) for i in range(64)), strict=True))
    runs = [make_augment(only(horizontal_flip=0.5), IGNORED, mesh(1), seed) for seed in (0, 1, 2**32 - 1)]
    flipped = [(run(images, labels, np.arange(64, dtype=np.int32), 0)[0] != images).any((1, 2, 3)) for run in runs]
    for i, one in enumerate(flipped):
        assert 16 < one.sum() < 48
        assert all((one != other).any() for other in flipped[:i])


def test_many_weights_are_summed_in_a_loop():
    image, weights = jnp.asarray(example()[0], jnp.float32), np.random.default_rng(0).random(131).astype(np.float32)
    padded = np.pad(np.asarray(image, float), [(65, 65), (0, 0), (0, 0)], "edge")
    expected = sum(weight * padded[i : i + SIZE] for i, weight in enumerate(weights))
    np.testing.assert_allclose(weighted_sum(image, jnp.asarray(weights), 0, "edge"), expected, rtol=1e-5)


def test_quarter_turns_need_square_images():
    images, labels = np.zeros((2, 8, 6, 3), np.uint8), np.zeros((2, 8, 6), np.uint8)
    with pytest.raises(ConfigError, match="8x6"):
        make_augment(FLIPS_AND_QUARTER_TURNS, IGNORED, mesh(1), 0)(images, labels, np.arange(2, dtype=np.int32), 0)


def test_the_recipe_of_the_host_has_no_other_changes():
    """Whoever adds a transform to the host's recipe adds it here."""
    names = list(theirs(FULL))
    assert names == [
        "RandomRotate90", "HorizontalFlip", "VerticalFlip", "_Rotate", "_Elastic", "ColorJitter", "GaussianBlur",
    ]  # fmt: skip
    assert A.__version__ == "2.0.8"


def test_jitter_of_normalized_values_is_refused():
    with pytest.raises(ConfigError, match="jitter_normalized is done on the host only"):
        make_augment(dataclasses.replace(FULL, jitter_normalized=True), IGNORED, mesh(1), 7)
