"""nnU-Net's networks: parity with the reference and, in other settings, a PyTorch twin; plans, sizes, errors."""

import copy
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers.paths import SHARED
from helpers.references import reference_case

from bcss_jax import models
from bcss_jax.errors import ConfigError
from bcss_jax.models.weights.pretrained import load_torch_state, to_torch_state
from bcss_jax.nnunet import network

PLANS = SHARED / "nnunet_plans"
PLAIN = {"n_stages": 2, "features_per_stage": (4, 6), "strides": (1, 2)}
SMALL = {"nnunet": PLAIN, "nnunet_resenc": PLAIN | {"n_blocks_per_stage": (1, 2)}}

SETTINGS = [
    # Strides and kernels of one along the height, no biases, more convolutions in some stages.
    (
        "nnunet",
        {
            "num_classes": 1, "in_channels": 1, "n_stages": 3, "features_per_stage": [3, 5, 4], "conv_bias": False,
            "kernel_sizes": [[1, 3], [3, 3], [3, 5]], "strides": [[1, 1], [1, 2], [2, 2]],
            "n_conv_per_stage": [1, 2, 3], "n_conv_per_stage_decoder": [1, 2],
        },
        (6, 28),
    ),
    ("nnunet", {"num_classes": 2, "n_stages": 2, "features_per_stage": 4, "strides": [1, 3]}, (9, 3)),
    # Blocks with neither pooling nor projection, with both, with projection alone and with pooling alone.
    (
        "nnunet_resenc",
        {
            "num_classes": 5, "n_stages": 4, "features_per_stage": [4, 6, 8, 8], "strides": [1, 2, 1, [1, 2]],
            "n_blocks_per_stage": [2, 1, 1, 1], "n_conv_per_stage_decoder": [1, 2, 1],
        },
        (10, 12),
    ),
    (
        "nnunet_resenc",
        SMALL["nnunet_resenc"] | {"num_classes": 3, "in_channels": 4, "conv_bias": False, "kernel_sizes": [[3, 1], 5]},
        (8, 20),
    ),
]  # fmt: skip


def count(model):
    return sum(p.size for p in jax.tree.leaves(nnx.state(model, nnx.Param)))


def variables(model):
    """Returns every variable of the model once, under its first name."""
    named = {}
    for name, (variable, _) in model.torch_entries().items():
        named.setdefault(id(variable), (name, variable))
    return dict(named.values())


def torch_twin(name, num_classes, in_channels=3, n_stages=6, **kwargs):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    package = "dynamic_network_architectures"
    unet = pytest.importorskip(f"{package}.architectures.unet", reason=f"{package} is not installed")
    kwargs = {"kernel_sizes": 3, "conv_bias": True} | kwargs
    if name == "nnunet":
        kwargs = {"n_conv_per_stage": 2, "n_conv_per_stage_decoder": 2} | kwargs
    else:
        kwargs = {"n_conv_per_stage_decoder": 1} | kwargs
    torch.manual_seed(0)
    network = {"nnunet": unet.PlainConvUNet, "nnunet_resenc": unet.ResidualEncoderUNet}[name]
    twin = network(
        in_channels, n_stages=n_stages, conv_op=torch.nn.Conv2d, num_classes=num_classes, deep_supervision=True,
        norm_op=torch.nn.InstanceNorm2d, norm_op_kwargs={"eps": 1e-5, "affine": True}, nonlin=torch.nn.LeakyReLU,
        **kwargs
    )  # fmt: skip
    with torch.no_grad():
        for parameter in twin.parameters():  # norms are not to be the identity
            parameter += 0.1 * torch.randn_like(parameter)
    return torch, twin


def run(model, x):
    """Returns all logits from one compiled function."""
    return nnx.jit(lambda model, x: model.all_logits(x))(model, x)


