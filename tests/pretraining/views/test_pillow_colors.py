"""Colors and blurs are changed as Pillow and torchvision change them, to one gray level."""

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from bcss_jax.pretraining.views import pillow_colors, torch_blur

RNG = np.random.default_rng(0)
NOISE = RNG.integers(0, 256, (48, 40, 3), np.uint8)
# Few colors beside each other, gray ones among them, and pure ones.
PATCHES = np.repeat(np.repeat(RNG.choice(np.array([0, 1, 90, 127, 128, 200, 255], np.uint8), (12, 10, 3)), 4, 0), 4, 1)
IMAGES = pytest.mark.parametrize("image", [NOISE, PATCHES], ids=["noise", "patches"])


def differences(change, image, expected, *arguments):
    got = np.asarray(change(jnp.asarray(image, jnp.float32), *map(jnp.float32, arguments)))
    return np.abs(got - np.asarray(expected).astype(float))


def same(change, image, expected, *arguments, share=0.002):
    """Where products of floats lie at a whole number, the last bit decides how they are rounded."""
    difference = differences(change, image, expected, *arguments)
    assert difference.max() <= 1 and np.mean(difference > 0) <= share


@IMAGES
@pytest.mark.parametrize("factor", [0.6, 0.93, 1.0, 1.17, 1.4])
def test_brightness_contrast_and_saturation(image, factor):
    for change, enhance in (
        (pillow_colors.brightness, ImageEnhance.Brightness),
        (pillow_colors.contrast, ImageEnhance.Contrast),
        (pillow_colors.saturation, ImageEnhance.Color),
    ):
        same(change, image, enhance(Image.fromarray(image)).enhance(factor), factor)


@IMAGES
@pytest.mark.parametrize("shift", [-0.1, -0.013, 0.0, 0.05, 0.1, 0.5])
def test_hue(image, shift):
    hue, saturation, value = Image.fromarray(image).convert("HSV").split()
    # As torchvision: the shift is rounded toward zero and wraps around.
    turned = (np.asarray(hue).astype(int) + int(shift * 255)) % 256
    shifted = Image.merge("HSV", (Image.fromarray(turned.astype(np.uint8)), saturation, value)).convert("RGB")
    expected = image if shift == 0 else np.asarray(shifted)  # torchvision converts to HSV and back for 0 too
    difference = differences(pillow_colors.hue, image, expected, shift)
    # Where the hue lies at a whole number, it may differ by one of 256 levels, which are up to six levels of a color.
    assert difference.max() <= 6 and np.mean(difference > 0) < 0.002


@IMAGES
def test_gray_and_solarize(image):
    picture = Image.fromarray(image)
    same(pillow_colors.gray, image, ImageOps.grayscale(picture).convert("RGB"), share=0)
    same(pillow_colors.solarize, image, ImageOps.solarize(picture), share=0)


@IMAGES
@pytest.mark.parametrize("radius", [0.0, 0.11, 0.47, 0.96, 1.3, 1.97, 2.4])
def test_blur(image, radius):
    expected = Image.fromarray(image).filter(ImageFilter.GaussianBlur(radius))
    difference = differences(pillow_colors.blur, image, expected, radius)
    # Both round after each of six passes. Pillow has weights in 1/2**24, so that it rounds differently at halves, which
    # are frequent for radii such as 1, where the weights are sixths.
    assert difference.max() <= 1 and difference.mean() < 0.01


@IMAGES
@pytest.mark.parametrize("sigma", [0.1, 0.5, 1.0, 2.0])
def test_the_blur_of_dinov2(image, sigma):
    bell = np.exp(-0.5 * (np.arange(-4, 5) / sigma) ** 2)
    bell /= bell.sum()
    padded = np.pad(image.astype(float), ((4, 4), (4, 4), (0, 0)), mode="reflect")
    rows = sum(weight * padded[i : i + 48] for i, weight in enumerate(bell))
    expected = sum(weight * rows[:, i : i + 40] for i, weight in enumerate(bell))
    same(torch_blur.blur, image, np.rint(expected), sigma)
    assert differences(torch_blur.blur, image, image, 0.0).max() == 0
