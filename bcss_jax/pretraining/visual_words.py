"""Visual words: what the surroundings of a patch look like, learned without a network, as a first thing to predict.

Small squares of tiles are whitened and clustered; the centers are the words. A bag says how strongly each word occurs
in a patch of the encoder and the patches around it. Bags are clustered in turn, and the cluster of its bag is what the
student tells of each patch. Squares are compared by optical density without the mean of each channel and without
contrast, so that stain and scanner hardly count.

Sources: Coates and Ng, "Learning Feature Representations with K-Means", 2012, for the words; Gidaris et al., "Learning
Representations by Predicting Bags of Visual Words", 2020 (arXiv:2002.12247), for predicting them; Caron et al., "Deep
Clustering for Unsupervised Learning of Visual Features", 2018 (arXiv:1807.05520), for clusters as classes.
"""

import contextlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from bcss_jax.common.interruption import safe_point
from bcss_jax.common.processes import is_main_process
from bcss_jax.common.progress import ProgressLine
from bcss_jax.errors import ConfigError
from bcss_jax.pretraining.tiles.drawn_patches import AT_ONCE, drawn_patches, drawn_tiles
from bcss_jax.pretraining.tiles.tiles import Tiles

SIDE = 12  # pixels of a square
WORDS = 512
CLUSTERS = 32  # of bags
AROUND = 1  # patches on each side that count for a bag
CONTRAST = 0.003  # variance of the optical density in a square that counts as none
NOISE = 0.05  # of the mean variance, added before whitening
FLOOR = 1e-6  # where tiles are blank
RARE = 0.1  # of the mean deviation of words: the least that one is divided by
WORD_STEPS, CLUSTER_STEPS = 15, 20
BAGS = 30000  # at most, of which clusters are learned

Words = dict[str, jax.Array]  # arrays of `empty_words`


def empty_words() -> Words:
    """Returns arrays in the shapes of words, which a checkpoint fills."""
    shapes = {
        "kernel": (SIDE, SIDE, 3, WORDS),
        "offset": (WORDS,),
        "mean": (WORDS,),
        "deviation": (WORDS,),
        "clusters": (CLUSTERS, WORDS),
    }
    return {name: jnp.zeros(shape) for name, shape in shapes.items()}


def learn_words(tiles: Tiles, patch: int, seed: int) -> Words:
    """Learns words, and clusters of their bags.

    Args:
      tiles: at least as large as a square and as a patch.
      patch: side of the encoder's patches in pixels.
      seed: of the choice of tiles and squares, and of the first centers.

    Raises:
      ConfigError: tiles are smaller than a square or a patch.
      DataError: a tile cannot be read.
      Preempted: a stop was requested.
    """
    rng = np.random.default_rng(seed)
    if tiles.size < max(SIDE, patch):
        raise ConfigError(
            f"config.objective.words_weight: expected tiles of at least {max(SIDE, patch)} pixels, found {tiles.size}; "
            "raise config.data.tile_size, or set the weight to 0"
        )
    squares = _density(drawn_patches(tiles, SIDE, seed, "reading tiles for visual words"))
    squares = (squares - squares.mean((1, 2), keepdims=True)).reshape(len(squares), -1)
    squares = squares / np.sqrt(squares.var(1, keepdims=True) + CONTRAST)
    mean = squares.mean(0)
    variances, directions = np.linalg.eigh(np.cov(squares, rowvar=False))
    whitening = directions / np.sqrt(np.maximum(variances, 0) + NOISE * variances.mean() + FLOOR) @ directions.T
    white = ((squares - mean) @ whitening).astype(np.float32)
    centers = _centers(white, WORDS, WORD_STEPS, rng, directions=True)
    kernel = whitening @ centers.T
    words: Words = {
        "kernel": jnp.asarray(kernel.reshape(SIDE, SIDE, 3, WORDS), jnp.float32),
        "offset": jnp.asarray(mean @ kernel, jnp.float32),
    }
    bags = _bags_of_tiles(words, tiles, patch, seed)
    bags = bags[np.sort(rng.permutation(len(bags))[:BAGS])]
    deviation = bags.std(0)
    words["mean"] = jnp.asarray(bags.mean(0))
    words["deviation"] = jnp.asarray(np.maximum(deviation, RARE * deviation.mean() + FLOOR))
    bags = np.asarray((bags - words["mean"]) / words["deviation"])
    words["clusters"] = jnp.asarray(_centers(bags, CLUSTERS, CLUSTER_STEPS, rng, directions=False))
    return multihost_utils.broadcast_one_to_all(words)  # hosts may differ in the last bits of eigenvectors


