import concurrent.futures
import dataclasses
import random
import subprocess
import sys

import cv2
import numpy as np
import pytest

from bcss_jax.data.augmentation import on_host
from bcss_jax.data.augmentation.settings import FLIPS_AND_QUARTER_TURNS, FULL, NONE, Augmentation
from bcss_jax.errors import ConfigError

IGNORED = 255
ALWAYS = dataclasses.replace(FULL, rotate=1.0, elastic=1.0, color_jitter=1.0, blur=1.0)


def blobs(size=96, seed=0):
    """Returns a smooth random image whose labels are a threshold of it."""
    rng = np.random.default_rng(seed)
    field = cv2.GaussianBlur(rng.standard_normal((size, size)).astype(np.float32), (0, 0), 8)
    field = 255 * (field - field.min()) / np.ptp(field)
    image = np.repeat(field.astype(np.uint8)[..., None], 3, axis=-1)
    return image, (image[..., 0] >= 128).astype(np.uint8)


def apply(settings, seed=(0,), ignored=IGNORED, pair=None):
    image, label = pair or blobs()
    return on_host.augment(image, label, seed, settings, ignored)


def only(**settings):
    return dataclasses.replace(NONE, **settings)


def test_none_is_identity():
    image, label = blobs()
    changed, changed_label = apply(NONE)
    np.testing.assert_array_equal(changed, image)
    np.testing.assert_array_equal(changed_label, label)


def test_pure_function_of_the_seed():
    pair = blobs()
    before = [array.copy() for array in pair]
    first = apply(ALWAYS, (3, 1, 4), pair=pair)
    for array, copy in zip(pair, before, strict=True):
        np.testing.assert_array_equal(array, copy)  # the input does not change
    apply(ALWAYS, (9,))
    again = apply(ALWAYS, (3, 1, 4))
    other = apply(ALWAYS, (3, 1, 5))
    for one, two, three in zip(first, again, other, strict=True):
        np.testing.assert_array_equal(one, two)
        assert (one != three).any()


def test_global_random_state_neither_read_nor_written():
    np.random.seed(1), random.seed(1), cv2.setRNGSeed(1)
    first = apply(ALWAYS)
    drawn = np.random.random(), random.random(), cv2.randu(np.zeros(1), 0, 1).tolist()
    np.random.seed(1), random.seed(1), cv2.setRNGSeed(1)
    assert drawn == (np.random.random(), random.random(), cv2.randu(np.zeros(1), 0, 1).tolist())
    np.random.seed(2), random.seed(2), cv2.setRNGSeed(2)
    np.testing.assert_array_equal(first[0], apply(ALWAYS)[0])


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_same_result_in_any_thread_and_order(threads):
    seeds = [(7, i) for i in range(24)]
    expected = {seed: apply(FULL, seed) for seed in seeds}
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        shuffled = seeds[::-1] if threads % 2 else seeds[1::2] + seeds[::2]
        results = dict(zip(shuffled, pool.map(lambda seed: apply(FULL, seed), shuffled), strict=True))
    for seed in seeds:
        for one, two in zip(expected[seed], results[seed], strict=True):
            np.testing.assert_array_equal(one, two)


def test_changes_are_drawn_independently():
    """With one seed for all changes, Albumentations would flip in both directions or not at all."""
    image, label = blobs(8)
    settings = only(horizontal_flip=0.5, vertical_flip=0.5)
    outcomes = np.zeros((2, 2), int)
    for i in range(400):
        changed, _ = on_host.augment(image, label, (i,), settings, IGNORED)
        for h in (0, 1):
            for v in (0, 1):
                outcomes[h, v] += np.array_equal(changed, image[:: 1 - 2 * v, :: 1 - 2 * h])
    assert outcomes.sum() == 400
    assert (np.abs(outcomes - 100) < 40).all(), outcomes  # 4.6 standard deviations


def test_quarter_turns_and_flips_reach_all_eight_symmetries_and_stay_aligned():
    image, label = blobs(16)
    seen = set()
    for i in range(100):
        changed, changed_label = apply(FLIPS_AND_QUARTER_TURNS, (i,), pair=(image, label))
        np.testing.assert_array_equal(changed_label, changed[..., 0] >= 128)
        seen.add(changed.tobytes())
    assert len(seen) == 8


