"""Dense U-Net: parameter counts, equality with a PyTorch twin, sizes, errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers.references import assert_trains_like_its_twin, normal, torch_twin, weights_of

from bcss_jax import models
from bcss_jax.errors import ConfigError
from bcss_jax.models.weights.pretrained import load_torch_state

SMALL = dict(growth=3, layers=(2, 1), bottleneck_layers=2, init_width=6)


def dense_twin(**kwargs):
    return torch_twin("torch_dense_unet.py", "DenseUNet", **kwargs)


@pytest.mark.parametrize("growth, parameters", [(16, 1_061_891), (32, 3_771_743), (48, 8_151_432), (64, 14_198_217)])
def test_parameter_counts(growth, parameters):
    model = nnx.eval_shape(lambda: models.create("dense_unet", num_classes=3, growth=growth))
    assert sum(p.size for p in jax.tree.leaves(nnx.state(model, nnx.Param))) == parameters


@pytest.mark.parametrize(
    "kwargs, size",
    [
        ({"num_classes": 3}, (33, 22)),
        (
            {"num_classes": 1, "in_channels": 1, "layers": (1, 2, 1), "compression": 0.7, "bottleneck_layers": 1},
            (24, 37),
        ),
    ],
    ids=["two modules", "three modules"],
)
def test_twin_gives_the_same_logits_gradients_and_statistics(kwargs, size):
    kwargs = SMALL | kwargs
    torch, twin = dense_twin(**kwargs)
    model = load_torch_state(models.create("dense_unet", **kwargs), weights_of(twin))
    x, target = normal(1, 3, *size, kwargs.get("in_channels", 3)), normal(2, 3, *size, kwargs["num_classes"])
    for name, value in assert_trains_like_its_twin(model, torch, twin, x, target).items():
        assert np.abs(value).max() > 1e-7, name


def test_evaluation_agrees_with_the_twin_and_bfloat16_is_close():
    torch, twin = dense_twin(num_classes=4, **SMALL)
    state = weights_of(twin)
    one, other = (
        load_torch_state(models.create("dense_unet", num_classes=4, dtype=dtype, **SMALL), state)
        for dtype in (jnp.float32, jnp.bfloat16)
    )
    x = normal(0, 2, 17, 20, 3)
    with jax.default_matmul_precision("highest"):
        a, b = (nnx.jit(lambda m, x: m(x))(model, x) for model in (one, other))
    with torch.no_grad():
        expected = twin.eval()(torch.from_numpy(x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1).numpy()
    assert np.abs(a - expected).max() < 3e-4 * expected.std()
    assert b.dtype == jnp.float32
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(nnx.state(other)))
    assert 0 < float(jnp.abs(a - b).max()) < 0.2 * float(a.std()) + 0.05


def test_too_small_images_are_refused():
    with pytest.raises(ConfigError, match="3x9 pixels .* at least 4 pixels on each side"):
        models.create("dense_unet", num_classes=3, **SMALL)(jnp.zeros((1, 3, 9, 3)))


@pytest.mark.parametrize(
    "kwargs, message",
    [
        ({"num_classes": 0}, "num_classes must be a positive integer, not 0"),
        ({"growth": 2.5}, "growth must be a positive integer, not 2.5"),
        ({"layers": ()}, r"layers must be one or more positive integers, at most 256, not \(\)"),
        ({"layers": (4, 0)}, r"layers must be one or more positive integers, at most 256, not \(4, 0\)"),
        ({"compression": 0}, "compression must be above 0 and at most 1, not 0"),
    ],
    ids=str,
)
def test_invalid_arguments_are_refused(kwargs, message):
    with pytest.raises(ConfigError, match=message):
        models.create("dense_unet", **{"num_classes": 3} | kwargs)
