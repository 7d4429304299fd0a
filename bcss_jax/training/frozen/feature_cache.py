"""Keeps what an encoder that is not trained computes for an image, so that it is computed once."""

import hashlib
from collections.abc import Callable

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from bcss_jax.common.processes import print_main
from bcss_jax.data.augmentation.settings import Augmentation
from bcss_jax.data.decoded_tiles import free_memory
from bcss_jax.models.apply import ModelFunction
from bcss_jax.models.image_normalization import ImageStatistics
from bcss_jax.training.sharding import place_batch, replicated, split_over_data

# Changes after which an image hardly ever occurs a second time; turns and flips leave eight forms of it.
_CONTINUOUS = ("rotate", "elastic", "color_jitter", "blur", "stain")


def images_recur(augmentation: Augmentation) -> bool:
    """Returns whether augmented images are turns and flips of the tiles alone."""
    return not any(getattr(augmentation, name) for name in _CONTINUOUS)


def make_encode(model: nnx.Module, mesh: Mesh, statistics: ImageStatistics) -> Callable:
    """Returns the compiled `(params, model_state, images) -> features`, which the method `encode` of a model computes.

    Args:
      model: gives the structure; its arrays are not used.
      mesh: devices; the images are split over them.
      statistics: that images are normalized with.
    """
    run = ModelFunction(model, statistics)
    everywhere, split = replicated(mesh), split_over_data(mesh)
    return jax.jit(
        lambda params, model_state, images: run(params, model_state, images, train=False, method="encode")[0],
        in_shardings=(everywhere, everywhere, split),
        out_shardings=everywhere,
    )


class FeatureCache:
    """The features of the images that were encoded before, in memory of the host up to a limit.

    An image is known by its pixels, so it does not matter where it comes from or in which order. Each image is encoded
    by itself, so its features do not depend on the batch, nor on whether a run was resumed.
    """

    def __init__(self, encode: Callable, mesh: Mesh, capacity: int):
        """Keeps features of at most `capacity` bytes; `encode` and `mesh` are those of `make_encode`."""
        self._encode, self._mesh, self._free = encode, mesh, capacity
        self._kept: dict[bytes, list[np.ndarray]] = {}

    def features(self, params: dict, model_state: dict, images: np.ndarray) -> list[np.ndarray]:
        """Returns the features of images.

        Args:
          params: of the model; those of the encoder are the same in every call.
          model_state: likewise.
          images: uint8 (N, H, W, 3).

        Returns:
          What the method `encode` of the model returns, on the host; the first axis of each array is N.
        """
        names = [hashlib.blake2b(image.tobytes(), digest_size=16).digest() for image in images]
        found = {name: self._kept[name] for name in names if name in self._kept}
        missing = {name: row for row, name in enumerate(names) if name not in found}
        rows, size = list(missing.values()), self._mesh.size
        for start in range(0, len(rows), size):
            chunk = rows[start : start + size]
            chosen = images[chunk + chunk[:1] * (size - len(chunk))]
            placed = place_batch({"image": chosen}, self._mesh)["image"]
            arrays = jax.device_get(self._encode(params, model_state, placed))
            for i, row in enumerate(chunk):
                found[names[row]] = self._keep(names[row], [array[i].copy() for array in arrays])
        return [np.stack(arrays) for arrays in zip(*(found[name] for name in names), strict=True)]

    def _keep(self, name: bytes, features: list[np.ndarray]) -> list[np.ndarray]:
        size = sum(array.nbytes for array in features)
        if size <= self._free:
            self._kept[name], self._free = features, self._free - size
        return features


def cache_in_share(encode: Callable, mesh: Mesh, memory_share: float, *, training: bool) -> FeatureCache | None:
    """Returns a cache, and says how much it keeps; None if there are several processes, or it may keep nothing.

    Args:
      encode: of `make_encode`.
      mesh: devices.
      memory_share: of the free memory that it may keep.
      training: whether features of training images are kept, and not only those of validation images.
    """
    if jax.process_count() > 1 or not memory_share:
        return None
    capacity = int(memory_share * (free_memory() or 0))
    print_main(
        f"features of the encoder are computed once for each {'turn and flip of an' if training else 'validation'} "
        f"image, and kept up to {capacity / 1e9:.2f} GB (config.data.memory_share)"
    )
    return FeatureCache(encode, mesh, capacity)