def gradients_at_random_weights(model, x):
    """Returns gradients of a random linear function of all logits, by first name, at weights without zero scales."""
    random = np.random.RandomState(0)
    for variable in variables(model).values():
        variable[...] += 0.1 * random.standard_normal(variable.shape).astype(np.float32)
    targets = [random.standard_normal(logits.shape) for logits in jax.eval_shape(model.all_logits, x)]
    graphdef, params = nnx.split(model)

    def loss(params):
        return sum((o * t).mean() for o, t in zip(nnx.merge(graphdef, params).all_logits(x), targets, strict=True))

    return {k: np.asarray(v[...]) for k, v in variables(nnx.merge(graphdef, jax.jit(jax.grad(loss))(params))).items()}


@pytest.mark.parametrize(
    "name, case", [("nnunet", "nnunet_plain_224plan"), ("nnunet_resenc", "nnunet_resencM_224plan")]
)
def test_all_outputs_match_the_reference(name, case):
    entry, state, image, expected = reference_case(case)
    model = models.create(name, num_classes=3)
    assert count(model) == entry["n_params"]
    assert set(variables(model)) == set(entry["tensors"])
    load_torch_state(model, state)
    with jax.default_matmul_precision("highest"):
        first, outputs = nnx.jit(lambda m, x: (m(x), m.all_logits(x)))(model, image)
    np.testing.assert_array_equal(first, outputs[0])
    assert len(outputs) == len(entry["outputs"])
    for i, output in enumerate(outputs):
        difference = np.asarray(output).transpose(0, 3, 1, 2) - expected[f"out{i}"]
        assert np.abs(difference).max() < 3e-4 * expected[f"out{i}"].std(), i


@pytest.mark.parametrize("name, kwargs, size", SETTINGS, ids=range(len(SETTINGS)))
def test_twin_gives_the_same_logits_and_gradients(name, kwargs, size):
    torch, twin = torch_twin(name, **kwargs)
    model = models.create(name, **kwargs)
    load_torch_state(model, {name: tensor.numpy().copy() for name, tensor in twin.state_dict().items()})
    random = np.random.RandomState(1)
    x = random.standard_normal((2, *size, kwargs.get("in_channels", 3))).astype(np.float32)
    targets = [random.standard_normal(o.shape).astype(np.float32) for o in jax.eval_shape(model.all_logits, x)]
    graphdef, params = nnx.split(model)

    @jax.jit
    def gradients_and_logits(params):
        def loss(params):
            outputs = nnx.merge(graphdef, params).all_logits(x)
            return sum((o * t).mean() for o, t in zip(outputs, targets, strict=True)), outputs

        return jax.grad(loss, has_aux=True)(params)

    with jax.default_matmul_precision("highest"):
        gradients, outputs = gradients_and_logits(params)
    expected = twin.double()(torch.from_numpy(x).double().permute(0, 3, 1, 2))
    assert len(expected) == len(outputs)
    total = 0
    for actual, wanted, target in zip(outputs, expected, targets, strict=True):
        total = total + (wanted.permute(0, 2, 3, 1) * torch.from_numpy(target)).mean()
        wanted = wanted.detach().permute(0, 2, 3, 1).numpy()
        assert np.abs(actual - wanted).max() < 3e-4 * wanted.std()
    total.backward()

    actual = to_torch_state(nnx.merge(graphdef, gradients))
    wanted = {name: p.grad.numpy() for name, p in twin.named_parameters(remove_duplicate=False)}
    assert actual.keys() == wanted.keys()
    for name, value in actual.items():
        assert np.abs(value - wanted[name]).max() < 2e-3 * np.abs(wanted[name]).max() + 1e-6, name


@pytest.mark.parametrize("name", SMALL)
def test_names_are_those_of_the_reference_and_load_strictly(name):
    torch, twin = torch_twin(name, num_classes=3, **SMALL[name])
    model = models.create(name, num_classes=3, **SMALL[name])
    state = to_torch_state(model)
    assert state.keys() == twin.state_dict().keys()
    twin.load_state_dict({name: torch.from_numpy(array.copy()) for name, array in state.items()}, strict=True)
    encoder = to_torch_state(model.encoder)
    assert encoder.keys() == twin.encoder.state_dict().keys()
    first = list(variables(model))
    assert not any(".all_modules." in name or name.startswith("decoder.encoder.") for name in first)
    assert len(first) == len(dict(twin.named_parameters()))


