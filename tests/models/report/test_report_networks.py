"""Networks of the report's own code: parity with its outputs, sizes, and what images they take."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers.references import normal, reference_case

from bcss_jax import models
from bcss_jax.errors import ConfigError
from bcss_jax.models.blocks import layers, resampling
from bcss_jax.models.weights.pretrained import load_torch_state

CASES = {
    "report_unet": {"width": 32},
    "report_transunet": {"image_size": 320, "hidden_size": 48, "num_layers": 2, "num_heads": 4},
    "report_dense_unet": {"growth": 8, "layers": (2,) * 5, "init_width": 16},
}


def count(model):
    return sum(p.size for p in jax.tree.leaves(nnx.state(model, nnx.Param)))


@pytest.mark.parametrize("name", CASES)
def test_logits_match_the_code_of_the_report(name):
    entry, state, image, expected = reference_case(name)
    model = models.create(name, num_classes=3, **CASES[name])
    assert count(model) == entry["n_params"]
    load_torch_state(model, state)
    with jax.default_matmul_precision("highest"):
        logits = nnx.jit(lambda m, x: m(x))(model, image)
    assert logits.shape == (*image.shape[:3], 3)
    every, value = entry["outputs"]["out0"]["every"], expected["out0"]
    actual = logits.transpose(0, 3, 1, 2)[..., ::every, ::every]
    assert np.abs(actual - value).max() < 3e-4 * value.std()


def test_parameter_counts_at_full_size():
    found = {name: count(nnx.eval_shape(lambda name=name: models.create(name, num_classes=3))) for name in CASES}
    # 99,413,283 is the number that the code's TransUNet has for 320 pixels.
    assert found == {"report_unet": 5_501_091, "report_transunet": 99_413_283, "report_dense_unet": 7_019_584}


@pytest.mark.parametrize(
    ("name", "arguments"),
    [("report_unet", {}), ("report_transunet", {"image_size": 224}), ("report_dense_unet", {})],
)
def test_the_tiles_of_224_pixels_get_logits_of_their_size(name, arguments):
    images = jax.ShapeDtypeStruct((2, 224, 224, 3), jnp.float32)
    logits = jax.eval_shape(lambda x: models.create(name, num_classes=3, **arguments)(x), images)
    assert logits.shape == (2, 224, 224, 3) and logits.dtype == jnp.float32


@pytest.mark.parametrize(
    ("name", "arguments", "side", "message"),
    [
        ("report_unet", {}, 15, "use images of at least 16 pixels"),
        ("report_dense_unet", {}, 63, "use images of at least 64 pixels"),
        ("report_transunet", {}, 224, "the images are 224x224 and the model was built for 320x320"),
        ("report_transunet", {"image_size": 48}, 48, "image_size 48 is smaller than a token; use at least 64"),
        ("report_transunet", {"num_heads": 5}, 320, "hidden_size 768 is not a multiple of num_heads 5"),
    ],
)
def test_what_a_network_cannot_take_is_named(name, arguments, side, message):
    with pytest.raises(ConfigError, match=message):
        images = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
        jax.eval_shape(lambda x: models.create(name, num_classes=3, **arguments)(x), images)


def test_transposed_convolution_is_that_of_pytorch():
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    ours = layers.ConvTranspose3x3(5, 4, dtype=jnp.float32, rngs=nnx.Rngs(0))
    theirs = torch.nn.ConvTranspose2d(5, 4, 3, stride=2, padding=1, output_padding=1, bias=False)
    load_torch_state(ours, {"weight": theirs.weight.detach().numpy().copy()})
    x, target = normal(1, 2, 3, 7, 5), normal(2, 2, 6, 14, 4)
    with jax.default_matmul_precision("highest"):
        y, gradient = ours(x), jax.grad(lambda x: (ours(x) * target).sum())(x)
    given = torch.from_numpy(x).permute(0, 3, 1, 2).requires_grad_()
    expected = theirs(given)
    (expected.permute(0, 2, 3, 1) * torch.from_numpy(target)).sum().backward()
    np.testing.assert_allclose(y, expected.detach().permute(0, 2, 3, 1), atol=1e-5)
    np.testing.assert_allclose(gradient, given.grad.permute(0, 2, 3, 1), atol=1e-5)


@pytest.mark.parametrize(("shape", "size"), [((4, 7), (9, 5)), ((1, 3), (4, 1)), ((80, 80), (224, 224))])
def test_bilinear_resizing_is_that_of_pytorch(shape, size):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    x = normal(3, 1, *shape, 2)
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(x).permute(0, 3, 1, 2), size, mode="bilinear", align_corners=True
    )
    with jax.default_matmul_precision("highest"):
        np.testing.assert_allclose(resampling.resize_bilinear(x, *size), expected.permute(0, 2, 3, 1), atol=5e-5)


def test_dropout_of_the_bottleneck_drops_whole_channels_of_an_example():
    dropout = layers.Dropout(0.5, 0, whole_channels=True)
    keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(0), i))(jnp.arange(4))
    kept = np.asarray(dropout(jnp.ones((4, 3, 5, 64)), keys))
    assert (kept == kept[:, :1, :1]).all() and set(np.unique(kept)) == {0.0, 2.0}
    share = (kept[:, 0, 0] > 0).mean(1)
    assert (abs(share - 0.5) < 0.25).all() and (kept[0] != kept[1]).any()
