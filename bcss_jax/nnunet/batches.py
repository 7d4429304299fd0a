"""Batches of patches for training and validation, which the host cuts while the devices compute."""

import concurrent.futures
from collections.abc import Generator, Sequence

import jax
import numpy as np
from jax.sharding import Mesh

from bcss_jax.nnunet import patches
from bcss_jax.nnunet.patches import Pair
from bcss_jax.training.sharding import place_batch


def padded_size(batch_size: int, mesh: Mesh) -> int:
    """Returns the batch size rounded up to a multiple of the number of devices.

    The added examples are masked and do not change the result.
    """
    return -(-batch_size // mesh.size) * mesh.size


def batches(
    cases: Sequence[patches.PatchSource],
    *,
    seed: int,
    first: int,
    last: int,
    batch_size: int,
    patch_size: Pair,
    cut_size: Pair,
    padding: int,
    mesh: Mesh,
) -> Generator[dict[str, jax.Array], None, None]:
    """Yields the batches of the steps `first` to `last - 1`.

    A batch depends only on the seed and its step. Each process cuts the examples of its own devices.

    Args:
      cases: what patches are cut from.
      seed: of the random choice of patches.
      first: step of the first batch.
      last: step after that of the last batch.
      batch_size: number of examples.
      patch_size: as in `patches.choose_patch`.
      cut_size: height and width of the images.
      padding: label of the examples that fill a batch up to a multiple of the devices.
      mesh: devices that the batch is split over.

    Yields:
      `images` float32 [N, H, W, C] and `labels` [N, H, W] on the devices.
    """
    size = padded_size(batch_size, mesh)
    share = size // jax.process_count()
    own = range(jax.process_index() * share, (jax.process_index() + 1) * share)

    def example(step, index):
        if index >= batch_size:
            channels = cases[0].data.shape[-1]
            return np.zeros((*cut_size, channels), np.float32), np.full(cut_size, padding, np.int16)
        chosen = patches.choose_patch(
            cases, seed, step, index, batch_size=batch_size, patch_size=patch_size, cut_size=cut_size
        )
        case = cases[chosen.case]
        image, labels = patches.cut_patch(case.data, case.labels, chosen.corner, cut_size)
        return image, labels.astype(np.int16)

    def batch(step):
        images, labels = zip(*(example(step, index) for index in own), strict=True)
        return {"images": np.stack(images), "labels": np.stack(labels)}

    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        following = [pool.submit(batch, step) for step in range(first, min(first + 1, last))]
        for step in range(first, last):
            ready = following.pop().result()
            if step + 1 < last:
                following.append(pool.submit(batch, step + 1))
            yield place_batch(ready, mesh)