def test_default_plain_network_has_the_names_of_a_checkpoint():
    model = nnx.eval_shape(lambda: models.create("nnunet", num_classes=3))
    assert len(model.torch_entries()) == 292 and len(variables(model)) == 108


@pytest.mark.parametrize("name", SMALL)
def test_one_name_of_each_tensor_is_enough(name):
    one, other = (models.create(name, num_classes=2, seed=seed, **SMALL[name]) for seed in (1, 2))
    state = to_torch_state(one)
    load_torch_state(other, {name: state[name] for name in variables(one)})
    for a, b in zip(jax.tree.leaves(nnx.state(one)), jax.tree.leaves(nnx.state(other)), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("name", SMALL)
def test_initial_weights(name):
    kwargs = SMALL[name] | {"features_per_stage": (32, 64), "num_classes": 16}
    model = models.create(name, **kwargs)
    last_norms = 0
    for key, variable in variables(model).items():
        value = np.asarray(variable[...])
        if value.ndim == 4:
            kh, kw, inputs, outputs = value.shape
            # PyTorch counts the inputs of a transposed convolution along the axis of its outputs.
            fan_in = kh * kw * (outputs if "transpconvs" in key else inputs)
            expected = (2 / (1 + 0.01**2) / fan_in) ** 0.5
            assert abs(value.std() / expected - 1) < 4 / value.size**0.5, key
            assert abs(value).max() > 2.5 * expected, key  # normal, not uniform
        elif key.endswith("conv2.norm.weight"):
            last_norms += 1
            assert (value == 0).all(), key
        else:
            assert (value == (1 if key.endswith("norm.weight") else 0)).all(), key
    assert last_norms == (3 if name == "nnunet_resenc" else 0)


@pytest.mark.parametrize("name", SMALL)
def test_gradients_reach_every_parameter(name):
    model = models.create(name, num_classes=3, **SMALL[name])
    x = jnp.asarray(np.random.RandomState(0).standard_normal((2, 8, 12, 3)), jnp.float32)
    for key, gradient in gradients_at_random_weights(model, x).items():
        if key.endswith(".conv.bias"):  # zero by construction: the instance norm behind takes constants out
            assert np.abs(gradient).max() < 1e-6, key
        else:
            assert np.abs(gradient).max() > 1e-5, key


@pytest.mark.parametrize("name", SMALL)
def test_bfloat16_is_close_to_float32_and_weights_and_logits_stay_float32(name):
    one, other = (models.create(name, num_classes=3, **SMALL[name], dtype=d) for d in (jnp.float32, jnp.bfloat16))
    x = jnp.asarray(np.random.RandomState(0).standard_normal((2, 32, 32, 3)), jnp.float32)
    for a, b in zip(run(one, x), run(other, x), strict=True):
        assert b.dtype == jnp.float32
        assert 0 < float(jnp.abs(a - b).max()) < 0.1 * float(a.std()) + 0.05
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(nnx.state(other)))


@pytest.mark.parametrize("name", SMALL)
def test_logits_depend_neither_on_other_images_nor_on_the_training_mode(name):
    model = models.create(name, num_classes=3, **SMALL[name])
    x = jnp.asarray(np.random.RandomState(0).standard_normal((3, 8, 12, 3)), jnp.float32)
    together = run(model, x)[0]
    model.train()
    np.testing.assert_allclose(run(model, x[1:2])[0], together[1:2], atol=1e-5)


@pytest.mark.parametrize(
    "size, parts",
    [
        ((18, 24), ("18x24", "multiples of 4 and 8", "16x24 and 20x24")),
        ((16, 27), ("16x24 and 16x32",)),
        ((4, 8), ("larger than 4x8", "8x8 and 4x16")),
        ((1, 1), ("8x8 and 4x16",)),
    ],
)
def test_invalid_sizes_are_refused_and_the_nearest_valid_ones_named(size, parts):
    model = models.create("nnunet", num_classes=2, **PLAIN | {"strides": (1, (4, 8))})
    for call in (model, model.all_logits):
        with pytest.raises(ConfigError) as error:
            call(jnp.zeros((1, *size, 3)))
        assert all(part in str(error.value) for part in parts) and "\n" not in str(error.value)


