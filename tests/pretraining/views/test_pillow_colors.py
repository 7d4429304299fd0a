"""Colors are changed as Pillow and torchvision change them, to one gray level."""

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from bcss_jax.pretraining.views import pillow_colors

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