def clusters_of(words: Words, views: jax.Array, patch: int) -> jax.Array:
    """Returns the cluster of each patch, int32 (N, P), row by row.

    Args:
      words: of `learn_words`.
      views: (N, H, W, 3), RGB from 0 to 255; sides are multiples of the patch.
      patch: side of the encoder's patches in pixels.
    """
    bags = (_bags(words, views, patch) - words["mean"]) / words["deviation"]
    centers = words["clusters"]
    nearness = 2 * jnp.einsum("nrsk,ck->nrsc", bags, centers, precision="highest") - jnp.square(centers).sum(1)
    return nearness.argmax(-1).reshape(len(views), -1)


def _density(images: Any) -> Any:
    """Returns the optical density of RGB values from 0 to 255."""
    return -(jnp if isinstance(images, jax.Array) else np).log((images.astype(np.float32) + 1) / 256)


def _bags(words: Words, views: jax.Array, patch: int) -> jax.Array:
    """Returns the mean strength of the words in and around each patch, float32 (N, rows, columns, WORDS)."""
    per_side = next(count for count in (4, 3, 2, 1) if patch % count == 0)  # squares in a patch
    stride = patch // per_side
    beyond = max(SIDE - stride, 0)
    around = (beyond // 2, beyond - beyond // 2)  # squares are in the middle of their strides
    density = jnp.pad(_density(views), ((0, 0), around, around, (0, 0)), mode="symmetric")

    def convolved(x, kernel):
        how: dict[str, Any] = dict(window_strides=(stride, stride), padding="VALID", precision="highest")
        return jax.lax.conv_general_dilated(x, kernel, **how, dimension_numbers=("NHWC", "HWIO", "NHWC"))

    average = jnp.tile(jnp.eye(3) / SIDE**2, (SIDE, SIDE, 1, 1))
    mean = convolved(density, average)  # of each channel
    variance = jnp.maximum((convolved(jnp.square(density), average) - jnp.square(mean)).mean(-1, keepdims=True), 0)
    kernel = words["kernel"]
    of_mean = jnp.einsum("nhwc,ck->nhwk", mean, kernel.sum((0, 1)), precision="highest")
    strength = (convolved(density, kernel) - of_mean) / jnp.sqrt(variance + CONTRAST)
    strength = strength - words["offset"]
    # Only words that fit much better than the rest count.
    strength = jax.nn.relu(strength - strength.mean(-1, keepdims=True) - strength.std(-1, keepdims=True))
    n, rows, columns, count = strength.shape
    of_patches = strength.reshape(n, rows // per_side, per_side, columns // per_side, per_side, count).mean((2, 4))

    def summed(x):
        window = (1, 2 * AROUND + 1, 2 * AROUND + 1, 1)
        return jax.lax.reduce_window(x, 0.0, jax.lax.add, window, (1, 1, 1, 1), "SAME")

    return summed(of_patches) / summed(jnp.ones((1, *of_patches.shape[1:3], 1)))


def _centers(vectors: np.ndarray, count: int, steps: int, rng: np.random.Generator, *, directions: bool) -> np.ndarray:
    """Returns `count` centers of vectors [N, D] by k-means; centers that lose all their vectors are drawn again.

    Args:
      vectors: float32.
      count: of the centers; may be larger than N.
      steps: of the algorithm.
      rng: draws the first centers.
      directions: centers have length one, and the product with a vector says how near it is (spherical k-means).
    """

    def drawn(number):
        return vectors[rng.integers(0, len(vectors), number)]

    def finished(x):
        return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-6) if directions else x

    centers = finished(drawn(count))
    for _ in range(steps):
        safe_point()
        products = vectors @ centers.T
        nearest = (products if directions else 2 * products - np.square(centers).sum(1)).argmax(1)
        numbers = np.bincount(nearest, minlength=count)
        sums = np.zeros_like(centers)
        np.add.at(sums, nearest, vectors)
        new = sums / np.maximum(numbers, 1)[:, None]
        new[numbers == 0] = drawn(int((numbers == 0).sum()))
        centers = finished(new)
    return centers


def _bags_of_tiles(words: Words, tiles: Tiles, patch: int, seed: int) -> np.ndarray:
    """Returns the bags of all patches of evenly drawn tiles, float32 [N, WORDS]."""
    side, compiled = tiles.size // patch * patch, jax.jit(_bags, static_argnames="patch")
    numbers = drawn_tiles(tiles, np.random.default_rng(seed))[: max(2 * BAGS // (side // patch) ** 2, 1)]
    found = []
    with contextlib.closing(ProgressLine("clustering", len(numbers), enabled=is_main_process())) as line:
        for start in range(0, len(numbers), AT_ONCE):
            safe_point()
            images = tiles.read(numbers[start : start + AT_ONCE])[:, :side, :side]
            count = len(images)
            images = np.concatenate([images, np.repeat(images[:1], AT_ONCE - count, axis=0)])
            found.append(np.asarray(compiled(words, jnp.asarray(images), patch=patch))[:count])
            line.update(start + count)
    return np.concatenate(found).reshape(-1, WORDS)
