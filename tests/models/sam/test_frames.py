"""Images, coordinates and masks go to the network and back as in the originals."""

import numpy as np
import pytest
from helpers.references import FOUNDATION, foundation_case
from helpers.sam_tiny import foundation_normal, picture

from bcss_jax.models.sam.frames import LongestSide, Stretched, linear_matrix

SIZES = ((60, 100), (130, 47), (40, 40), (333, 500))


def pre_post():
    return np.load(FOUNDATION / "outputs" / "sam_tiny_pre_post.npz")


def test_pictures_and_coordinates_are_resized_as_in_the_reference():
    foundation_case("sam_tiny_pre_post")  # skips where it is missing
    expected = pre_post()
    names = [name for name in expected if name.startswith("resized_")]
    assert names == [f"resized_{height}x{width}" for height, width in SIZES]
    for i, (height, width) in enumerate(SIZES):
        frame = LongestSide(80, height, width)
        np.testing.assert_array_equal(frame.resized(picture(30 + i, height, width)), expected[names[i]])
        points = np.array([[3.5, 7.25], [width - 1, height - 1]])
        np.testing.assert_allclose(frame.to_network(points), expected[f"coords_{height}x{width}"], rtol=1e-6)


def test_masks_are_resized_as_in_the_reference():
    foundation_case("sam_tiny_pre_post")
    masks = 3 * foundation_normal(40, 1, 3, 40, 40)
    actual = LongestSide(80, 60, 100).to_image(masks)
    np.testing.assert_allclose(actual[:, :, ::2, ::2], pre_post()["postprocessed_60x100"], atol=1e-4)


def test_padding_is_zero_after_normalization():
    frame = LongestSide(80, 60, 100)
    x = frame.network_input(picture(30, 60, 100))
    assert x.shape == (80, 80, 3) and x.dtype == np.float32 and (x[48:] == 0).all() and (x[:48] != 0).all(-1).any()
    mean, std = (np.array(v) for v in ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375)))
    np.testing.assert_allclose(x[:48], (frame.resized(picture(30, 60, 100)) - mean) / std, atol=1e-6)


def test_extreme_shapes_of_images_keep_a_pixel():
    x = LongestSide(64, 1, 500).network_input(np.full((1, 500, 3), 255, np.uint8))
    assert (x[0] != 0).all() and (x[1:] == 0).all()


@pytest.mark.parametrize("size, to", [(7, 20), (20, 7), (20, 20), (1, 5), (5, 1), (100, 33)])
@pytest.mark.parametrize("antialias", [False, True])
def test_matrices_are_pytorchs_bilinear_interpolation(size, to, antialias):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    x = np.random.RandomState(0).standard_normal((1, 1, size, 3))
    resize = torch.nn.functional.interpolate
    expected = resize(torch.from_numpy(x), (to, 3), mode="bilinear", align_corners=False, antialias=antialias)
    np.testing.assert_allclose(linear_matrix(size, to, antialias) @ x[0, 0], expected[0, 0].numpy(), atol=1e-6)


def test_sam2_stretches_images_and_normalizes_them_with_imagenet():
    frame = Stretched(64, 50, 90)
    x = frame.network_input(picture(1, 50, 90))
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    image = torch.from_numpy(picture(1, 50, 90) / np.float32(255)).permute(2, 0, 1)[None]
    expected = torch.nn.functional.interpolate(image, (64, 64), mode="bilinear", align_corners=False, antialias=True)
    expected = (expected[0].permute(1, 2, 0).numpy() - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225)
    np.testing.assert_allclose(x, expected, atol=1e-5)
    np.testing.assert_allclose(frame.to_network(np.array([[45.0, 10.0]])), [[32, 12.8]], rtol=1e-6)
    masks = foundation_normal(3, 2, 16, 16)
    expected = torch.nn.functional.interpolate(torch.from_numpy(masks)[None], (50, 90), mode="bilinear")[0].numpy()
    np.testing.assert_allclose(frame.to_image(masks), expected, atol=1e-5)
