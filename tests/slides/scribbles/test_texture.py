"""Features of stain and texture equal those of SciPy's filters."""

import numpy as np
from scipy import ndimage

from bcss_jax.data.inspection.stain import SEPARATION
from bcss_jax.slides.scribbles import texture


def test_gaussians_are_scipys():
    image = np.random.default_rng(0).random((1, 64, 48, 2), np.float32)
    for um in (0.5, 2.0, 8.0):
        sigma = um / texture.MPP
        expected = ndimage.gaussian_filter(image[0], (sigma, sigma, 0), truncate=texture.REACH, mode="reflect")
        np.testing.assert_allclose(texture._smoothed(image, um, 1)[0], expected, atol=2e-5)


def test_results_lie_in_the_middle_of_their_pixels():
    ramp = np.broadcast_to(np.arange(400, dtype=np.float32)[:, None, None], (400, 8, 1))
    found = np.asarray(texture._smoothed(ramp[None], 2.0, 4))[0, :, 0, 0]
    np.testing.assert_allclose(found[10:-10], 4 * np.arange(100)[10:-10] + 1.5, atol=1e-3)


def test_bands_measure_texture_of_their_size():
    features = texture.texture_features()
    rng = np.random.default_rng(0)
    fine, coarse = (np.kron(rng.integers(60, 200, (256 // n, 256 // n)), np.ones((n, n))) for n in (1, 16))
    maps = np.asarray(texture.texture(np.stack([fine, coarse])[..., None].repeat(3, -1).astype(np.uint8)))
    assert maps.shape == (2, 64, 64, features.width)
    first = 3 * len(texture.COARSE_UM)  # behind the means come the bands, three densities each
    finest, coarsest = first + 2, features.width - 1
    fine, coarse = ((maps[i, ..., coarsest] / maps[i, ..., finest]).mean() for i in (0, 1))
    assert maps[0, ..., finest].mean() > 3 * maps[1, ..., finest].mean() and coarse > 3 * fine


def test_means_are_densities_of_the_stains():
    color = np.array([150, 80, 160], np.uint8)
    maps = np.asarray(texture.texture(np.broadcast_to(color, (1, 64, 64, 3))))
    density = -np.log10((color + 1.0) / 256)
    np.testing.assert_allclose(maps[0, 3, 5, :3], [*(density @ SEPARATION[:, :2]), density.mean()], rtol=1e-3)
    assert np.abs(maps[..., 3 * len(texture.COARSE_UM) :]).max() < 1e-4
