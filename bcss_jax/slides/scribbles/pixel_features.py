"""Features of the pixels of windows, from anything that gives a map of them."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from bcss_jax.inference.frozen_encoder import FrozenEncoder


@dataclasses.dataclass(frozen=True)
class PixelFeatures:
    """A map of features.

    Attributes:
      name: what the features are called in summaries.
      mpp: um per pixel of the windows.
      window: side of the windows in pixels, if the user names none; a multiple of `stride`.
      stride: pixels from one vector of features to the next.
      width: D, number of features.
      identity: JSON, everything that determines the features.
      license: of weights, if there are any.
      arrays: the weights, on all devices; () if there are none.
      apply: (arrays, uint8 [N, H, W, 3]) -> float32 [N, H / stride, W / stride, D]; traceable.
    """

    name: str
    mpp: float
    window: int
    stride: int
    width: int
    identity: dict
    license: str | None
    arrays: Any
    apply: Callable[[Any, jax.Array], jax.Array]


def token_features(encoder: FrozenEncoder, mpp: float, window: int) -> PixelFeatures:
    """Returns the tokens of the patches of a vision transformer, at um per pixel `mpp`."""
    return PixelFeatures(
        name=encoder.name,
        mpp=mpp,
        window=window,
        stride=encoder.architecture.patch,
        width=encoder.architecture.width,
        identity=encoder.identity,
        license=encoder.license,
        arrays=encoder.arrays,
        apply=lambda arrays, images: encoder.apply(arrays, images).patches,
    )


def enlarged(maps: jax.Array, side: int) -> jax.Array:
    """Returns maps [N, h, w, C] in the size [N, side, side, C], bilinearly interpolated between centers."""
    return jax.image.resize(maps, (maps.shape[0], side, side, maps.shape[-1]), "linear", antialias=False)


def at_pixels(maps: np.ndarray, stride: int, ys: np.ndarray, xs: np.ndarray) -> np.ndarray:
    """Returns what `enlarged` has at some pixels, without making all of it.

    Args:
      maps: [h, w, C] of one window.
      stride: pixels of the window from one value to the next.
      ys: rows of the pixels, int [n].
      xs: columns of the pixels, int [n].

    Returns:
      float32 [n, C].
    """
    (top, bottom, down), (left, right, across) = (
        _neighbors(pixels, stride, count) for pixels, count in zip((ys, xs), maps.shape, strict=False)
    )
    upper = maps[top, left] * (1 - across) + maps[top, right] * across
    lower = maps[bottom, left] * (1 - across) + maps[bottom, right] * across
    return upper * (1 - down) + lower * down


def _neighbors(pixels: np.ndarray, stride: int, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the values before and after each pixel along an axis, and the weight float32 [n, 1] of the latter."""
    position = np.clip((pixels + 0.5) / stride - 0.5, 0, count - 1)
    low = np.floor(position).astype(np.int64)
    return low, np.minimum(low + 1, count - 1), (position - low)[:, None].astype(np.float32)
