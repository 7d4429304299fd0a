"""SAM with a token for each class segments images of any size, from the weights of SAM or of a plain transformer."""

import unittest.mock

import jax
import numpy as np
import pytest
from flax import nnx
from helpers.small_networks import SAM2_FORM, SAM_DECODER, SAM_FORM, SAM_FORMS, small_sam
from safetensors.numpy import save_file

from bcss_jax import models
from bcss_jax.errors import ConfigError, DataError
from bcss_jax.models.encoders.vision_transformer.architecture import Architecture
from bcss_jax.models.encoders.vision_transformer.network import VisionTransformer
from bcss_jax.models.encoders.vision_transformer.presets import PRESETS, Preset
from bcss_jax.models.image_normalization import IMAGENET, ImageStatistics
from bcss_jax.models.sam.presets import PRESETS as SAM_PRESETS
from bcss_jax.models.sam.sam import Sam
from bcss_jax.models.sam.sam2 import Sam2
from bcss_jax.models.weights.pretrained import load_pretrained, to_torch_state

PLAIN = Architecture(16, 2, 2, 8, 24, layer_scale=True, table=4)
STATISTICS = ImageStatistics((0.7, 0.5, 0.6), (0.2, 0.25, 0.2))


@pytest.fixture(autouse=True)
def small_presets(monkeypatch):
    for name, form in SAM_FORMS.items():
        monkeypatch.setitem(SAM_PRESETS, name, form)
    monkeypatch.setitem(PRESETS, "plain", Preset(PLAIN, STATISTICS, "MIT"))


@nnx.jit
def logits_of(model, images, encoded=None):
    return model(images, encoded)


@nnx.jit
def trunk_of(sam, images):
    return sam.image_encoder.trunk(images)


@nnx.jit
def encoded_by(model, images):
    return model.encode(images)


def images(n, height, width, seed=0):
    return np.random.default_rng(seed).standard_normal((n, height, width, 3), np.float32)


def sam_file(path, kind=Sam, form=SAM_FORM, **size):
    """Writes random weights of a SAM with prompts and returns it."""
    model = kind(form, SAM_DECODER, seed=3, **size)
    save_file(to_torch_state(model), path)
    return model


@pytest.mark.parametrize("encoder", ["tiny", pytest.param("tiny2", marks=pytest.mark.slow)])
def test_logits_have_the_size_of_the_images(encoder):
    logits = logits_of(small_sam(3, encoder=encoder), images(2, 30, 17))
    assert logits.shape == (2, 30, 17, 3) and logits.dtype == np.float32


@pytest.mark.slow
def test_logits_of_known_features_are_the_same():
    model = small_sam(3)
    x = images(2, 30, 17)
    np.testing.assert_allclose(logits_of(model, x, encoded_by(model, x)), logits_of(model, x), atol=1e-5)


@pytest.mark.slow
def test_enlarged_images_have_finer_maps():
    model = small_sam(2, enlarge=2)
    assert encoded_by(model, images(1, 20, 32))[0].shape == (1, 5, 8, 16)
    assert logits_of(model, images(1, 19, 32)).shape == (1, 19, 32, 2)


@pytest.mark.parametrize(
    ("encoder", "kind", "form"),
    [("tiny", Sam, SAM_FORM), pytest.param("tiny2", Sam2, SAM2_FORM, marks=pytest.mark.slow)],
)
def test_the_file_of_a_sam_is_loaded_without_prompts_and_masks(tmp_path, encoder, kind, form):
    sam = sam_file(tmp_path / "sam.safetensors", kind, form, image_size=32)
    model = small_sam(3, encoder=encoder, seed=1)
    tokens = np.asarray(model.decoder.mask_tokens[...])
    known = load_pretrained(model, tmp_path / "sam.safetensors")
    prefix = "" if kind is Sam else "sam_"
    assert known["part"] == "model" and f"{prefix}prompt_encoder.point_embeddings.0.weight" in known["passed_over"]
    assert known["license"] == "Apache-2.0" and known["notes"] == []
    np.testing.assert_array_equal(model.decoder.mask_tokens[...], tokens)
    x = images(1, 32, 32)
    for one, other in zip(encoded_by(model, x), trunk_of(sam, x), strict=True):
        np.testing.assert_array_equal(one, other)
    one, other = (dict(to_torch_state(each)) for each in (model, sam))
    names = one.keys() - {name for name in one if "mask_tokens" in name or "hypernetworks" in name}
    assert names <= other.keys() and all(np.array_equal(one[name], other[name]) for name in names)


