"""Features at pixels are those of the enlarged maps."""

import numpy as np
import pytest

from bcss_jax.slides.scribbles.pixel_features import at_pixels, enlarged


@pytest.mark.parametrize("stride", [1, 4, 16])
def test_values_at_pixels_are_those_of_the_enlarged_map(stride):
    rng = np.random.default_rng(0)
    maps = rng.random((7, 7, 3), np.float32)
    ys, xs = rng.integers(0, 7 * stride, (2, 50))
    expected = np.asarray(enlarged(maps[None], 7 * stride))[0, ys, xs]
    np.testing.assert_allclose(at_pixels(maps, stride, ys, xs), expected, atol=1e-6)