def test_smallest_valid_sizes():
    kwargs = {"n_stages": 3, "features_per_stage": 4, "strides": (1, 2, 2), "n_blocks_per_stage": 1}
    model = models.create("nnunet_resenc", num_classes=2, **kwargs)
    x = jnp.asarray(np.random.RandomState(0).standard_normal((1, 4, 8, 3)), jnp.float32)
    outputs = run(model, x)
    assert [o.shape for o in outputs] == [(1, 4, 8, 2), (1, 2, 4, 2)]
    assert all(float(o.std()) > 0 for o in outputs)


@pytest.mark.parametrize(
    "name, kwargs, part",
    [
        ("nnunet", {"num_classes": 0}, "num_classes must be a positive integer, not 0"),
        ("nnunet", {"in_channels": 1.5}, "in_channels"),
        ("nnunet", {"n_stages": 1}, "n_stages must be an integer of at least 2"),
        ("nnunet", {"n_stages": 4}, "features_per_stage must be a positive integer or 4 of them"),
        ("nnunet", {"features_per_stage": (4, 0)}, "features_per_stage"),
        ("nnunet", {"kernel_sizes": (3, 4)}, "kernel_sizes must be odd"),
        ("nnunet", {"kernel_sizes": [[3, 3, 3]] * 2}, "kernel_sizes must be"),
        ("nnunet", {"kernel_sizes": "33"}, "kernel_sizes must be"),
        ("nnunet", {"strides": (2, 2)}, "the first of strides must be 1"),
        ("nnunet", {"strides": 1.0}, "strides must be"),
        ("nnunet", {"n_conv_per_stage": (2, 2, 2)}, "n_conv_per_stage must be a positive integer or 2 of them"),
        ("nnunet", {"n_conv_per_stage_decoder": (2, 2)}, "n_conv_per_stage_decoder must be"),
        ("nnunet", {"conv_bias": None}, "conv_bias must be True or False"),
        ("nnunet_resenc", {"n_blocks_per_stage": 0}, "nnunet_resenc: n_blocks_per_stage must be"),
        ("nnunet_resenc", {"n_conv_per_stage": 2}, "no argument n_conv_per_stage"),
    ],
)
def test_invalid_arguments_are_refused(name, kwargs, part):
    with pytest.raises(ConfigError) as error:
        models.create(name, **{"num_classes": 3} | SMALL[name] | kwargs)
    assert part in str(error.value) and "\n" not in str(error.value)


def plan(name="nnunet"):
    """Returns a plan of a small network with the fields that `network_from_plan` reads."""
    blocks = {"nnunet": {"n_conv_per_stage": [2, 2]}, "nnunet_resenc": {"n_blocks_per_stage": [1, 2]}}[name]
    network = {"nnunet": "PlainConvUNet", "nnunet_resenc": "ResidualEncoderUNet"}[name]
    kwargs = blocks | {
        "n_stages": 2, "features_per_stage": [4, 6], "conv_op": "torch.nn.modules.conv.Conv2d",
        "kernel_sizes": [[3, 3]] * 2, "strides": [[1, 1], [1, 2]], "n_conv_per_stage_decoder": [1],
        "conv_bias": True, "norm_op": "torch.nn.modules.instancenorm.InstanceNorm2d",
        "norm_op_kwargs": {"eps": 1e-05, "affine": True}, "dropout_op": None, "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU", "nonlin_kwargs": {"inplace": True},
    }  # fmt: skip
    path = f"dynamic_network_architectures.architectures.unet.{network}"
    return {"configurations": {"2d": {"architecture": {"network_class_name": path, "arch_kwargs": kwargs}}}}


