"""Features that need no weights: stain and texture at several scales, as texture segmentation has used them for long.

Hematoxylin, eosin and the mean density of each pixel are divided into bands by differences of Gaussians. The mean of
each density, and of the absolute value of each band, over five neighborhoods are the features: what stains there, and
how much of it varies over what length. (The second kind is a scattering transform of first order without directions;
Bruna and Mallat 2013, arXiv:1203.1513.)
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from bcss_jax.data.inspection.stain import SEPARATION
from bcss_jax.slides.scribbles.pixel_features import PixelFeatures

MPP = 0.5  # um per pixel
WINDOW = 512  # pixels
STRIDE = 4  # pixels
FINE_UM = (0.5, 1.0, 2.0)  # standard deviations of the Gaussians between the bands
COARSE_UM = (2.0, 4.0, 8.0, 16.0, 32.0)  # standard deviations of the neighborhoods
REACH = 3.0  # standard deviations after which a Gaussian ends
CHANNELS = 3


def texture_features() -> PixelFeatures:
    """Returns the features of this module."""
    return PixelFeatures(
        name="texture",
        mpp=MPP,
        window=WINDOW,
        stride=STRIDE,
        width=CHANNELS * (len(COARSE_UM) + len(_bands())),
        identity={"texture": {"fine_um": FINE_UM, "coarse_um": COARSE_UM, "stride": STRIDE}},
        license=None,
        arrays=(),
        apply=lambda _, images: texture(images),
    )


def _bands() -> list[tuple[int, float]]:
    """Returns the number of each band with each neighborhood that is at least twice as large as its structures."""
    return [(number, coarse) for number, fine in enumerate(FINE_UM) for coarse in COARSE_UM if coarse >= 2 * fine]


def texture(images: jax.Array) -> jax.Array:
    """Returns the features of windows.

    Args:
      images: uint8 RGB [N, H, W, 3] at `MPP`; H and W are multiples of `STRIDE`.

    Returns:
      float32 [N, H / STRIDE, W / STRIDE, D].
    """
    density = -jnp.log10((images.astype(jnp.float32) + 1) / 256)
    stains = density @ jnp.asarray(SEPARATION[:, :2], jnp.float32)
    whole = jnp.concatenate([stains, density.mean(-1, keepdims=True)], axis=-1)
    smooth = [whole, *(_smoothed(whole, um, 1) for um in FINE_UM)]
    bands = [jnp.abs(finer - coarser) for finer, coarser in zip(smooth, smooth[1:], strict=False)]
    maps = [_smoothed(whole, um, STRIDE) for um in COARSE_UM]
    maps += [_smoothed(bands[number], um, STRIDE) for number, um in _bands()]
    return jnp.concatenate(maps, axis=-1)


def _smoothed(images: jax.Array, sigma_um: float, stride: int) -> jax.Array:
    """Returns images [N, H, W, C] blurred by a Gaussian and taken every `stride` pixels, [N, H / stride, ...]."""
    rows, columns = (jnp.asarray(_gaussian(size, sigma_um / MPP, stride)) for size in images.shape[1:3])
    return jnp.einsum("rh,nhwc,sw->nrsc", rows, images, columns, precision="highest")


@functools.lru_cache(maxsize=64)
def _gaussian(size: int, sigma: float, stride: int) -> np.ndarray:
    """Returns the weights [size / stride, size] of a Gaussian along an axis, which is mirrored at its ends.

    Args:
      size: pixels of the axis.
      sigma: standard deviation, pixels.
      stride: pixels from one result to the next.
    """
    reach = math.ceil(REACH * sigma + stride)
    centers = (np.arange(size // stride) + 0.5) * stride - 0.5
    pixels = np.floor(centers).astype(int)[:, None] + np.arange(-reach, reach + 1)
    weights = np.exp(-0.5 * ((pixels - centers[:, None]) / sigma) ** 2)
    weights *= np.abs(pixels - centers[:, None]) <= max(REACH * sigma, 0.5 * stride)
    mirrored = pixels % (2 * size)
    mirrored = np.minimum(mirrored, 2 * size - 1 - mirrored)
    matrix = np.zeros((len(centers), size))
    np.add.at(matrix, (np.arange(len(centers))[:, None], mirrored), weights)
    return (matrix / matrix.sum(1, keepdims=True)).astype(np.float32)
