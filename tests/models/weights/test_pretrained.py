"""Pretrained weights: parity with the reference, errors, and export."""

import functools
import hashlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers.references import reference_case

from bcss_jax import models
from bcss_jax.errors import DataError
from bcss_jax.models.encoder_unet import EncoderUNet
from bcss_jax.models.encoders.densenet import DenseNet
from bcss_jax.models.encoders.resnet import ResNet
from bcss_jax.models.weights.pretrained import load_pretrained, load_torch_state, to_torch_state
from bcss_jax.models.weights.torch_layout import SAME


@pytest.mark.parametrize(
    "case, kwargs", [("unet_milesial_64", {}), ("unet_milesial_bilinear", {"bilinear": True})], ids=lambda v: str(v)
)
def test_logits_of_unet_match_the_reference(case, kwargs):
    entry, state, image, expected = reference_case(case)
    model = models.create("unet", num_classes=3, **kwargs)
    assert sum(p.size for p in jax.tree.leaves(nnx.state(model, nnx.Param))) == entry["n_params"]

    load_torch_state(model, state)
    model.eval()
    with jax.default_matmul_precision("highest"):
        logits = np.asarray(nnx.jit(lambda m, x: m(x))(model, image)).transpose(0, 3, 1, 2)
    expected = expected["out0"]
    assert np.abs(logits - expected).max() / expected.std() < 3e-4


@pytest.mark.parametrize("bilinear", [False, True])
def test_state_survives_export_and_import(bilinear):
    one, other = (models.create("unet", num_classes=2, width=4, depth=2, bilinear=bilinear, seed=s) for s in (1, 2))
    state = to_torch_state(one)
    load_torch_state(other, state | {"inc.double_conv.1.num_batches_tracked": np.array(3)})
    for a, b in zip(jax.tree.leaves(nnx.state(one)), jax.tree.leaves(nnx.state(other)), strict=True):
        np.testing.assert_array_equal(a, b)


def test_one_error_lists_all_problems():
    model = models.create("unet", num_classes=2, width=4, depth=1)
    state = to_torch_state(model)
    before = np.array(model.outc.bias[...])
    del state["inc.double_conv.0.weight"]
    state["outc.conv.weight"] = np.zeros((5, 4, 1, 1), np.float32)
    state["outc.conv.bias"] = np.zeros(2, np.float32)
    state["n_averaged"] = np.zeros((), np.float32)
    with pytest.raises(DataError) as error:
        load_torch_state(model, state)
    message = str(error.value)
    assert "\n" not in message
    for part in (
        "missing inc.double_conv.0.weight (4, 3, 3, 3)", "unknown n_averaged ()",
        "outc.conv.weight is (5, 4, 1, 1), expected (2, 4, 1, 1)",
    ):  # fmt: skip
        assert part in message
    np.testing.assert_array_equal(model.outc.bias[...], before)


def small_unet(seed=0, blocks=(1, 1, 1, 1), num_classes=3):
    encoder = functools.partial(ResNet, blocks, False)
    return EncoderUNet(num_classes, encoder=encoder, seed=seed)


def encoder_file(seed=1):
    """Returns the encoder of another network as in a weight file of torchvision."""
    state = to_torch_state(small_unet(seed).encoder)
    counters = {
        name.replace("running_mean", "num_batches_tracked"): np.array(7) for name in state if "running_mean" in name
    }
    return state, counters, {"fc.weight": np.zeros((10, 512), np.float32), "fc.bias": np.zeros(10, np.float32)}


def save(path, arrays):
    np.savez(path, **arrays)
    return path