@pytest.mark.parametrize("settings", [only(rotate=1.0), only(elastic=1.0)], ids=["rotation", "elastic"])
def test_labels_move_with_the_image(settings):
    for i in range(5):
        image, label = apply(settings, (i,), pair=blobs(seed=i))
        inside = label != IGNORED
        clear = inside & (np.abs(image[..., 0].astype(int) - 128) > 12)  # away from the boundary
        assert clear.mean() > 0.5
        agree = (label == (image[..., 0] >= 128))[clear].mean()
        assert agree > 0.999, agree


@pytest.mark.parametrize("ignored", [0, 255])
def test_pixels_from_outside_are_ignored_and_the_image_is_mirrored(ignored):
    white, ones = np.full((96, 96, 3), 255, np.uint8), np.ones((96, 96), np.uint8)
    seen = 0
    for i in range(10):
        image, label = apply(only(rotate=1.0, elastic=1.0), (i,), ignored, (white, ones))
        assert image.min() == 255  # no black corners
        assert set(np.unique(label)) <= {1, ignored}
        seen += (label == ignored).sum()
    assert seen > 0


def test_labels_stay_in_the_label_set():
    rng = np.random.default_rng(0)
    label = rng.choice(np.array([0, 2, 5], np.uint8), (64, 64))
    image = rng.integers(0, 256, (64, 64, 3), np.uint8)
    for i in range(20):
        changed, changed_label = apply(ALWAYS, (i,), IGNORED, (image, label))
        assert set(np.unique(changed_label)) <= {0, 2, 5, IGNORED}
        assert changed.dtype == changed_label.dtype == np.uint8
        assert changed.shape == image.shape and changed_label.shape == label.shape


@pytest.mark.parametrize("settings", [only(color_jitter=1.0), only(blur=1.0)], ids=["colors", "blur"])
def test_colors_and_blur_do_not_change_labels(settings):
    rng = np.random.default_rng(0)
    image, label = rng.integers(0, 256, (64, 64, 3), np.uint8), rng.integers(0, 3, (64, 64), np.uint8)
    changed, changed_label = apply(settings, pair=(image, label))
    np.testing.assert_array_equal(changed_label, label)
    assert (changed != image).any()


def test_elastic_strength_is_in_pixels():
    settings = only(elastic=1.0, elastic_pixels=3.0)
    columns = np.repeat(np.arange(224, dtype=np.uint8)[None, :, None], 224, axis=0).repeat(3, axis=-1)
    moved = [
        apply(settings, (i,), pair=(columns, np.ones((224, 224), np.uint8)))[0].astype(float) - columns
        for i in range(8)
    ]
    assert 2.0 < np.std(moved) < 4.5


@pytest.mark.parametrize("wrong", [{"blur": 1.5}, {"rotate": -0.1}, {"hue": 0.6}, {"elastic_smoothness": 0.0}])
def test_settings_out_of_range(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        Augmentation(**wrong)


def test_quarter_turns_need_square_images():
    image, label = np.zeros((8, 6, 3), np.uint8), np.zeros((8, 6), np.uint8)
    with pytest.raises(ConfigError, match="8x6"):
        on_host.augment(image, label, (0,), FULL, 0)
    assert on_host.augment(image, label, (0,), only(horizontal_flip=1.0), 0)[0].shape == (8, 6, 3)


def test_import_does_not_use_the_network():
    code = (
        "import socket; socket.socket.connect = None; import bcss_jax.data.augmentation.on_host, os; "
        "print(os.environ['NO_ALBUMENTATIONS_UPDATE'])"
    )
    result = subprocess.run([sys.executable, "-W", "error::UserWarning", "-c", code], capture_output=True, text=True)
    assert result.returncode == 0 and result.stdout.strip() == "1", result.stderr


def test_jitter_of_normalized_values_is_that_of_albumentations_after_its_normalization():
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    settings = only(color_jitter=1.0, jitter_normalized=True)
    changed, _ = apply(settings, (5,), pair=(image, image[..., 0]))
    generator = np.random.default_rng(np.random.SeedSequence((5,)))
    reference = on_host.A.Compose([on_host.A.Normalize(), on_host.A.ColorJitter(0.2, 0.2, 0.2, 0.05, p=1.0)])
    reference.set_random_state(generator, random.Random(int(generator.integers(2**63))))
    expected = reference(image=image)["image"]
    assert expected.min() >= 0 and expected.max() <= 1  # what is darker than the mean is lost
    mean, std = np.array((0.485, 0.456, 0.406)), np.array((0.229, 0.224, 0.225))
    assert np.abs((changed / 255 - mean) / std - expected).max() < 0.51 / 255 / std.min()  # rounded to whole numbers
