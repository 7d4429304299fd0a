"""Views are blurred as Pillow and torchvision blur them."""

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageFilter

from bcss_jax.pretraining.views import blurs

RNG = np.random.default_rng(0)
NOISE = RNG.integers(0, 256, (48, 48, 3), np.uint8)
EDGES = np.repeat(np.repeat(RNG.integers(0, 2, (12, 12, 3), np.uint8) * 255, 4, 0), 4, 1)
IMAGES = pytest.mark.parametrize("image", [NOISE, EDGES], ids=["noise", "edges"])


def blurred(blur, image, sigma):
    return np.asarray(blur(jnp.asarray(image, jnp.float32), jnp.float32(sigma)))


@IMAGES
@pytest.mark.parametrize("radius", [0.11, 0.47, 0.96, 1.3, 1.97, 2.4])
def test_blur_of_pillow(image, radius):
    expected = Image.fromarray(image).filter(ImageFilter.GaussianBlur(radius))
    difference = np.abs(blurred(blurs.pillow, image, radius) - np.asarray(expected))
    # Pillow rounds after each of six passes.
    assert difference.max() <= 3 and difference.mean() < 1


@IMAGES
@pytest.mark.parametrize("sigma", [0.1, 0.5, 1.0, 2.0])
def test_blur_of_torchvision(image, sigma):
    bell = np.exp(-0.5 * (np.arange(-4, 5) / sigma) ** 2)
    bell /= bell.sum()
    padded = np.pad(image.astype(float), ((4, 4), (4, 4), (0, 0)), mode="reflect")
    rows = sum(weight * padded[i : i + 48] for i, weight in enumerate(bell))
    expected = sum(weight * rows[:, i : i + 48] for i, weight in enumerate(bell))
    difference = np.abs(blurred(blurs.torchvision, image, sigma) - np.rint(expected))
    assert difference.max() <= 1 and np.mean(difference > 0) < 0.001


@pytest.mark.parametrize("blur", [blurs.pillow, blurs.torchvision])
def test_without_blur_nothing_changes(blur):
    assert np.array_equal(blurred(blur, NOISE, 0.0), NOISE)