@pytest.mark.parametrize("name", SMALL)
def test_network_of_a_plan(name):
    kwargs = SMALL[name] | {"strides": (1, (1, 2)), "n_conv_per_stage_decoder": 1}
    expected = models.create(name, num_classes=4, in_channels=2, seed=3, **kwargs)
    model = network.network_from_plan(plan(name), 4, in_channels=2, seed=3)
    assert nnx.graphdef(model) == nnx.graphdef(expected)
    for a, b in zip(jax.tree.leaves(nnx.state(model)), jax.tree.leaves(nnx.state(expected)), strict=True):
        np.testing.assert_array_equal(a, b)


def test_plans_of_nnunet_give_networks_with_the_known_numbers_of_parameters():
    if not PLANS.is_dir():
        pytest.skip(f"no plans: {PLANS} is missing")
    expected = {
        "rgb224_n400/nnUNetPlans.json": 20_620_655,
        "rgb224_n40/nnUNetResEncUNetMPlans.json": 71_818_159,
        "rgb512_n20/nnUNetPlans.json": 46_327_157,
        "rgb512_n300/nnUNetResEncUNetLPlans.json": 140_019_637,
    }
    for path, parameters in expected.items():
        parsed = json.loads((PLANS / path).read_text())
        assert count(nnx.eval_shape(lambda parsed=parsed: network.network_from_plan(parsed, 3))) == parameters, path
    default = nnx.eval_shape(lambda: models.create("nnunet", num_classes=3))
    parsed = json.loads((PLANS / "rgb224_n40/nnUNetPlans.json").read_text())
    assert nnx.graphdef(nnx.eval_shape(lambda: network.network_from_plan(parsed, 3))) == nnx.graphdef(default)


@pytest.mark.parametrize(
    "change, part",
    [
        ({"conv_op": "torch.nn.modules.conv.Conv3d"}, "conv_op is 'Conv3d', not 'Conv2d'"),
        ({"norm_op": "torch.nn.modules.batchnorm.BatchNorm2d"}, "norm_op is 'BatchNorm2d'"),
        ({"norm_op": None}, "norm_op is None"),
        ({"norm_op_kwargs": {"eps": 1e-3, "affine": True}}, "norm_op_kwargs is {'eps': 0.001"),
        ({"norm_op_kwargs": None}, "norm_op_kwargs is"),
        ({"dropout_op": "torch.nn.Dropout2d"}, "dropout_op is 'torch.nn.Dropout2d', not None"),
        ({"nonlin": "torch.nn.ReLU"}, "nonlin is 'ReLU'"),
        ({"nonlin_kwargs": {"negative_slope": 0.1}}, "negative_slope is 0.1, not 0.01"),
        ({"nonlin_first": True}, "unknown nonlin_first"),
        ({"n_stages": ...}, "lacks n_stages"),
        ({"conv_bias": ..., "norm_op": ...}, "lacks conv_bias, norm_op"),
        ({"strides": [[1, 1]]}, "strides must be"),
        ({"kernel_sizes": [[3, 3, 3]] * 2}, "kernel_sizes must be"),
    ],
)
def test_unsupported_plans_are_refused(change, part):
    changed = plan()
    kwargs = changed["configurations"]["2d"]["architecture"]["arch_kwargs"]
    kwargs |= change
    for key in [key for key, value in kwargs.items() if value is ...]:
        del kwargs[key]
    with pytest.raises(ConfigError) as error:
        network.network_from_plan(changed, 3)
    assert part in str(error.value) and "\n" not in str(error.value)


def test_incomplete_plans_are_refused():
    def message(plan, **kwargs):
        with pytest.raises(ConfigError) as error:
            network.network_from_plan(plan, 3, **kwargs)
        return str(error.value)

    assert "no configurations / 3d_fullres" in message(plan(), configuration="3d_fullres")
    assert "2d" in message(plan(), configuration="3d_fullres")
    assert "no configurations" in message({"plans_name": "nnUNetPlans"})
    old = copy.deepcopy(plan())
    old["configurations"]["2d"] = {"UNet_class_name": "PlainConvUNet"}
    assert "no configurations / 2d / architecture" in message(old)
    other = copy.deepcopy(plan())
    other["configurations"]["2d"]["architecture"]["network_class_name"] = "somewhere.Primus"
    assert "'Primus' is not supported" in message(other)
