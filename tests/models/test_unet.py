"""U-Net: parameter counts, errors, and equality with a PyTorch twin in values, gradients and running statistics."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers.references import assert_trains_like_its_twin, torch_twin, weights_of

from bcss_jax import models
from bcss_jax.errors import ConfigError
from bcss_jax.models.weights.pretrained import load_torch_state


def count(model):
    return sum(p.size for p in jax.tree.leaves(nnx.state(model, nnx.Param)))


def with_twin(**kwargs):
    torch, twin = torch_twin("torch_unet.py", "UNet", **kwargs)
    return torch, twin, load_torch_state(models.create("unet", **kwargs), weights_of(twin))


def test_parameter_counts_of_the_reference():
    def parameters(**kwargs):
        return count(nnx.eval_shape(lambda: models.create("unet", **kwargs)))

    assert parameters(num_classes=3) == 31_037_763
    assert parameters(num_classes=6) == 31_037_633 + 65 * 5
    assert parameters(num_classes=3, bilinear=True) == 17_263_107


@pytest.mark.parametrize(
    "kwargs, size",
    [
        ({"num_classes": 3, "width": 4, "depth": 4}, (33, 47)),
        ({"num_classes": 2, "width": 6, "depth": 2, "in_channels": 1}, (16, 13)),
        ({"num_classes": 5, "width": 4, "depth": 3, "bilinear": True}, (21, 30)),
        ({"num_classes": 1, "width": 2, "depth": 1, "bilinear": True}, (2, 3)),
    ],
    ids=str,
)
def test_twin_gives_the_same_logits_gradients_and_statistics(kwargs, size):
    torch, twin, model = with_twin(**kwargs)
    random = np.random.RandomState(1)
    x = random.standard_normal((3, *size, kwargs.get("in_channels", 3))).astype(np.float32)
    target = random.standard_normal((3, *size, kwargs["num_classes"])).astype(np.float32)
    assert_trains_like_its_twin(model, torch, twin, x, target)


def test_bfloat16_is_close_to_float32_and_weights_and_logits_stay_float32():
    one, other = (models.create("unet", num_classes=3, width=4, depth=2, dtype=d) for d in (jnp.float32, jnp.bfloat16))
    x = jnp.asarray(np.random.RandomState(0).standard_normal((2, 16, 16, 3)), jnp.float32)
    a, b = one(x), other(x)
    assert b.dtype == jnp.float32
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(nnx.state(other)))
    assert float(jnp.abs(a - b).max()) < 0.1 * float(a.std()) + 0.05
    assert float(jnp.abs(a - b).max()) > 0


def test_only_parameters_and_batch_statistics():
    model = models.create("unet", num_classes=3, width=2, depth=1)
    _, params, stats, others = nnx.split(model, nnx.Param, nnx.BatchStat, ...)
    assert len(jax.tree.leaves(stats)) == 2 * 6 and not jax.tree.leaves(others)
    assert len(jax.tree.leaves(params)) == 6 * 3 + 2 + 2


def test_seeds_and_the_range_of_initial_weights():
    one, same, other = (models.create("unet", num_classes=3, width=8, depth=1, seed=s) for s in (0, 0, 1))
    kernels = [np.asarray(m.down1.conv2.kernel[...]) for m in (one, same, other)]
    np.testing.assert_array_equal(kernels[0], kernels[1])
    assert (kernels[0] != kernels[2]).any()
    bound = (16 * 9) ** -0.5  # the whole of +-1/sqrt(fan_in)
    assert 0.99 * bound < np.abs(kernels[0]).max() <= bound
    assert abs(kernels[0].std() - bound / 3**0.5) < 0.03 * bound


@pytest.mark.parametrize(
    "name, kwargs, parts",
    [
        ("u-net", {"num_classes": 3}, ("u-net", "unet")),
        ("unet", {"num_classes": 3, "widht": 8}, ("widht", "width", "bilinear")),
        ("unet", {}, ("num_classes",)),
        ("unet", {"num_classes": 3, "depth": 0}, ("depth", "0")),
    ],
)
def test_errors_name_the_problem_and_the_options(name, kwargs, parts):
    with pytest.raises(ConfigError) as error:
        models.create(name, **kwargs)
    assert all(part in str(error.value) for part in parts)


def test_images_too_small_for_the_depth_are_refused():
    with pytest.raises(ConfigError, match="at least 8 pixels"):
        models.create("unet", num_classes=3, width=2, depth=3)(jnp.zeros((1, 7, 9, 3)))
