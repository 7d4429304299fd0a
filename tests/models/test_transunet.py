"""TransUNet: parity with the reference and a PyTorch twin, both arithmetics, sizes, dropout, errors."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers.references import assert_trains_like_its_twin, normal, reference_case, torch_twin, weights_of
from helpers.small_networks import TRANSUNET_RESNET

from bcss_jax import models
from bcss_jax.errors import ConfigError
from bcss_jax.models.blocks import resampling
from bcss_jax.models.encoders import resnet_v2, vit
from bcss_jax.models.weights.pretrained import load_torch_state, to_torch_state

QUICK = {"xla_backend_optimization_level": 0}  # compiling takes nearly all of these tests' time
TRANSFORMER = dict(hidden_size=24, mlp_size=40, num_heads=4, num_layers=1)
SMALL = TRANSUNET_RESNET | TRANSFORMER | dict(decoder_channels=(16, 12, 8, 8))


def small(**kwargs):
    return models.create("transunet", **{"num_classes": 3, "image_size": 32} | SMALL | kwargs)


def compiled(function):
    """Compiles `function(module, ...)` with little optimization."""
    run = jax.jit(lambda split, *args: function(nnx.merge(*split), *args), compiler_options=QUICK)
    return lambda module, *args: run(nnx.split(module), *args)


@pytest.mark.parametrize(
    "case, kwargs",
    [
        (
            "transunet_tiny_64",
            {
                "image_size": 64, "width_factor": 0.5, "resnet_layers": (1, 2, 1), "hidden_size": 64, "mlp_size": 96,
                "num_heads": 4, "num_layers": 2, "decoder_channels": (32, 24, 16, 16),
                "skip_channels": (256, 128, 32, 0),
            },
        ),
        pytest.param("transunet_r50_vitb16_224", {}, marks=pytest.mark.slow),
    ],
    ids=["tiny", "full"],
)  # fmt: skip
def test_outputs_match_the_reference(case, kwargs):
    entry, state, image, expected = reference_case(case)
    model = models.create("transunet", num_classes=3, **kwargs)
    assert sum(p.size for p in jax.tree.leaves(nnx.state(model, nnx.Param))) == entry["n_params"]
    load_torch_state(model, state)

    @compiled
    def run(model, image):
        return model(image), model.encoder(image)[0], model.encoder.hybrid(image)[0]

    with jax.default_matmul_precision("highest"):
        logits, encoded, hybrid = run(model, image)
    actual = {"out0": logits.transpose(0, 3, 1, 2), "encoded": encoded, "hybrid": hybrid.transpose(0, 3, 1, 2)}
    for name, value in expected.items():
        # Of the full model's tokens every seventh is stored.
        mine = actual[name][:, :: -(-actual[name].shape[1] // value.shape[1])] if name == "encoded" else actual[name]
        assert np.abs(mine - value).max() < 3e-4 * value.std(), name


def test_only_position_embeddings_grow_with_the_images():
    model = nnx.eval_shape(lambda: models.create("transunet", num_classes=9, image_size=(256, 512), compat="google"))
    parameters = sum(p.size for p in jax.tree.leaves(nnx.state(model, nnx.Param)))
    assert parameters == 105_277_081 + (16 * 32 - 14 * 14) * 768


@pytest.mark.parametrize(
    "kwargs",
    [
        {"image_size": (48, 80), "resnet_layers": (1, 2, 1), "num_layers": 2},
        {
            "image_size": 32, "num_classes": 5, "in_channels": 1, "width_factor": 1, "num_heads": 3,
            "decoder_channels": (8, 9, 10, 3), "skip_channels": (512, 0, 64, 0),
        },
        {
            "image_size": (16, 64), "num_classes": 1, "compat": "google", "num_heads": 1,
            "skip_channels": (0, 128, 0, 0),
        },
    ],
    ids=["rectangle", "wide", "google"],
)  # fmt: skip
def test_twin_gives_the_same_logits_gradients_and_statistics(kwargs):
    kwargs = {"num_classes": 3, "dropout": 0.0} | SMALL | kwargs
    torch, twin = torch_twin("torch_transunet.py", "TransUNet", **kwargs)
    with torch.no_grad():  # values under which every parameter matters
        for name, parameter in twin.named_parameters():
            if name.endswith("position_embeddings") or parameter.ndim == 1:
                parameter.add_(0.3 * torch.randn_like(parameter))
    model = load_torch_state(models.create("transunet", **kwargs), weights_of(twin))
    size = (kwargs["image_size"],) * 2 if isinstance(kwargs["image_size"], int) else kwargs["image_size"]
    # Seeds with which no ReLU's input is so near zero that rounding puts it on the other side.
    x, target = normal(1, 2, *size, kwargs.get("in_channels", 3)), normal(2, 2, *size, kwargs["num_classes"])
    quick = functools.partial(jax.jit, compiler_options=QUICK)
    for name, value in assert_trains_like_its_twin(model, torch, twin, x, target, jit=quick).items():
        # Every key moves by the bias of the keys, and the softmax does not see a common summand.
        assert name.endswith("attn.key.bias") or np.abs(value).max() > 1e-7, name


def test_the_two_arithmetics_share_parameters_and_differ():
    one, other = small(), small(compat="google")
    load_torch_state(other, to_torch_state(one))
    x = normal(0, 1, 32, 32, 3)
    run = compiled(lambda m, x: m(x))
    (a, skips), (b, other_skips) = (run(m.encoder.hybrid, x) for m in (one, other))
    assert np.abs(a - b).max() > 0.01
    for unpadded, skip in zip(other_skips, skips, strict=True):
        assert skip.shape == unpadded.shape
    quarter = np.asarray(skips[1])
    assert not quarter[:, -1].any() and not quarter[:, :, -1].any() and quarter[:, :-1, :-1].any()
    assert np.asarray(other_skips[1])[:, -1].any()


def test_googles_root_and_pooling_equal_flax():
    model, x = small(compat="google").encoder.hybrid, jnp.asarray(normal(0, 1, 48, 32, 3))
    conv = nnx.Conv(3, 32, (7, 7), (2, 2), padding="SAME", use_bias=False, rngs=nnx.Rngs(0))
    conv.kernel[...] = model.root.weights()
    root = jax.nn.relu(nnx.GroupNorm(32, num_groups=32, epsilon=1e-6, rngs=nnx.Rngs(0))(conv(x)))
    np.testing.assert_allclose(model.root_norm(model.root(x)), root, atol=1e-4)
    pooled = nnx.max_pool(root, (3, 3), (2, 2), padding="SAME")
    np.testing.assert_array_equal(resampling.max_pool_3x3(root, (0, 1)), pooled)


def test_standardized_kernels():
    kernels = {}
    for google in (False, True):
        conv = resnet_v2.StdConv(8, 4, 3, google=google, dtype=jnp.float32, rngs=nnx.Rngs(0))
        values = normal(0, 3, 3, 8, 4)
        conv.kernel[...] = jnp.asarray(0.5 + 1e-3 * values / values.std((0, 1, 2)))
        kernels[google] = np.asarray(conv.weights())
        np.testing.assert_allclose(kernels[google].mean((0, 1, 2)), 0, atol=1e-4)
    # Where the published code and Google's part: kernels that are small themselves.
    np.testing.assert_allclose(kernels[False].std((0, 1, 2)), 0.30, atol=0.005)
    np.testing.assert_allclose(kernels[True].std((0, 1, 2)), 0.99, atol=0.005)


@pytest.mark.parametrize("google, sites", [(False, 4), (True, 6)])
def test_dropout_in_the_transformer_depends_only_on_the_example(google, sites):
    model = vit.Transformer(
        24, 4, 40, 2, google=google, dropout=0.5, dropout_number=1, dtype=jnp.float32, rngs=nnx.Rngs(0)
    )
    dropouts = [
        dropout
        for block in (model.block0, model.block1)
        for dropout in (block.attention_dropout, block.dropout1, block.dropout2)
    ]
    assert sorted(dropout.number for dropout in dropouts) == list(range(1, 7))
    assert sum(dropout.rate == 0.5 for dropout in dropouts) == sites

    run = compiled(lambda m, x, keys: m(x, keys))
    x, keys = jnp.asarray(normal(0, 2, 6, 24)), jax.random.split(jax.random.key(0), 2)
    noisy = run(model, x, keys)
    # Up to rounding, whose order may change with the place in the batch.
    np.testing.assert_allclose(run(model, x[::-1], keys[::-1])[::-1], noisy, atol=1e-5)
    assert float(jnp.abs(run(model, x, keys[::-1]) - noisy).max()) > 0.1
    model.eval()
    quiet = run(model, x, keys)
    np.testing.assert_array_equal(run(model, x, None), quiet)
    assert float(jnp.abs(noisy - quiet).max()) > 0.1


def test_training_with_dropout_takes_keys():
    model = small(dropout=0.5)
    model.train()
    x = jnp.asarray(normal(0, 2, 32, 32, 3))
    run = compiled(lambda m, x, keys: m.encoder(x, keys)[0])
    one, other = (run(model, x, jax.random.split(jax.random.key(seed), 2)) for seed in (0, 1))
    assert one.shape == (2, 4, 24) and float(jnp.abs(one - other).max()) > 0.1
    with pytest.raises(ValueError, match="dropout_keys"):
        nnx.eval_shape(lambda m, x: m(x), model, x)


def test_initial_values():
    model = small(hidden_size=48, mlp_size=64)
    state = to_torch_state(model.encoder)
    assert not state["embeddings.position_embeddings"].any()
    bound = (6 / (48 + 64)) ** 0.5
    for layer in ("fc1", "fc2"):
        kernel, bias = (state[f"encoder.layer.0.ffn.{layer}.{part}"] for part in ("weight", "bias"))
        assert 0.99 * bound < np.abs(kernel).max() <= bound
        assert 0 < np.abs(bias).max() < 1e-5
    for name, array in {
        "attn": state["encoder.layer.0.attn.query.weight"],
        "resnet": state["embeddings.hybrid_model.body.block2.unit1.conv2.weight"],
        "decoder": to_torch_state(model)["decoder.blocks.0.conv1.0.weight"],
    }.items():
        bound = np.prod(array.shape[1:]) ** -0.5
        assert 0.98 * bound < np.abs(array).max() <= bound, name


def test_bfloat16_is_close_to_float32_and_weights_and_logits_stay_float32():
    one, other = small(), small(dtype=jnp.bfloat16)
    x = jnp.asarray(normal(0, 2, 32, 32, 3))
    run = compiled(lambda m, x: m(x))
    a, b = run(one, x), run(other, x)
    assert b.dtype == jnp.float32
    assert nnx.eval_shape(lambda m, x: m.encoder(x)[0], other, x.astype(jnp.bfloat16)).dtype == jnp.bfloat16
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(nnx.state(other)))
    assert 0 < float(jnp.abs(a - b).max()) < 0.1 * float(a.std()) + 0.05


def test_only_parameters_and_batch_statistics():
    _, params, stats, others = nnx.split(small(), nnx.Param, nnx.BatchStat, ...)
    assert len(jax.tree.leaves(stats)) == 2 * 9 and not jax.tree.leaves(others)
    assert "encoder" in params and {"conv_more", "head"} <= set(params)


@pytest.mark.parametrize(
    "kwargs, parts",
    [
        ({"image_size": 100}, ("100x100", "multiple of 16", "96x96")),
        ({"image_size": (224, 250)}, ("224x250", "224x256")),
        ({"image_size": (32, 32, 32)}, ("image_size", "(32, 32, 32)")),
        ({"image_size": 0}, ("image_size", "0")),
        ({"image_size": 224.0}, ("image_size", "224.0")),
        ({"width_factor": 0.75}, ("width_factor", "0.5", "0.75")),
        ({"hidden_size": 30}, ("hidden_size 30", "num_heads 4")),
        ({"num_layers": 0}, ("num_layers", "0")),
        ({"resnet_layers": (3, 4)}, ("resnet_layers", "3 positive", "(3, 4)")),
        ({"resnet_layers": 3}, ("resnet_layers", "3 positive", "not 3")),
        ({"decoder_channels": (8, 8, 8, 0)}, ("decoder_channels", "4 positive")),
        ({"skip_channels": (512, 256, 64, 0)}, ("skip_channels", "(256, 128, 32, 0)", "(512, 256, 64, 0)")),
        ({"compat": "keras"}, ("compat", "transunet", "google", "keras")),
        ({"dropout": 1}, ("dropout", "1")),
    ],
    ids=str,
)
def test_errors_name_the_problem_and_a_valid_value(kwargs, parts):
    with pytest.raises(ConfigError) as error:
        small(**kwargs)
    message = str(error.value)
    assert "\n" not in message and all(part in message for part in parts), message


@pytest.mark.parametrize(
    "size, parts",
    [((48, 32), ("48x32", "32x32", "image_size=(48, 32)")), ((45, 20), ("45x20", "32x32", "(48, 16)", "multiple"))],
)
def test_images_of_another_size_are_refused(size, parts):
    with pytest.raises(ConfigError) as error:
        small()(jnp.zeros((1, *size, 3)))
    message = str(error.value)
    assert "\n" not in message and all(part in message for part in parts), message
