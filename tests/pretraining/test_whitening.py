"""The patch embedding that whitens patches of the tiles."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from bcss_jax.models.apply import normalize
from bcss_jax.models.encoders.vision_transformer.network import VisionTransformer
from bcss_jax.models.encoders.vision_transformer.presets import preset_of
from bcss_jax.models.image_normalization import IMAGENET
from bcss_jax.pretraining import whitening
from bcss_jax.pretraining.tiles import drawn_patches
from bcss_jax.pretraining.tiles.tiles import HeldTiles

SIDE = 24


def encoder_of(width):
    form = dataclasses.replace(
        preset_of("vit_tiny16").architecture, width=width, heads=2, depth=1, hidden=8, patch=4, table=2
    )
    return VisionTransformer(form, rngs=nnx.Rngs(0))


@pytest.fixture(scope="module")
def tiles():
    """Colors vary far more than the pixels of a tile do, and these more than noise."""
    rng = np.random.default_rng(0)
    colors, pixels = rng.normal(128, 30, (200, 1, 1, 3)), rng.normal(0, 20, (200, SIDE, SIDE, 1))
    return HeldTiles(np.clip(colors + pixels, 0, 255).astype(np.uint8), [str(i) for i in range(200)])


def embedded(encoder, tiles):
    """Returns what the patch embedding gives for all patches of the tiles' grid [N, width], without positions."""
    images = normalize(jnp.asarray(tiles.images), IMAGENET)
    encoder.pos_embed[...] = jnp.zeros_like(encoder.pos_embed[...])
    return np.asarray(encoder.embed(images))[:, 1:].reshape(-1, encoder.architecture.width)


def test_tokens_are_white_where_patches_vary_more_than_noise(tiles):
    encoder = encoder_of(width=16)
    before = np.linalg.eigvalsh(np.cov(embedded(encoder, tiles), rowvar=False))
    count = whitening.whiten_patch_embedding(encoder, tiles, IMAGENET, seed=0)
    assert count == 200 * drawn_patches.PATCHES
    values = embedded(encoder, tiles)
    after = np.cov(values / whitening.SCALE, rowvar=False)
    # The variance of a pixel is (20 / 255 / 0.225)^2, about 0.12 or more, in each of the 16 directions of a patch.
    assert before.max() / before.min() > 50
    assert np.abs(values.mean(0)).max() < 0.1 * whitening.SCALE
    assert np.linalg.eigvalsh(after).min() > 0.6 and np.linalg.eigvalsh(after).max() < 1.15


def test_noise_is_not_raised_to_the_strength_of_the_rest():
    noise = np.random.default_rng(0).normal(128, 1, (100, SIDE, SIDE, 3))
    tiles, encoder = HeldTiles(np.round(noise).astype(np.uint8), [str(i) for i in range(100)]), encoder_of(width=16)
    whitening.whiten_patch_embedding(encoder, tiles, IMAGENET, seed=0)
    assert embedded(encoder, tiles).std() < 0.2 * whitening.SCALE


def test_tokens_with_more_values_than_a_patch_keep_the_rest(tiles):
    encoder = encoder_of(width=52)  # a patch has 48
    kernel, bias = (np.asarray(weights[...]) for weights in (encoder.patch_kernel, encoder.patch_bias))
    whitening.whiten_patch_embedding(encoder, tiles, IMAGENET, seed=0)
    np.testing.assert_array_equal(encoder.patch_kernel[...][..., 48:], kernel[..., 48:])
    np.testing.assert_array_equal(encoder.patch_bias[...][48:], bias[48:])
    assert (np.asarray(encoder.patch_kernel[...][..., :48]) != kernel[..., :48]).any((0, 1, 2)).all()


def test_the_seed_decides(tiles):
    kernels = []
    for seed in (0, 0, 1):
        encoder = encoder_of(width=16)
        few = HeldTiles(tiles.images[:7], tiles.names[:7])  # fewer tiles than are asked for
        whitening.whiten_patch_embedding(encoder, few, IMAGENET, seed)
        kernels.append(np.asarray(encoder.patch_kernel[...]))
    np.testing.assert_array_equal(kernels[0], kernels[1])
    assert not np.array_equal(kernels[0], kernels[2])