@pytest.mark.parametrize("prefix", ("", "encoder.", "module.", "backbone.", "module.encoder."))
def test_an_encoder_gets_its_weights_and_the_decoder_does_not_change(tmp_path, prefix):
    state, counters, classifier = encoder_file()
    path = save(tmp_path / "w.npz", {prefix + name: array for name, array in (state | counters | classifier).items()})
    model = small_unet()
    head = np.array(model.head.kernel[...])
    record = load_pretrained(model, path)
    assert record["file"] == "w.npz" and record["part"] == "encoder" and record["tensors"] == len(state | counters)
    assert record["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert sorted(record["passed_over"]) == ["fc.bias", "fc.weight"]
    for name, array in to_torch_state(model.encoder).items():
        np.testing.assert_array_equal(array, state[name])
    np.testing.assert_array_equal(model.head.kernel[...], head)


def test_classifier_and_counters_may_be_missing(tmp_path):
    assert load_pretrained(small_unet(), save(tmp_path / "w.npz", encoder_file()[0]))["passed_over"] == []


@pytest.mark.parametrize("prefix", ("", "module.", "model."))
def test_weights_of_the_whole_network_are_loaded_completely(tmp_path, prefix):
    state = to_torch_state(small_unet(1))
    model = small_unet()
    record = load_pretrained(model, save(tmp_path / "w.npz", {prefix + name: a for name, a in state.items()}))
    assert record["part"] == "model"
    for name, array in to_torch_state(model).items():
        np.testing.assert_array_equal(array, state[name])


def test_a_model_without_an_encoder_loads_weights_of_the_whole_network(tmp_path):
    one, other = (models.create("unet", num_classes=2, width=4, depth=1, seed=s) for s in (1, 2))
    assert load_pretrained(other, save(tmp_path / "w.npz", to_torch_state(one)))["part"] == "model"
    np.testing.assert_array_equal(other.outc.kernel[...], one.outc.kernel[...])


def test_problems_are_listed_with_the_file_and_nothing_changes(tmp_path):
    state, _, _ = encoder_file()
    del state["layer3.0.bn2.weight"]
    state["conv1.weight"] = state["conv1.weight"][:, :1]
    state["layer9.0.conv1.weight"] = np.zeros((2, 3), np.float32)
    model = small_unet()
    before = to_torch_state(model)
    path = save(tmp_path / "w.npz", state)
    with pytest.raises(DataError) as error:
        load_pretrained(model, path)
    message = str(error.value)
    assert "\n" not in message and str(path) in message
    for part in (
        "missing layer3.0.bn2.weight (256,)", "unknown layer9.0.conv1.weight (2, 3)",
        "conv1.weight is (64, 1, 7, 7), expected (64, 3, 7, 7)",
    ):  # fmt: skip
        assert part in message
    for name, array in to_torch_state(model).items():
        np.testing.assert_array_equal(array, before[name])


def test_a_long_list_of_problems_is_shortened(tmp_path):
    deeper = to_torch_state(small_unet(blocks=(2, 2, 2, 2)).encoder)
    with pytest.raises(DataError, match=r"unknown layer1\.1\.conv1.weight.* and \d+ more"):
        load_pretrained(small_unet(), save(tmp_path / "w.npz", deeper))


def test_googles_weights_fit_no_other_network(tmp_path):
    path = save(tmp_path / "w.npz", {"Transformer/encoder_norm/bias": np.zeros(3)})
    with pytest.raises(DataError, match="fit transunet, not EncoderUNet"):
        load_pretrained(small_unet(), path)


class TwoNames(nnx.Module):
    """A module with a tensor that the reference lists twice."""

    def __init__(self):
        self.kernel = nnx.Param(jnp.zeros(2))

    def torch_entries(self):
        return {"conv.weight": (self.kernel, SAME), "copy.weight": (self.kernel, SAME)}


def test_a_tensor_with_several_names_needs_one_and_they_must_agree():
    values = np.float32([1, 2])
    for names in (["conv.weight"], ["copy.weight"], ["conv.weight", "copy.weight"]):
        model = load_torch_state(TwoNames(), dict.fromkeys(names, values))
        assert to_torch_state(model).keys() == {"conv.weight", "copy.weight"}
        np.testing.assert_array_equal(model.kernel[...], values)
    with pytest.raises(DataError, match="copy.weight differs from its copy conv.weight"):
        load_torch_state(TwoNames(), {"conv.weight": values, "copy.weight": values + 1})
    with pytest.raises(DataError, match="missing conv.weight"):
        load_torch_state(TwoNames(), {})


@pytest.mark.parametrize("prefix", ("features.", "", "module.features.", "encoder.features."))
def test_both_namings_of_densenets_are_loaded(prefix):
    one, other = (DenseNet(4, (1, 2), 8, 3, dtype=jnp.float32, rngs=nnx.Rngs(seed)) for seed in (0, 1))
    state = to_torch_state(one)
    old = {re.sub(r"(denselayer\d\.(?:norm|conv))(\d)", r"\1.\2", name): array for name, array in state.items()}
    assert "features.denseblock2.denselayer2.norm.1.weight" in old
    load_torch_state(other, {name.replace("features.", prefix, 1): array for name, array in old.items()})
    for name, array in to_torch_state(other).items():
        np.testing.assert_array_equal(array, state[name])
