"""From an image to the input of a network and back: pixels, coordinates and masks, as the originals do it.

Source: `ResizeLongestSide`, `Sam.preprocess` and `Sam.postprocess_masks` of segment-anything, `SAM2Transforms` of sam2.
"""

from typing import Protocol

import numpy as np
from PIL import Image

from bcss_jax.models.image_normalization import IMAGENET

_MEAN, _STD = (np.array(values, np.float32) for values in (IMAGENET.mean, IMAGENET.std))
_MEAN_255, _STD_255 = ((255 * np.array(values)).astype(np.float32) for values in (IMAGENET.mean, IMAGENET.std))


class Frame(Protocol):
    """Where the pixels of one image stand in the input of a network."""

    def network_input(self, image: np.ndarray) -> np.ndarray:
        """Returns the input, float32 (S, S, 3), for RGB uint8 (H, W, 3)."""
        ...

    def to_network(self, points: np.ndarray) -> np.ndarray:
        """Returns points (..., 2), x and y in pixels of the image, in pixels of the input: float32."""
        ...

    def to_image(self, masks: np.ndarray) -> np.ndarray:
        """Returns masks (..., h, w) in the size of the image: float32 (..., H, W)."""
        ...

    def to_low_res(self, masks: np.ndarray, side: int) -> np.ndarray:
        """Returns masks (..., H, W) of the image as the network gives them, 0 around: float32 (..., side, side)."""
        ...

    @property
    def factors(self) -> np.ndarray:
        """Factors (2,) from x and y in pixels of the image to pixels of the input."""
        ...

    def input_matrices(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns matrices (S, H) and (S, W) that resize normalized pixels to the input, without rounding."""
        ...

    def mask_matrices(self, rows: int, columns: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns matrices (H, rows) and (W, columns) that resize masks to the image."""
        ...


class LongestSide:
    """SAM's frame: the longer side is resized to that of the input, and the rest is filled up with zeros."""

    def __init__(self, size: int, height: int, width: int):
        """Prepares the frame of an image of `height` x `width` pixels in an input of `size` x `size`."""
        scale = size * 1.0 / max(height, width)
        self.size, self.height, self.width = size, height, width
        self.new_height, self.new_width = max(int(height * scale + 0.5), 1), max(int(width * scale + 0.5), 1)

    def resized(self, image: np.ndarray) -> np.ndarray:
        """Returns RGB uint8 (H, W, 3) in its size in the input, uint8."""
        small = Image.fromarray(image).resize((self.new_width, self.new_height), Image.Resampling.BILINEAR)
        return np.asarray(small)

    def network_input(self, image: np.ndarray) -> np.ndarray:
        """See `Frame`. The zeros are added after the normalization, so they are the mean color."""
        x = (self.resized(image).astype(np.float32) - _MEAN_255) / _STD_255
        return np.pad(x, ((0, self.size - self.new_height), (0, self.size - self.new_width), (0, 0)))

    def to_network(self, points: np.ndarray) -> np.ndarray:
        """See `Frame`."""
        return (np.asarray(points, np.float64) * self.factors).astype(np.float32)

    @property
    def factors(self) -> np.ndarray:
        """See `Frame`. Each axis has its own, as both sizes are whole numbers."""
        return np.array([self.new_width / self.width, self.new_height / self.height])

    def to_image(self, masks: np.ndarray) -> np.ndarray:
        """See `Frame`."""
        return _mixed(masks, *self.mask_matrices(*masks.shape[-2:]))

    def input_matrices(self) -> tuple[np.ndarray, np.ndarray]:
        """See `Frame`. Rows of zeros fill up the input."""
        by_row, by_column = (
            np.pad(linear_matrix(side, to, antialias=True), ((0, self.size - to), (0, 0)))
            for side, to in ((self.height, self.new_height), (self.width, self.new_width))
        )
        return by_row, by_column

    def mask_matrices(self, rows: int, columns: int) -> tuple[np.ndarray, np.ndarray]:
        """See `Frame`. The original resizes to the input, cuts off what was filled up, and resizes to the image."""
        by_row, by_column = (
            linear_matrix(to_cut, to) @ linear_matrix(small, self.size)[:to_cut]
            for small, to_cut, to in ((rows, self.new_height, self.height), (columns, self.new_width, self.width))
        )
        return by_row, by_column

    def to_low_res(self, masks: np.ndarray, side: int) -> np.ndarray:
        """See `Frame`."""
        by_row, by_column = (
            linear_matrix(self.size, side, antialias=True)[:, :new] @ linear_matrix(old, new, antialias=True)
            for new, old in ((self.new_height, self.height), (self.new_width, self.width))
        )
        return _mixed(masks, by_row, by_column)


class Stretched:
    """SAM 2.1's frame: both sides are resized to those of the input."""

    def __init__(self, size: int, height: int, width: int):
        """Prepares the frame of an image of `height` x `width` pixels in an input of `size` x `size`."""
        self.size, self.height, self.width = size, height, width

    def network_input(self, image: np.ndarray) -> np.ndarray:
        """See `Frame`. Pixels are resized as numbers between 0 and 1, with antialiasing."""
        channels = (image.astype(np.float32) / 255).transpose(2, 0, 1)
        return ((_mixed(channels, *self.input_matrices()).transpose(1, 2, 0) - _MEAN) / _STD).astype(np.float32)

    def to_network(self, points: np.ndarray) -> np.ndarray:
        """See `Frame`."""
        return np.asarray(points, np.float32) / np.array([self.width, self.height], np.float32) * self.size

    def to_image(self, masks: np.ndarray) -> np.ndarray:
        """See `Frame`."""
        return _mixed(masks, *self.mask_matrices(*masks.shape[-2:]))

    @property
    def factors(self) -> np.ndarray:
        """See `Frame`."""
        return np.array([self.size / self.width, self.size / self.height])

    def input_matrices(self) -> tuple[np.ndarray, np.ndarray]:
        """See `Frame`."""
        by_row, by_column = (linear_matrix(side, self.size, antialias=True) for side in (self.height, self.width))
        return by_row, by_column

    def mask_matrices(self, rows: int, columns: int) -> tuple[np.ndarray, np.ndarray]:
        """See `Frame`."""
        return linear_matrix(rows, self.height), linear_matrix(columns, self.width)

    def to_low_res(self, masks: np.ndarray, side: int) -> np.ndarray:
        """See `Frame`."""
        return _mixed(masks, *(linear_matrix(old, side, antialias=True) for old in (self.height, self.width)))


def linear_matrix(size: int, to: int, antialias: bool = False) -> np.ndarray:
    """Returns the weights, float64 (to, size), with which PyTorch's bilinear `interpolate` mixes `size` values.

    Args:
      size: number of values.
      to: number of results.
      antialias: mix over as many values as a result stands for, if there are fewer of these.
    """
    step = size / to
    center = (np.arange(to) + 0.5) * step - 0.5
    if antialias and step > 1:
        weights = np.maximum(0, 1 - np.abs(center[:, None] - np.arange(size)) / step)
    else:
        weights = np.maximum(0, 1 - np.abs(center.clip(0, size - 1)[:, None] - np.arange(size)))
    return weights / weights.sum(1, keepdims=True)


def _mixed(maps: np.ndarray, by_row: np.ndarray, by_column: np.ndarray) -> np.ndarray:
    """Returns maps (..., h, w) as float32 (..., H, W), of matrices (H, h) and (W, w)."""
    maps = np.asarray(maps, np.float32)
    return by_row.astype(np.float32) @ (maps @ by_column.T.astype(np.float32))
