"""Visual words tell textures apart, whatever the strength of the stain."""

import jax.numpy as jnp
import numpy as np
import pytest

from bcss_jax.errors import ConfigError
from bcss_jax.pretraining import visual_words
from bcss_jax.pretraining.tiles import drawn_patches
from bcss_jax.pretraining.tiles.tiles import HeldTiles

PATCH, TILE, COUNT = 16, 64, 32
STAIN = np.array([0.65, 0.70, 0.29])  # optical density of hematoxylin in red, green and blue


@pytest.fixture(scope="module", autouse=True)
def few_words():
    small = {"WORDS": 32, "CLUSTERS": 4, "WORD_STEPS": 6, "CLUSTER_STEPS": 10}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in small.items():
            patch.setattr(visual_words, name, value)
        patch.setattr(drawn_patches, "PATCHES", 24)
        yield


def texture(dots, rng, height=TILE, width=TILE):
    """Returns a drawn pattern of horizontal stripes or of dots, 4 pixels wide, zeros and ones [height, width]."""
    cells = rng.integers(0, 2, (height // 4, width // 4 if dots else 1))
    return np.repeat(np.repeat(cells, 4, axis=0), 4 if dots else width, axis=1)


def stained(pattern, color, ground, strength=1.0):
    """Returns the RGB image of a pattern [H, W] in a color on a ground of that color, uint8 [H, W, 3]."""
    density = strength * (ground + pattern[..., None]) * color
    return np.clip(256 * np.exp(-density) - 1, 0, 255).round().astype(np.uint8)


def looks():
    """Returns how the tiles look: dots or stripes, color [COUNT, 3], density of the ground, strength of the stain."""
    rng = np.random.default_rng(0)
    colors = STAIN + rng.normal(0, 0.05, (COUNT, 3))
    return np.arange(COUNT) % 2, colors, rng.uniform(0.1, 0.5, COUNT), rng.uniform(0.7, 1.4, COUNT)


def drawn(strength=1.0):
    """Returns tiles of two textures, uint8 [COUNT, TILE, TILE, 3]."""
    rng = np.random.default_rng(0)
    return np.stack(
        [
            stained(texture(dots, rng), color, ground, strength * own)
            for dots, color, ground, own in zip(*looks(), strict=True)
        ]
    )


def learned(seed=0, patch=PATCH, images=None):
    images = drawn() if images is None else images
    return visual_words.learn_words(HeldTiles(images, [str(i) for i in range(len(images))]), patch, seed)


@pytest.fixture(scope="module")
def words(few_words):
    return learned()


def clusters_of(words, images, patch=PATCH):
    return np.asarray(visual_words.clusters_of(words, jnp.asarray(images, jnp.float32), patch))


def purity(clusters, kinds):
    """Returns the share of patches that are of the most frequent kind of their cluster."""
    counts = np.zeros((visual_words.CLUSTERS, kinds.max() + 1))
    np.add.at(counts, (clusters, kinds[:, None]), 1)
    return counts.max(1).sum() / counts.sum()


def test_clusters_tell_textures_apart_and_not_colors(words):
    dots, colors, ground, own = looks()
    clusters = clusters_of(words, drawn())
    assert purity(clusters, dots) > 0.95
    for name, values in {"color": colors[:, 0] - colors[:, 1], "ground": ground, "strength": own}.items():
        assert purity(clusters, (values > np.median(values)).astype(int)) < 0.8, name


def test_clusters_are_in_the_order_of_the_patches(words):
    rng = np.random.default_rng(1)
    both = np.concatenate([texture(False, rng), texture(True, rng)], axis=1)
    found = clusters_of(words, stained(both, STAIN, 0.3)[None]).reshape(4, 8)
    assert not set(found[:, :3].flat) & set(found[:, 5:].flat)


def test_the_strength_of_the_stain_hardly_counts(words):
    normal = clusters_of(words, drawn())
    for strength in (0.6, 1.5):
        assert np.mean(clusters_of(words, drawn(strength)) == normal) > 0.9
    assert len(np.unique(normal)) > 1


def test_a_color_that_all_pixels_share_does_not_count(words):
    rng = np.random.default_rng(1)
    patterns = [texture(dots, rng)[..., None] * STAIN for dots in (False, True) for _ in range(4)]
    grounds = [np.full(3, 0.3), np.array([0.6, 0.1, 0.3]), np.array([0.1, 0.6, 0.05])]
    found = [clusters_of(words, [256 * np.exp(-pattern - ground) - 1 for pattern in patterns]) for ground in grounds]
    assert len(np.unique(found[0])) > 1
    for other in found[1:]:
        assert np.mean(other == found[0]) > 0.97
    flat = np.broadcast_to(rng.integers(20, 256, (12, 1, 1, 3)), (12, 2 * PATCH, 2 * PATCH, 3))
    assert len(np.unique(clusters_of(words, flat))) == 1


def test_the_seed_decides(words):
    again, other = learned(), learned(seed=1)
    for name, array in words.items():
        np.testing.assert_array_equal(again[name], array)
        assert not np.array_equal(other[name], array), name


@pytest.mark.parametrize("patch", [16, 14, 8])
def test_shapes(words, patch):
    found = words if patch == PATCH else learned(patch=patch)
    empty = visual_words.empty_words()
    assert {name: (x.shape, x.dtype) for name, x in found.items()} == {
        name: (x.shape, x.dtype) for name, x in empty.items()
    }
    clusters = clusters_of(found, drawn()[:2, : 3 * patch, : 2 * patch], patch)
    assert clusters.shape == (2, 6) and clusters.dtype == np.int32
    assert clusters.min() >= 0 and clusters.max() < visual_words.CLUSTERS


def test_bags_are_those_of_squares_that_are_cut_out(few_words):
    rng, side, count = np.random.default_rng(0), visual_words.SIDE, visual_words.WORDS
    values = side * side * 3
    mean, whitening = rng.normal(0, 0.1, values), rng.normal(0, 0.1, (values, values))
    centers, image = rng.normal(size=(count, values)), rng.integers(0, 256, (5 * PATCH, 5 * PATCH, 3))
    kernel = whitening @ centers.T
    words = {
        "kernel": jnp.asarray(kernel.reshape(side, side, 3, count), jnp.float32),
        "offset": jnp.asarray(mean @ kernel, jnp.float32),
    }
    density = -np.log((image + 1) / 256)
    strengths = []
    # Squares are in the middle of strides of 4 pixels; those in the middle patch and in the patches around it count.
    starts = range(PATCH + 2 - side // 2, 4 * PATCH + 2 - side // 2, 4)
    for y in starts:
        for x in starts:
            square = density[y : y + side, x : x + side]
            square = (square - square.mean((0, 1))).ravel()
            square = square / np.sqrt(square.var() + visual_words.CONTRAST)
            fit = (square - mean) @ whitening @ centers.T
            strengths.append(np.maximum(fit - fit.mean() - fit.std(), 0))
    found = visual_words._bags(words, jnp.asarray(image[None], jnp.float32), PATCH)
    assert found.shape == (1, 5, 5, count)
    np.testing.assert_allclose(found[0, 2, 2], np.mean(strengths, axis=0), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("size", "patch", "least"), [(11, 8, 12), (15, 16, 16)])
def test_tiles_smaller_than_a_square_or_a_patch_are_refused(size, patch, least):
    with pytest.raises(ConfigError, match=f"words_weight: expected tiles of at least {least} pixels, found {size}"):
        learned(patch=patch, images=drawn()[:, :size, :size])


@pytest.mark.parametrize(("size", "patch"), [(15, 8), (16, 16)])
def test_fewer_squares_than_words_and_fewer_patches_than_clusters_do(size, patch):
    images = drawn()[1:2, :size, :size]
    assert visual_words.CLUSTERS > 1 and visual_words.WORDS > drawn_patches.PATCHES  # one patch, few squares
    words = learned(patch=patch, images=images)
    assert all(np.isfinite(array).all() for array in words.values())
    clusters = clusters_of(words, drawn()[:2, :32, :32], patch)
    assert clusters.shape == (2, (32 // patch) ** 2) and clusters.max() < visual_words.CLUSTERS


def test_blank_tiles_give_finite_words_and_one_cluster():
    tiles = HeldTiles(np.full((4, 32, 32, 3), 230, np.uint8), [str(number) for number in range(4)])
    words = visual_words.learn_words(tiles, 16, seed=0)
    assert all(np.isfinite(values).all() for values in words.values())
    assert len(np.unique(visual_words.clusters_of(words, jnp.asarray(tiles.images), 16))) == 1
