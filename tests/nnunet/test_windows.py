"""Windows: positions and weights compared with nnU-Net, and padding that can be removed."""

import numpy as np
import pytest

from bcss_jax.nnunet import windows


@pytest.mark.parametrize(
    "size, window, expected",
    [
        (512, 224, [0, 96, 192, 288]),
        (1000, 512, [0, 244, 488]),
        (1300, 512, [0, 197, 394, 591, 788]),
        (224, 224, [0]),
        (225, 224, [0, 1]),
    ],
)
def test_starts_by_hand(size, window, expected):
    assert windows.window_starts(size, window) == expected


def test_starts_equal_nnunet():
    reference = pytest.importorskip("nnunetv2.inference.sliding_window_prediction", reason="nnunetv2 is not installed")
    random = np.random.RandomState(0)
    for _ in range(500):
        window = random.randint(4, 300, 2).tolist()
        size = [w + int(random.randint(0, 700)) for w in window]
        step = float(random.choice([0.5, 0.5, 1.0, 0.3]))
        expected = reference.compute_steps_for_sliding_window(size, window, step)
        assert [windows.window_starts(s, w, step) for s, w in zip(size, window, strict=True)] == expected
        assert windows.window_corners(size, window, step) == [(y, x) for y in expected[0] for x in expected[1]]


@pytest.mark.parametrize("shape", [(224, 224), (512, 512), (320, 512), (7, 5), (1, 3), (1024, 1280)])
def test_weights_equal_nnunet(shape):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    reference = pytest.importorskip("nnunetv2.inference.sliding_window_prediction", reason="nnunetv2 is not installed")
    expected = reference.compute_gaussian(
        shape, value_scaling_factor=10, dtype=torch.float32, device=torch.device("cpu")
    )
    np.testing.assert_allclose(windows.window_weights(shape), expected.numpy(), rtol=3e-7)


def test_weights_by_hand():
    weight = windows.window_weights((224, 224))
    assert weight.dtype == np.float32 and weight[112, 112] == 10 == weight.max()
    np.testing.assert_allclose(
        [weight[56, 56], weight[0, 112], weight[0, 0]], [0.183156, 0.00335463, 1.1253517e-6], rtol=5e-6
    )


@pytest.mark.parametrize("shape", [(5, 9, 3), (8, 8, 1), (12, 3, 2), (7, 8, 3)])
def test_padding_is_centered_and_undone(shape):
    image = np.random.RandomState(0).standard_normal(shape).astype(np.float32)
    result, area = windows.pad_to_window(image, (8, 6))
    assert result.shape == (max(shape[0], 8), max(shape[1], 6), shape[2])
    np.testing.assert_array_equal(result[area], image)
    assert np.isclose(result.sum(), image.sum(), rtol=1e-4)  # nothing but zeros around it
    padding = pytest.importorskip("acvl_utils.cropping_and_padding.padding", reason="nnunetv2 is not installed")
    expected, slicer = padding.pad_nd_image(image.transpose(2, 0, 1), (8, 6), return_slicer=True)
    np.testing.assert_array_equal(result, expected.transpose(1, 2, 0))
    assert area == tuple(slicer[1:])


@pytest.mark.parametrize("arguments", [(10, 11, 0.5), (10, 5, 0), (10, 5, 1.5)])
def test_invalid_windows_are_refused(arguments):
    with pytest.raises(ValueError):
        windows.window_starts(*arguments)
