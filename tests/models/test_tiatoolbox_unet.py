"""TIAToolbox's U-Net: parity with the reference, enlarged probabilities, sizes, files."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers.references import normal, reference_case

from bcss_jax import models
from bcss_jax.errors import ConfigError, DataError
from bcss_jax.models.apply import ModelFunction, normalize, split_model
from bcss_jax.models.encoders.resnet import ResNet
from bcss_jax.models.tiatoolbox_unet import TIAToolboxUNet, enlarge_log_probabilities
from bcss_jax.models.weights.pretrained import load_torch_state, to_torch_state

SMALL = functools.partial(TIAToolboxUNet, 2, encoder=functools.partial(ResNet, (1, 1, 1, 1), False))


def test_logits_and_probabilities_match_the_reference():
    entry, state, image, expected = reference_case("tiatoolbox_unet_bcss")
    pixels = np.clip(np.round(128 + 60 * image), 0, 255).astype(np.uint8)
    model = models.create("tiatoolbox_unet", num_classes=5, decoder_kernels=(3, 3))
    fully_connected = sum(array.size for name, array in state.items() if name.startswith("backbone.fc."))
    count = sum(p.size for p in jax.tree.leaves(nnx.state(model, nnx.Param)))
    assert count + fully_connected == entry["n_params"]
    load_torch_state(model, state)
    function = ModelFunction(model, models.image_statistics("tiatoolbox_unet"))
    _, params, model_state = split_model(model)
    with jax.default_matmul_precision("highest"):
        logits = nnx.jit(lambda m, x: m(x))(model, pixels.astype(np.float32))
        run = jax.jit(lambda *arguments: jax.nn.softmax(function(*arguments, train=False)[0]))
        probabilities = run(params, model_state, pixels)
    value = expected["logits"]
    assert np.abs(logits.transpose(0, 3, 1, 2) - value).max() < 3e-4 * value.std()
    assert probabilities.shape == (*pixels.shape[:3], 5)
    assert np.abs(probabilities[:, 32:-32, 32:-32] - expected["probabilities_nhwc"]).max() < 3e-4


def test_values_from_0_to_255_enter_the_network_unchanged():
    pixels = np.arange(256, dtype=np.uint8).repeat(3).reshape(1, 16, 16, 3)
    statistics = models.image_statistics("tiatoolbox_unet")
    assert statistics is not None
    np.testing.assert_array_equal(jax.jit(lambda x: normalize(x, statistics))(pixels), pixels.astype(np.float32))
    assert models.image_statistics("unet") is None and models.image_statistics("no such model") is None


def test_enlarged_probabilities_are_bilinear_and_do_not_underflow():
    logits = 3 * normal(0, 2, 5, 4, 3)
    enlarged = enlarge_log_probabilities(jax.nn.log_softmax(logits))
    wanted = jax.image.resize(jax.nn.softmax(logits), (2, 10, 8, 3), "bilinear")
    np.testing.assert_allclose(np.exp(enlarged), wanted, atol=2e-6)
    confident = enlarge_log_probabilities(jax.nn.log_softmax(200 * normal(0, 1, 5, 4, 3)))
    assert np.isfinite(confident).all() and confident.min() < -200
    broken = np.asarray(jax.nn.log_softmax(logits)).copy()
    broken[0, 0, 0, 0] = np.nan
    assert np.isnan(enlarge_log_probabilities(broken)[0, :3, :3, 0]).all()


@pytest.mark.parametrize("kernels, positions", [((3,), (0, 2)), ((3, 3), (0, 2, 3, 5)), ((1, 5), (0, 2, 3, 5))])
def test_names_and_shapes_of_variants(kernels, positions):
    model = nnx.eval_shape(lambda: SMALL(decoder_kernels=kernels))
    names = model.torch_entries()
    assert {int(name.split(".")[2]) for name in names if name.startswith("uplist.3.")} == set(positions)
    for kernel, position in zip(kernels, positions[1::2], strict=True):
        variable, layout = names[f"uplist.0.{position}.weight"]
        assert layout.torch_shape(variable.shape)[2:] == (kernel, kernel)
    traced = jax.eval_shape(
        lambda x: SMALL(decoder_kernels=kernels)(x), jax.ShapeDtypeStruct((2, 64, 96, 3), np.float32)
    )
    assert traced.shape == (2, 32, 48, 2)


def test_files_with_classifier_constant_and_counters_load_and_other_constants_do_not():
    one, other = SMALL(seed=1), SMALL(seed=2)
    state = to_torch_state(one) | {
        "backbone.fc.weight": np.zeros((1000, 512), np.float32),
        "backbone.fc.bias": np.zeros(1000, np.float32),
        "backbone.bn1.num_batches_tracked": np.int64(3),
        "upsample2x.unpool_mat": np.ones((2, 2), np.float32),
    }
    load_torch_state(other, {f"module.{name}": array for name, array in state.items()})
    for a, b in zip(jax.tree.leaves(nnx.state(one)), jax.tree.leaves(nnx.state(other)), strict=True):
        np.testing.assert_array_equal(a, b)
    with pytest.raises(DataError, match=r"1 problem\(s\): unknown upsample2x.unpool_mat \(2, 2\)"):
        load_torch_state(other, state | {"upsample2x.unpool_mat": np.full((2, 2), 2.0, np.float32)})


def test_other_sizes_and_arguments_are_refused():
    model = nnx.eval_shape(SMALL)
    with pytest.raises(ConfigError, match="64x65 pixels are not multiples of 32; use images of 64x96"):
        jax.eval_shape(model, jax.ShapeDtypeStruct((1, 64, 65, 3), jnp.float32))
    for kernels in ((), (0,), (2,), 3, (3, "3")):
        with pytest.raises(ConfigError, match="decoder_kernels must be"):
            models.create("tiatoolbox_unet", num_classes=5, decoder_kernels=kernels)
