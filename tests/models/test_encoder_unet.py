"""U-Nets with ResNet and DenseNet encoders: parity with the reference and with smp, sizes, initial weights."""

import functools
import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers.references import normal, reference_case, weights_of

from bcss_jax import models
from bcss_jax.errors import ConfigError
from bcss_jax.models.encoder_unet import EncoderUNet
from bcss_jax.models.encoders.densenet import DenseNet
from bcss_jax.models.encoders.resnet import ResNet
from bcss_jax.models.weights.pretrained import load_torch_state, to_torch_state

# The encoders in small, and what smp builds them with.
SMALL = {
    "basic": (
        functools.partial(ResNet, (1, 1, 1, 1), False),
        lambda kinds: kinds.ResNetEncoder(
            block=kinds.BasicBlock, layers=[1, 1, 1, 1], out_channels=[3, 64, 64, 128, 256, 512]
        ),
    ),
    "bottleneck": (
        functools.partial(ResNet, (1, 1, 1, 1), True),
        lambda kinds: kinds.ResNetEncoder(
            block=kinds.Bottleneck, layers=[1, 1, 1, 1], out_channels=[3, 64, 256, 512, 1024, 2048]
        ),
    ),
    "dense": (
        functools.partial(DenseNet, 8, (1, 2, 1, 2), 24),
        lambda kinds: kinds.DenseNetEncoder(
            growth_rate=8, block_config=(1, 2, 1, 2), num_init_features=24, out_channels=[3, 24, 32, 32, 24, 28]
        ),
    ),
}


def count(model):
    return sum(p.size for p in jax.tree.leaves(nnx.state(model, nnx.Param)))


