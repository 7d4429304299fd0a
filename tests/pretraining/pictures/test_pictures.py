"""Pictures show what they say: attention relative to equal attention, components of all tiles, curves with gaps."""

import numpy as np
import pytest
from flax import nnx
from PIL import Image

from bcss_jax.models.encoders.vision_transformer.architecture import Architecture
from bcss_jax.models.encoders.vision_transformer.network import VisionTransformer
from bcss_jax.models.image_normalization import IMAGENET
from bcss_jax.pretraining.pictures.components import find_components, glass_patches
from bcss_jax.pretraining.pictures.curves import curves
from bcss_jax.pretraining.pictures.tile_encoder import TileEncoder
from bcss_jax.pretraining.pictures.write_pictures import write_pictures
from bcss_jax.pretraining.tiles.tiles import HeldTiles

IMAGES = np.random.default_rng(0).integers(60, 200, (5, 20, 20, 3), np.uint8)


@pytest.fixture(scope="module")
def network():
    return VisionTransformer(Architecture(12, 1, 3, 4, 24, registers=2, table=4), rngs=nnx.Rngs(0))


def test_features_and_attention_of_tiles(network):
    encoder = TileEncoder(network, IMAGENET, batch_size=2)
    normalized = ((IMAGES / 255 - IMAGENET.mean) / np.array(IMAGENET.std)).astype(np.float32)[:, :16, :16]
    features, attention = nnx.jit(lambda network, x: (network(x).patches, network.class_attention(x)))(
        network, normalized
    )
    found = encoder.patches(IMAGES[:, :19, :18])  # three rows and two columns are no whole patch
    assert found.shape == (5, 4, 4, 12) and np.abs(found - features).max() < 1e-4
    found = encoder.attention(IMAGES[:, :19, :18])
    assert found.shape == (5, 3, 4, 4)
    assert np.abs(found - np.asarray(attention)[:, :, 3:].reshape(5, 3, 4, 4) * 16).max() < 1e-3


def test_components_are_the_directions_of_most_variance():
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.normal(size=(6, 6)))[0]
    features = (rng.normal(size=(4000, 6)) * [9, 6, 3, 1, 0.5, 0.1] @ basis + 5).astype(np.float32)
    found = find_components(features)
    assert np.allclose(found.variance, np.array([81, 36, 9]) / 127.26, atol=0.02)
    for direction, expected in zip(found.directions.T, basis, strict=False):
        assert abs(direction @ expected) > 0.999
        assert direction[np.abs(direction).argmax()] > 0
    colors = found.colors(features)
    assert colors.dtype == np.uint8 and [round(x) for x in np.percentile(colors[:, 0], [1, 99])] == [0, 255]
    assert np.array_equal(find_components(features[::-1]).colors(features), colors)
    assert "(65 %, 27 %, 7 % of their variance)" in found.legend


def test_glass_is_found_by_patch():
    images = IMAGES[:1, :16, :16].copy()
    images[0, 4:8, 8:12] = 240
    glass = glass_patches(images, 4)
    assert glass.sum() == 1 and glass[0, 1, 2]


def test_curves_leave_gaps_and_draw_limits():
    rows = [{"step": 50 * i, "loss": 8.0 - i, "knn_accuracy": 0.5 if i == 2 else None} for i in (1, 2, 3)]
    figure = curves(rows, "a run", prototypes=64, features=16, chance=0.6)
    panels = figure.axes
    assert [len(axes.get_lines()) for axes in panels] == [1, 0, 0, 0, 0, 2]
    assert panels[5].get_lines()[0].get_xydata().tolist() == [[100, 0.5]]
    assert panels[1].texts[0].get_text() == "not measured"
    with pytest.raises(ValueError, match="no epoch"):
        curves([], "a run")


def test_pictures_are_written(network, tmp_path):
    tiles = HeldTiles(IMAGES, [f"tile {i}" for i in range(5)])
    paths = write_pictures(tmp_path, network, IMAGENET, tiles, name="a ViT")
    assert [path.name for path in paths] == ["attention.png", "components.png"]
    for path in paths:
        assert np.asarray(Image.open(path)).std() > 10


def test_tiles_of_glass_alone_are_drawn_too(network, tmp_path):
    tiles = HeldTiles(np.full((2, 16, 16, 3), 245, np.uint8), ["a", "b"])
    assert len(write_pictures(tmp_path, network, IMAGENET, tiles, name="a ViT")) == 2
