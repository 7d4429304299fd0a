"""Google's npz files: all names load, positions are resized as in scipy, and unknown names are reported."""

import json

import numpy as np
import pytest
from flax import nnx
from helpers.paths import SHARED
from helpers.small_networks import TRANSUNET_RESNET

from bcss_jax import models
from bcss_jax.errors import DataError
from bcss_jax.models.weights import google_npz
from bcss_jax.models.weights.pretrained import load_pretrained, load_torch_state, to_torch_state

NAMES = SHARED / "parity" / "r50_vit_b16_npz_keys.json"
POSITIONS = "Transformer/posembed_input/pos_embedding"


def random_arrays(shapes):
    random = np.random.RandomState(0)
    return {name: random.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def small_shapes(tokens=10):
    """Returns names and shapes of a small hybrid: one unit in each block, one transformer block with 3 heads."""
    width, features, heads, mlp, shapes = 32, 12, 3, 20, {}

    def layer(name, *shape):
        shapes.update({f"{name}/kernel": shape, f"{name}/bias": shape[-1:]})

    def norm(name, *shape):
        shapes.update({f"{name}/scale": shape, f"{name}/bias": shape})

    shapes["conv_root/kernel"] = (7, 7, 3, width)
    norm("gn_root", 1, 1, 1, width)
    inputs = width
    for block, middle in enumerate((width, 2 * width, 4 * width), 1):
        unit, outputs = f"block{block}/unit1", 4 * middle
        for conv, shape in {
            "conv1": (1, 1, inputs, middle),
            "conv2": (3, 3, middle, middle),
            "conv3": (1, 1, middle, outputs),
            "conv_proj": (1, 1, inputs, outputs),
        }.items():
            shapes[f"{unit}/{conv}/kernel"] = shape
        for gn, channels in {"gn1": middle, "gn2": middle, "gn3": outputs, "gn_proj": outputs}.items():
            norm(f"{unit}/{gn}", 1, 1, 1, channels)
        inputs = outputs
    layer("embedding", 1, 1, inputs, features)
    shapes[POSITIONS] = (1, tokens, features)
    block = "Transformer/encoderblock_0"
    norm(f"{block}/LayerNorm_0", features)
    norm(f"{block}/LayerNorm_2", features)
    for part in ("query", "key", "value"):
        name = f"{block}/MultiHeadDotProductAttention_1/{part}"
        shapes |= {f"{name}/kernel": (features, heads, features // heads), f"{name}/bias": (heads, features // heads)}
    layer(f"{block}/MultiHeadDotProductAttention_1/out", heads, features // heads, features)
    layer(f"{block}/MlpBlock_3/Dense_0", features, mlp)
    layer(f"{block}/MlpBlock_3/Dense_1", mlp, features)
    norm("Transformer/encoder_norm", features)
    layer("head", features, 7)
    layer("pre_logits", features, features)
    return shapes | {"cls": (1, 1, features)}


def small_model(image_size):
    transformer = dict(hidden_size=12, mlp_size=20, num_heads=3, num_layers=1)
    small = TRANSUNET_RESNET | transformer | dict(decoder_channels=(2, 2, 2, 2))
    return models.create("transunet", num_classes=2, image_size=image_size, **small)


def small_encoder(image_size):
    return small_model(image_size).encoder


def linen_era(arrays):
    """Returns the same arrays under the names of flax.linen."""
    renamed = {"LayerNorm_2": "LayerNorm_1", "MlpBlock_3": "MlpBlock_0", "Attention_1": "Attention_0"}
    for old, new in renamed.items():
        arrays = {name.replace(old, new): array for name, array in arrays.items()}
    return arrays


@pytest.fixture(scope="module")
def full():
    if not NAMES.is_file():
        pytest.skip(f"no list of Google's names: {NAMES.name} is missing")
    return random_arrays(json.loads(NAMES.read_text()))


def test_all_of_googles_names_load_into_the_full_model(full):
    assert len(full) == 358 and google_npz.is_google(full)
    encoder = models.create("transunet", num_classes=3).encoder
    state = google_npz.torch_state(full, (14, 14))
    assert set(state) == set(encoder.torch_entries())  # every parameter of the encoder, and nothing else
    load_torch_state(encoder, state)

    np.testing.assert_array_equal(encoder.positions[...], full[POSITIONS][:, 1:])
    # Up to the heads and GroupNorm's axes of length one, ours are Google's arrays as they are.
    block, google_block = encoder.transformer.block11, "Transformer/encoderblock_11"
    for ours, name in (
        (encoder.hybrid.root.kernel, "conv_root/kernel"),
        (encoder.hybrid.root_norm.scale, "gn_root/scale"),
        (encoder.hybrid.block3_unit9.conv2.kernel, "block3/unit9/conv2/kernel"),
        (encoder.hybrid.block2_unit1.projection.kernel, "block2/unit1/conv_proj/kernel"),
        (encoder.hybrid.block1_unit1.projection_norm.bias, "block1/unit1/gn_proj/bias"),
        (encoder.patches.kernel, "embedding/kernel"),
        (block.attention.key.kernel, f"{google_block}/MultiHeadDotProductAttention_1/key/kernel"),
        (block.attention.value.bias, f"{google_block}/MultiHeadDotProductAttention_1/value/bias"),
        (block.attention.out.kernel, f"{google_block}/MultiHeadDotProductAttention_1/out/kernel"),
        (block.dense1.kernel, f"{google_block}/MlpBlock_3/Dense_0/kernel"),
        (block.dense2.bias, f"{google_block}/MlpBlock_3/Dense_1/bias"),
        (block.attention_norm.scale, f"{google_block}/LayerNorm_0/scale"),
        (block.mlp_norm.scale, f"{google_block}/LayerNorm_2/scale"),
        (encoder.transformer.norm.bias, "Transformer/encoder_norm/bias"),
    ):
        np.testing.assert_array_equal(np.asarray(ours[...]).ravel(), full[name].ravel(), err_msg=name)


def test_old_and_new_names_give_the_same_state_with_every_encoder_parameter():
    arrays = random_arrays(small_shapes())
    one, other = (google_npz.torch_state(a, (3, 3)) for a in (arrays, linen_era(arrays)))
    assert linen_era(arrays).keys() != arrays.keys()
    assert one.keys() == other.keys()
    for name, array in one.items():
        np.testing.assert_array_equal(other[name], array)
    encoder = load_torch_state(small_encoder(48), one)
    assert one.keys() == encoder.torch_entries().keys()


def test_the_loaded_attention_equals_flax():
    arrays = random_arrays(small_shapes())
    encoder = load_torch_state(small_encoder(48), google_npz.torch_state(arrays, (3, 3)))
    theirs = nnx.MultiHeadAttention(3, 12, decode=False, rngs=nnx.Rngs(0))
    for part in ("query", "key", "value", "out"):
        name = f"Transformer/encoderblock_0/MultiHeadDotProductAttention_1/{part}"
        getattr(theirs, part).kernel[...] = arrays[f"{name}/kernel"]
        getattr(theirs, part).bias[...] = arrays[f"{name}/bias"]
    x = np.random.RandomState(1).standard_normal((2, 9, 12)).astype(np.float32)
    np.testing.assert_allclose(encoder.transformer.block0.attention(x), theirs(x), atol=2e-5, rtol=2e-5)


@pytest.mark.parametrize("grid", [(16, 16), (32, 32), (7, 28), (14, 20), (5, 9), (1, 1), (1, 14)])
def test_positions_are_resized_as_in_scipy(grid):
    ndimage = pytest.importorskip("scipy.ndimage", reason="scipy is not installed")
    table = np.random.RandomState(0).standard_normal((1, 197, 6)).astype(np.float32)
    resized = google_npz.torch_state({POSITIONS: table}, grid)["embeddings.position_embeddings"]
    zoomed = ndimage.zoom(table[0, 1:].reshape(14, 14, 6), (grid[0] / 14, grid[1] / 14, 1), order=1)
    assert resized.shape == (1, grid[0] * grid[1], 6) and resized.dtype == np.float32
    np.testing.assert_allclose(resized, zoomed.reshape(1, -1, 6), atol=1e-5)


def test_positions_of_the_same_grid_are_copied_with_or_without_a_class_token():
    table = np.random.RandomState(0).standard_normal((1, 10, 4)).astype(np.float32)
    for given in (table, table[:, 1:]):
        state = google_npz.torch_state({POSITIONS: given}, (3, 3))
        np.testing.assert_array_equal(state["embeddings.position_embeddings"], table[:, 1:])
    # A table of no square grid is left for the loader to refuse.
    assert google_npz.torch_state({POSITIONS: table[:, :8]}, (3, 3))["embeddings.position_embeddings"].shape[1] == 8


@pytest.mark.parametrize("image_size, grid", [(32, (2, 2)), ((16, 64), (1, 4))])
def test_a_file_loads_into_models_for_other_image_sizes(image_size, grid, tmp_path):
    arrays = random_arrays(small_shapes())
    np.savez(tmp_path / "small.npz", **arrays)
    model = small_model(image_size)
    head = np.array(model.head.kernel[...])
    record = load_pretrained(model, tmp_path / "small.npz")
    expected = google_npz.torch_state(arrays, grid)
    assert record["part"] == "encoder" and record["tensors"] == len(expected)
    for name, array in to_torch_state(model.encoder).items():
        np.testing.assert_array_equal(array, expected[name])
    np.testing.assert_array_equal(model.head.kernel[...], head)


def test_the_loader_lists_all_problems():
    arrays = random_arrays(small_shapes())
    arrays["block1/unit1/conv9/kernel"] = np.zeros((1, 1, 2, 2), np.float32)
    arrays["Transformer/encoderblock_0/LayerNorm_0/offset"] = np.zeros(12, np.float32)
    del arrays["gn_root/scale"]
    arrays["embedding/kernel"] = np.zeros((16, 16, 3, 12), np.float32)
    with pytest.raises(DataError) as error:
        load_torch_state(small_encoder(48), google_npz.torch_state(arrays, (3, 3)))
    for part in (
        "missing embeddings.hybrid_model.root.gn.weight (32,)",
        "LayerNorm_0/offset (12,)",
        "embeddings.patch_embeddings.weight is (12, 3, 16, 16), expected (12, 512, 1, 1)",
    ):
        assert part in str(error.value)


def test_only_googles_files_are_recognized():
    assert google_npz.is_google(small_shapes())
    assert not google_npz.is_google(["transformer.encoder.encoder_norm.weight", "head.weight", "conv1.weight"])
