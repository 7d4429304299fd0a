"""Vision transformers segment images of any size, with the weights of any published encoder."""

import jax
import numpy as np
import pytest
from helpers.small_networks import TINY_FORM, small_vit
from safetensors.numpy import save_file

from bcss_jax import models
from bcss_jax.errors import ConfigError, DataError
from bcss_jax.models.encoders.vision_transformer import presets
from bcss_jax.models.weights.pretrained import load_pretrained, load_torch_state, to_torch_state


@pytest.mark.parametrize("decoder", ["linear", "convolutional", pytest.param("eomt", marks=pytest.mark.slow)])
def test_logits_have_the_size_of_the_images(decoder):
    model = small_vit(3, decoder=decoder, decoded_blocks=2, queries=5, query_blocks=1)
    for height, width in ((32, 32), (24, 40), (30, 17)):
        logits = model(np.zeros((2, height, width, 3), np.float32))
        assert logits.shape == (2, height, width, 3) and logits.dtype == np.float32


@pytest.mark.parametrize("decoder", ["convolutional", "eomt"])
def test_logits_of_known_features_are_the_same(decoder):
    model = small_vit(3, decoder=decoder, query_blocks=1, queries=5)
    images = np.random.default_rng(0).standard_normal((1, 30, 24, 3), np.float32)
    np.testing.assert_array_equal(model(images, encoded=model.encode(images)), model(images))


def test_the_semantic_map_of_queries_is_the_softmax_of_their_logits():
    model = small_vit(3, decoder="eomt", queries=20, query_blocks=2)
    images = np.random.default_rng(0).standard_normal((2, 32, 24, 3), np.float32)
    (queries,) = model._queries(images, model.encode(images), masked=False)
    masks = jax.image.resize(queries.masks, (2, 20, 32, 24), "linear", antialias=False)
    classes = jax.nn.softmax(queries.classes)[..., :-1]
    whole = np.einsum("nqc,nqhw->nhwc", classes, jax.nn.sigmoid(masks))
    np.testing.assert_allclose(queries.semantic(32, 24), whole, rtol=1e-5)
    expected = whole / whole.sum(-1, keepdims=True)
    np.testing.assert_allclose(jax.nn.softmax(model(images)), expected, atol=1e-5)


def test_pixels_beyond_the_last_patch_change_nothing_else():
    model = small_vit(3)
    image = np.random.default_rng(0).standard_normal((1, 30, 24, 3), np.float32)
    padded = np.pad(image, ((0, 0), (0, 2), (0, 0), (0, 0)), mode="edge")
    np.testing.assert_array_equal(model(image), model(padded)[:, :30])


def test_the_file_of_an_encoder_is_loaded_with_its_license(tmp_path):
    model, other = small_vit(3, seed=1), small_vit(3, seed=2)
    state = {name.replace("register_tokens", "reg_token"): a for name, a in to_torch_state(other.encoder).items()}
    save_file(state | {"head.weight": np.zeros((2, 2), np.float32)}, tmp_path / "encoder.safetensors")
    head = np.asarray(model.decoder.head.kernel[...])
    known = load_pretrained(model, tmp_path / "encoder.safetensors")
    assert known["part"] == "encoder" and known["passed_over"] == ["head.weight"] and known["license"] == ""
    np.testing.assert_array_equal(model.decoder.head.kernel[...], head)
    for (name, a), b in zip(to_torch_state(model.encoder).items(), to_torch_state(other.encoder).values(), strict=True):
        np.testing.assert_array_equal(a, b, err_msg=name)


def test_a_file_of_the_whole_network_is_loaded(tmp_path):
    model, other = small_vit(3, seed=1), small_vit(3, seed=2)
    save_file(to_torch_state(other), tmp_path / "model.safetensors")
    assert load_pretrained(model, tmp_path / "model.safetensors")["part"] == "model"
    image = np.random.default_rng(0).standard_normal((1, 32, 32, 3), np.float32)
    np.testing.assert_array_equal(model(image), other(image))
    load_torch_state(small_vit(3), to_torch_state(other))


def test_the_file_of_another_encoder_is_refused(tmp_path):
    model = small_vit(3)
    state = to_torch_state(model.encoder)
    del state["register_tokens"]
    save_file(state, tmp_path / "encoder.safetensors")
    with pytest.raises(DataError, match=r"encoder.safetensors: .*registers is 0, expected 1"):
        load_pretrained(model, tmp_path / "encoder.safetensors")


def test_drop_path_depends_on_the_example_alone():
    model = small_vit(3, drop_path=0.9)
    image = np.random.default_rng(0).standard_normal((1, 32, 32, 3), np.float32)
    quiet = model(image)
    model.encoder.train()  # BatchNorm of the decoder stays as it is
    keys = jax.random.split(jax.random.key(0), 8)
    dropped = model(np.repeat(image, 8, 0), keys)
    alone = model(image, keys[5:6])
    np.testing.assert_allclose(dropped[5:6], alone, atol=1e-6)
    assert not np.allclose(dropped[0], quiet[0]) or not np.allclose(dropped[1], quiet[0])
    with pytest.raises(ValueError, match="dropout_keys"):
        model(image)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(encoder="gigapath"), "did you mean .*gigapath"),
        (dict(encoder="vit_tiny16", decoder="unet"), "decoder must be one of"),
        (dict(encoder="vit_tiny16", decoded_blocks=13), "decoded_blocks"),
        (dict(encoder="vit_tiny16", decoder="eomt", query_blocks=13), "query_blocks"),
        (dict(encoder="vit_tiny16", decoder="eomt", queries=2), "2 queries cannot stand for 3 classes"),
        (dict(encoder="dinov3_vits16", table=3), "rotary positions and no table"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(ConfigError, match=message):
        models.create("vit", num_classes=3, **arguments)


def test_images_are_normalized_as_for_the_encoder():
    assert models.image_statistics("vit", encoder="h_optimus_0").mean == (0.707223, 0.578729, 0.703617)
    assert models.image_statistics("vit") == presets.PRESETS["gigapath_flash"].statistics
    assert TINY_FORM.prefix == 2