def test_a_sam_of_another_size_has_its_positions_resized(tmp_path):
    form = dict(vars(SAM_FORM)) | {"table": 6}
    sam_file(tmp_path / "sam.safetensors", form=type(SAM_FORM)(**form))
    model = small_sam(3)
    known = load_pretrained(model, tmp_path / "sam.safetensors")
    assert known["notes"] == ["positions were resized from 6x6 to 4x4"] and "license" not in known


def test_a_plain_transformer_computes_the_same_without_its_class_token(tmp_path):
    plain = VisionTransformer(PLAIN, rngs=nnx.Rngs(4))
    for block in plain.blocks:  # scales begin as one
        block.scale1[...] = np.linspace(0.5, 1.5, 16)
        block.scale2[...] = np.linspace(1.5, 0.5, 16)
    save_file(to_torch_state(plain), tmp_path / "plain.safetensors")
    model = small_sam(3, encoder="plain")
    known = load_pretrained(model, tmp_path / "plain.safetensors")
    assert known["part"] == "encoder" and known["license"] == "MIT" and "cls_token" in known["passed_over"]
    pixels = np.random.default_rng(0).random((2, 32, 32, 3), np.float32)
    x = plain.embed((pixels - STATISTICS.mean) / np.array(STATISTICS.std, np.float32))[:, 1:]
    for block in plain.blocks:
        x = block(x, None)
    (found,) = encoded_by(model, ((pixels - IMAGENET.mean) / np.array(IMAGENET.std)).astype(np.float32))
    np.testing.assert_allclose(found.reshape(x.shape), x, atol=2e-5)


def test_a_file_of_the_network_itself_is_loaded_whole(tmp_path):
    model, other = small_sam(3, seed=1), small_sam(3, seed=2)
    save_file(to_torch_state(other), tmp_path / "model.safetensors")
    load_pretrained(model, tmp_path / "model.safetensors")
    np.testing.assert_array_equal(logits_of(model, images(2, 30, 17)), logits_of(other, images(2, 30, 17)))
    with pytest.raises(DataError, match="mask_tokens.weight is \\(3, 16\\), expected \\(4, 16\\)"):
        load_pretrained(small_sam(4), tmp_path / "model.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize("encoder", ["tiny", "tiny2"])
def test_merged_adapters_compute_the_same(encoder):
    model = small_sam(2, encoder=encoder, lora_rank=2, lora_on="qkv,proj,fc1,fc2")
    x = images(1, 32, 32)
    before = logits_of(model, x)
    np.testing.assert_allclose(logits_of(small_sam(2, encoder=encoder), x), before, atol=1e-5)
    for block in model.adapters.blocks:
        for product in (block.qkv, block.proj, block.dense1, block.dense2):
            product.b[...] = jax.random.normal(jax.random.key(0), product.b.shape)
    after = logits_of(model, x)
    assert not np.allclose(after, before, atol=1e-2)
    np.testing.assert_allclose(logits_of(model.merged(), x), after, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(encoder="sam_vit_x"), "did you mean .*sam_vit_"),
        (dict(encoder="gigapath_flash"), "gigapath_flash has a SwiGLU, which SAM's encoder has no place for"),
        (dict(encoder="dinov3_vits16"), "registers and rotary positions"),
        (dict(encoder="vit_tiny16", enlarge=0), "enlarge must be a positive integer"),
        (dict(encoder="vit_tiny16", lora_rank=2, lora_on="w12"), "some of qkv, proj, fc1, fc2"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(ConfigError, match=message):
        models.create("sam", num_classes=3, **arguments)


@pytest.mark.parametrize(
    ("encoder", "write", "message"),
    [
        ("sam_vit_b", lambda path: sam_file(path), "found those of tiny; use --config.encoder=tiny"),
        ("tiny2", lambda path: sam_file(path), "found those of tiny"),
        ("tiny", lambda path: save_file({"cls_token": np.zeros((1, 1, 16), np.float32)}, path), "expected the weights"),
        (
            "plain",
            lambda path: save_file({"blocks.0.x": np.zeros(3, np.float32)}, path),
            "not the weights of a vision transformer",
        ),
    ],
)
def test_the_file_of_another_network_is_refused(tmp_path, encoder, write, message):
    write(tmp_path / "weights.safetensors")
    with unittest.mock.patch.dict(SAM_PRESETS, {"sam_vit_b": type(SAM_FORM)(**{**vars(SAM_FORM), "width": 32})}):
        model = small_sam(3, encoder=encoder)
    with pytest.raises(DataError, match=message):
        load_pretrained(model, tmp_path / "weights.safetensors")