def smp_unet(kind, num_classes, in_channels):
    """Returns smp's Unet with one of the small encoders."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    reason = "segmentation_models_pytorch is not installed"
    if importlib.util.find_spec("segmentation_models_pytorch") is None:
        pytest.skip(reason)
    try:
        import torchvision  # noqa: F401
    except RuntimeError:  # built for GPUs, it looks for operators that it does not find beside a CPU build of PyTorch
        library = torch.library.Library("torchvision", "DEF")
        library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    from segmentation_models_pytorch import Unet
    from segmentation_models_pytorch.decoders.unet import model as unet_module
    from segmentation_models_pytorch.encoders import densenet, resnet

    def small_encoder(name, in_channels, **_):
        kinds = resnet if kind != "dense" else densenet
        encoder = SMALL[kind][1](kinds)
        encoder.set_in_channels(in_channels, pretrained=False)
        return encoder

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(unet_module, "get_encoder", small_encoder)
        torch.manual_seed(0)
        return torch, Unet("small", encoder_weights=None, classes=num_classes, in_channels=in_channels)


def test_logits_and_features_with_resnet101_match_the_reference():
    entry, state, image, expected = reference_case("smp_unet_resnet101")
    model = models.create("unet_resnet101", num_classes=3)
    assert count(model) == entry["n_params"]
    load_torch_state(model, state)
    with jax.default_matmul_precision("highest"):
        logits, features = nnx.jit(lambda m, x: (m(x), m.encoder(x)))(model, image)
    actual = {"out0": logits} | {f"enc{i}": feature for i, feature in enumerate(features, 1)}
    for name, value in expected.items():
        assert np.abs(actual[name].transpose(0, 3, 1, 2) - value).max() < 3e-4 * value.std(), name


def test_features_of_densenet121_match_the_reference():
    entry, state, image, expected = reference_case("densenet121_features", "features.")
    encoder = models.create("dense_unet_121", num_classes=3).encoder
    assert count(encoder) == entry["n_params"]
    load_torch_state(encoder, state)
    with jax.default_matmul_precision("highest"):
        features = nnx.jit(lambda m, x: m(x))(encoder, image)
    assert [f.shape[1:] for f in features] == [(32, 32, 64), (16, 16, 256), (8, 8, 512), (4, 4, 1024), (2, 2, 1024)]
    value = expected["out0"]
    assert np.abs(features[-1].transpose(0, 3, 1, 2) - value).max() < 3e-4 * value.std()


@pytest.mark.parametrize(
    "name, parameters",
    [
        ("unet_resnet34", 24_436_659),
        ("unet_resnet50", 32_521_395),
        ("unet_resnet101", 51_513_523),
        ("dense_unet_121", 13_607_923),
    ],
)
def test_parameter_counts_of_the_reference_case(name, parameters):
    assert count(nnx.eval_shape(lambda: models.create(name, num_classes=3))) == parameters


@pytest.mark.parametrize(
    "kind, in_channels, size", [("basic", 1, (65, 47)), ("bottleneck", 3, (64, 45)), ("dense", 4, (71, 50))]
)
def test_smp_gives_the_same_outputs_gradients_and_statistics(kind, in_channels, size):
    torch, twin = smp_unet(kind, 2, in_channels)
    model = EncoderUNet(2, encoder=SMALL[kind][0], in_channels=in_channels)
    load_torch_state(model, weights_of(twin))
    if kind != "basic":  # compiling the decoder once is enough
        model, twin = model.encoder, twin.encoder
    x = normal(1, 4, *size, in_channels)
    outputs = twin.double().train()(torch.from_numpy(x).double().permute(0, 3, 1, 2))
    wanted = [outputs] if kind == "basic" else outputs[1:]
    targets = [normal(2, *np.array(w.shape)[[0, 2, 3, 1]]) for w in wanted]
    sum((w.permute(0, 2, 3, 1) * torch.from_numpy(t)).mean() for w, t in zip(wanted, targets, strict=True)).backward()
    graphdef, params, stats = nnx.split(model, nnx.Param, ...)

    @jax.jit
    def gradients_and_outputs(params, stats):
        def loss(params):
            model = nnx.merge(graphdef, params, jax.tree.map(lambda x: x, stats))
            model.train()
            outputs = jax.tree.leaves(model(x))
            total = sum((o * t).mean() for o, t in zip(outputs, targets, strict=True))
            return total, (outputs, nnx.state(model, nnx.Not(nnx.Param)))

        return jax.grad(loss, has_aux=True)(params)

    with jax.default_matmul_precision("highest"):
        gradients, (outputs, stats) = gradients_and_outputs(params, stats)
    for actual, expected in zip(outputs, wanted, strict=True):
        expected = expected.detach().permute(0, 2, 3, 1).numpy()
        assert np.abs(actual - expected).max() < 3e-4 * expected.std()

    wanted = {name: p.grad for name, p in twin.named_parameters()} | dict(twin.named_buffers())
    for name, value in to_torch_state(nnx.merge(graphdef, gradients, stats)).items():
        value_wanted = wanted[name].numpy()
        # A ReLU that falls on the other side in float32 than in float64 weighs much where maps have few pixels.
        assert np.abs(value - value_wanted).max() < 1e-2 * np.abs(value_wanted).max() + 1e-7, name
        assert np.abs(value).max() > 1e-7, name


def test_bfloat16_is_close_to_float32_and_weights_and_logits_stay_float32():
    one, other = (EncoderUNet(3, encoder=SMALL["dense"][0], dtype=dtype) for dtype in (jnp.float32, jnp.bfloat16))
    one.eval(), other.eval()
    x = normal(0, 2, 40, 33, 3)
    run = nnx.jit(lambda m, x: (m(x), m.encoder(x)[-1]))
    (a, _), (b, feature) = run(one, x), run(other, x)
    assert a.shape == (2, 40, 33, 3) and b.dtype == jnp.float32 and feature.dtype == jnp.bfloat16
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(nnx.state(other)))
    assert 0 < float(jnp.abs(a - b).max()) < 0.2 * float(a.std()) + 0.05


def test_the_entries_of_the_encoder_are_those_of_the_model_with_a_prefix():
    for name in ("unet_resnet34", "dense_unet_121"):
        model = nnx.eval_shape(lambda name=name: models.create(name, num_classes=3))
        whole, part = model.torch_entries(), model.encoder.torch_entries()
        assert {f"encoder.{key}" for key in part} == {key for key in whole if key.startswith("encoder.")}
        assert all(whole[f"encoder.{key}"][0] is variable for key, (variable, _) in part.items())
    assert "features.denseblock4.denselayer16.conv2.weight" in part and "features.norm5.running_var" in part


def test_the_range_of_initial_weights():
    model = models.create("unet_resnet34", num_classes=3)
    kernel = np.asarray(model.encoder.stage4_block1.conv1.kernel[...])
    assert abs(kernel.std() - (2 / (9 * 512)) ** 0.5) < 0.01 * kernel.std()
    kernel = np.asarray(model.encoder.conv1.kernel[...])  # fan_out counts, not fan_in
    assert abs(kernel.std() - (2 / (49 * 64)) ** 0.5) < 0.05 * kernel.std()
    kernel = np.asarray(model.decoder0.conv2.kernel[...])
    bound = (6 / (9 * 256)) ** 0.5
    assert 0.99 * bound < np.abs(kernel).max() <= bound and abs(kernel.std() - bound / 3**0.5) < 0.01 * bound
    bound = (6 / (9 * (16 + 3))) ** 0.5
    assert 0.9 * bound < np.abs(model.head.kernel[...]).max() <= bound and not model.head.bias[...].any()
    dense = models.create("dense_unet_121", num_classes=3).encoder.conv0.kernel[...]
    assert abs(dense.std() - (2 / (49 * 3)) ** 0.5) < 0.05 * dense.std()


def test_only_parameters_and_batch_statistics():
    model = EncoderUNet(2, encoder=SMALL["dense"][0])
    _, params, stats, others = nnx.split(model, nnx.Param, nnx.BatchStat, ...)
    norms = 1 + 2 * 6 + 4 + 2 * 5
    assert len(jax.tree.leaves(stats)) == 2 * norms and not jax.tree.leaves(others)
    assert len(jax.tree.leaves(params)) == 2 * norms + (1 + 2 * 6 + 3 + 2 * 5) + 2


def test_too_small_images_are_refused():
    model = EncoderUNet(2, encoder=SMALL["basic"][0])
    with pytest.raises(ConfigError, match="31x40 pixels .* at least 32 pixels on each side, here 32x40"):
        model(jnp.zeros((1, 31, 40, 3)))


@pytest.mark.parametrize("kwargs", [{"num_classes": 0}, {"num_classes": 3, "in_channels": 1.5}], ids=str)
def test_invalid_arguments_are_refused(kwargs):
    with pytest.raises(ConfigError, match=f"{list(kwargs)[-1]} must be a positive integer"):
        models.create("unet_resnet34", **kwargs)


def test_the_encoder_is_not_an_argument():
    with pytest.raises(ConfigError, match="no argument encoder; it takes num_classes, in_channels, dtype, seed"):
        models.create("unet_resnet50", num_classes=3, encoder=None)
