"""Random augmentation of a training image and its labels: flips, rotations, elastic deformation, color jitter, blur.

This is the only file that uses Albumentations (2.0.8, its last release). Everything is uint8 on the host; images are
normalized on the device.

Where a rotation or a deformation needs pixels from outside the image, the image is extended by its mirror image, so
that no black corners enter the normalization statistics. The labels there are `ignore_index`, because nobody annotated
them.
"""

import contextlib
import functools
import os
import queue
import random
import sys
from collections.abc import Iterator, Sequence

import cv2
import numpy as np

from bcss_jax.data.augmentation.settings import Augmentation
from bcss_jax.data.augmentation.stain import restain
from bcss_jax.models.image_normalization import IMAGENET

os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"  # otherwise the import looks for a newer version on the network


@contextlib.contextmanager
def _torch_hidden() -> Iterator[None]:
    """Lets `import torch` fail within the block: Albumentations imports it, if it can, which takes seconds."""
    if "torch" in sys.modules:
        yield
        return
    sys.modules["torch"] = None  # pyright: ignore[reportArgumentType]
    try:
        yield
    finally:
        del sys.modules["torch"]


with _torch_hidden():
    import albumentations as A

cv2.setNumThreads(0)  # the input pipeline runs one example per thread; more threads only add contention


def augment(
    image: np.ndarray, label: np.ndarray, seed: Sequence[int], settings: Augmentation, ignore_index: int
) -> tuple[np.ndarray, np.ndarray]:
    """Applies one random draw of the recipe. The result depends only on the arguments; threads may call it in parallel.

    Args:
      image: uint8 [H, W, 3], RGB.
      label: uint8 [H, W]; resampled by nearest neighbor.
      seed: non-negative integers; equal seeds give equal results.
      settings: the recipe.
      ignore_index: label of pixels from outside the image.

    Returns:
      uint8 [H, W, 3] and uint8 [H, W].

    Raises:
      ConfigError: rotations by 90 degrees are on, and the image is not square.
    """
    settings.check_shape((image.shape[0], image.shape[1]))
    generator = np.random.default_rng(np.random.SeedSequence(seed))
    idle = _idle_recipes(settings, ignore_index)
    try:
        recipe = idle.get_nowait()
    except queue.Empty:
        recipe = _recipe(settings, ignore_index)
    # One random stream for all changes: `set_random_seed` would start the same stream in each of them, and a horizontal
    # flip would then always come with a vertical one.
    recipe.set_random_state(generator, random.Random(int(generator.integers(2**63))))
    result = recipe(image=image, mask=label)
    idle.put(recipe)
    return result["image"], result["mask"]


@functools.cache
def _idle_recipes(settings: Augmentation, ignore_index: int) -> queue.SimpleQueue:
    """Returns the queue of recipes that no thread uses at the moment.

    A recipe has a random state, so two threads must never share one, and building it takes longer than applying it.
    Thread-local storage does not work: TensorFlow's threads lose it after each call into Python.
    """
    return queue.SimpleQueue()


def _recipe(settings: Augmentation, ignore_index: int) -> A.Compose:
    s = settings
    jitter = _NormalizedJitter if s.jitter_normalized else A.ColorJitter
    alpha = s.displacement_factor()  # Albumentations smooths noise and multiplies it by alpha
    return A.Compose(
        [
            A.RandomRotate90(p=s.rotate90),
            A.HorizontalFlip(p=s.horizontal_flip),
            A.VerticalFlip(p=s.vertical_flip),
            _Rotate(limit=s.rotate_degrees, fill_mask=ignore_index, p=s.rotate),
            _Elastic(alpha=alpha, sigma=s.elastic_smoothness, fill_mask=ignore_index, p=s.elastic),
            *([_Stain(s.stain_strength, p=s.stain)] if s.stain else []),
            jitter(s.brightness, s.contrast, s.saturation, s.hue, p=s.color_jitter),
            A.GaussianBlur(sigma_limit=(0.5, s.blur_sigma), p=s.blur),
        ]
    )


class _Rotate(A.Rotate):
    """Mirrors the image at its border; the labels are filled, as in the base class."""

    def apply(self, img, matrix, **params):
        size = img.shape[1], img.shape[0]
        return cv2.warpAffine(img, matrix[:2], size, flags=self.interpolation, borderMode=cv2.BORDER_REFLECT_101)


class _Elastic(A.ElasticTransform):
    """Mirrors the image at its border; the labels are filled, as in the base class."""

    def apply(self, img, map_x, map_y, **params):
        return cv2.remap(img, map_x, map_y, self.interpolation, borderMode=cv2.BORDER_REFLECT_101)


class _Stain(A.ImageOnlyTransform):
    """Changes the strength of each stain."""

    def __init__(self, strength: float, p: float):
        super().__init__(p=p)
        self.strength = strength

    def get_params(self):
        return {"factors": [self.py_random.uniform(1 - self.strength, 1 + self.strength) for _ in range(3)]}

    def apply(self, img, factors, **params):
        return restain(img, np.asarray(factors))


class _NormalizedJitter(A.ColorJitter):
    """Changes the image as normalized by the statistics of ImageNet, where Albumentations cuts values to 0 and 1."""

    def apply(self, img, **params):
        mean, std = (np.asarray(values, np.float32) for values in (IMAGENET.mean, IMAGENET.std))
        changed = super().apply((img / np.float32(255) - mean) / std, **params)
        return np.rint(np.clip((changed * std + mean) * 255, 0, 255)).astype(np.uint8)
