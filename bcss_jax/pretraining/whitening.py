"""A patch embedding that starts as the whitening of patches of the tiles.

Random weights see hardly more of a patch than its mean color, which varies far more between patches than what tells
tissue apart does. After whitening, all directions in which patches vary count alike, down to those of noise.
Source: Coates, Lee and Ng, "An Analysis of Single-Layer Networks in Unsupervised Feature Learning", 2011.
"""

import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from bcss_jax.models.apply import normalize
from bcss_jax.models.encoders.vision_transformer.network import VisionTransformer
from bcss_jax.models.image_normalization import ImageStatistics
from bcss_jax.pretraining.tiles.drawn_patches import drawn_patches
from bcss_jax.pretraining.tiles.tiles import Tiles

NOISE = 0.05  # variance of normalized pixels from which on a direction counts in full
SCALE = 1.5  # standard deviation of a token's values


def whiten_patch_embedding(encoder: VisionTransformer, tiles: Tiles, statistics: ImageStatistics, seed: int) -> int:
    """Replaces kernel and bias of an encoder's patch embedding.

    Where the tokens have more values than a patch has, those beyond keep their weights.

    Args:
      encoder: changed in place.
      tiles: at least as large as a patch.
      statistics: what images are normalized with.
      seed: of the choice of tiles and patches.

    Returns:
      The number of patches.

    Raises:
      DataError: a tile cannot be read.
      Preempted: a stop was requested.
    """
    patches = drawn_patches(tiles, encoder.architecture.patch, seed, "reading tiles to whiten")
    flat = np.asarray(normalize(jnp.asarray(patches), statistics)).reshape(len(patches), -1)
    mean, columns = flat.mean(0), min(encoder.architecture.width, flat.shape[1])
    variances, directions = np.linalg.eigh(np.cov(flat, rowvar=False))  # rising
    variances, directions = variances[::-1][:columns], directions[:, ::-1][:, :columns]
    kernel = SCALE * directions / np.sqrt(np.maximum(variances, 0) + NOISE)
    found = kernel.reshape(*patches.shape[1:], columns), -(mean @ kernel)
    found = multihost_utils.broadcast_one_to_all(found)  # hosts may differ in the last bits of eigenvectors
    for weights, values in zip((encoder.patch_kernel, encoder.patch_bias), found, strict=True):
        weights[...] = weights[...].at[..., :columns].set(jnp.asarray(values, weights[...].dtype))
    return len(patches)
