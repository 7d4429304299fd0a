"""The vision transformer gives the tokens of the references."""

import dataclasses
import re

import jax
import numpy as np
import pytest
from flax import nnx
from helpers.references import foundation_case

from bcss_jax.models.encoders.vision_transformer.architecture import Architecture
from bcss_jax.models.encoders.vision_transformer.network import VisionTransformer
from bcss_jax.models.encoders.vision_transformer.positions import Resizing
from bcss_jax.models.weights import pretrained
from bcss_jax.models.weights.vision_transformer_names import canonical

SMALL = Architecture(384, 12, 6, 16, 1536)
DINOV2 = dict(layer_scale=True, patch=14)
CASES = {
    "dino_vits16": dataclasses.replace(SMALL, resizing=Resizing.OFFSET),
    "dinov2_vits14": dataclasses.replace(SMALL, **DINOV2, table=37, resizing=Resizing.OFFSET),
    "dinov2_tiny_swiglu": Architecture(64, 2, 2, 14, 176, gated=True, layer_scale=True, registers=4, table=4),
    "dinov3_vits16": dataclasses.replace(SMALL, layer_scale=True, registers=4, table=None, key_bias=False, eps=1e-5),
    "dinov3_tiny_swiglu": Architecture(
        64, 2, 2, 16, 256, gated=True, layer_scale=True, registers=4, table=None, key_bias=False, eps=1e-5
    ),
    "timm_gigapath_flash": dataclasses.replace(SMALL, hidden=1024, gated=True, layer_scale=True),
    "timm_uni_like": Architecture(96, 2, 3, 16, 384, layer_scale=True, table=4),
    "timm_uni2_like": Architecture(
        96, 2, 3, 14, 256, gated=True, layer_scale=True, registers=8, table=4, prefix_rows=0
    ),
}


def loaded(name, state):
    arrays, others = canonical(state)
    model = VisionTransformer(CASES[name], mask_token="mask_token" in arrays, rngs=nnx.Rngs(0))
    model.eval()
    pretrained.load_torch_state(model, arrays)
    return model, others


FULL_SIZE = ("dino_vits16", "dinov2_vits14", "dinov3_vits16", "timm_gigapath_flash")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in FULL_SIZE else name for name in CASES]
)
def test_tokens_are_those_of_the_reference(name):
    entry, state, images, expected = foundation_case(name)
    model, _ = loaded(name, state)
    with jax.default_matmul_precision("highest"):
        actual = dict(pair for size, image in images.items() for pair in outputs(model, size, image, entry))
    actual = {key: value for key, value in actual.items() if key in expected}
    assert actual.keys() == expected.keys()
    for key, value in actual.items():
        value = sliced(np.asarray(value), entry["outputs"][key].get("slice"))
        difference = np.abs(value - expected[key]).max() / entry["outputs"][key]["std"]
        assert value.shape == expected[key].shape and difference < 3e-4, (key, value.shape, difference)


def outputs(model, size, image, entry):
    rows, columns = model.grid(image)
    wanted = entry["outputs"]
    blocks = nnx.jit(lambda model, image: model.block_outputs(image))(model, image)
    features = model.features(blocks[-1], (rows, columns))
    yield f"cls_{size}", features.cls
    yield f"patches_{size}", features.patches.reshape(1, rows * columns, -1)
    yield f"registers_{size}", features.registers
    yield f"tokens_{size}", model.norm(blocks[-1])
    if model.architecture.table is None:
        angles = model.angles(rows, columns)
        yield f"sin_{size}", np.sin(np.tile(angles, 2))
    else:
        yield f"pos_{size}", model.positions(rows, columns)
    yield f"tokens_block8_{size}", model.norm(blocks[min(8, len(blocks) - 1)])
    yield f"attention_{size}", model.class_attention(image)
    if "masked_patches" in wanted and size == list(entry["inputs"])[-1]:
        masked = np.arange(rows * columns)[None] % 3 == 0
        yield "masked_patches", model(image, masked).patches.reshape(1, rows * columns, -1)


def sliced(array, text):
    if text is None:
        return array
    parts = [[int(n) if n else None for n in part.split(":")] for part in re.sub(r"[\[\] ]", "", text).split(",")]
    return array[tuple(slice(*part) for part in parts)]


@pytest.mark.parametrize("name", sorted(set(CASES) - set(FULL_SIZE)))
def test_class_features_and_their_gradients_are_those_of_all_tokens(name):
    model = VisionTransformer(CASES[name], rngs=nnx.Rngs(0))
    side = 3 * CASES[name].patch
    images = np.random.default_rng(1).standard_normal((2, side, side, 3)).astype(np.float32)
    weights = np.random.default_rng(2).standard_normal(CASES[name].width).astype(np.float32)

    def values_and_gradients(of):
        return of(model), nnx.grad(lambda model: (of(model) @ weights).sum())(model)

    with jax.default_matmul_precision("highest"):
        alone = values_and_gradients(lambda model: model.class_features(images))
        among_all = values_and_gradients(lambda model: model(images).cls)
    assert jax.tree.structure(alone) == jax.tree.structure(among_all)
    for actual, expected in zip(jax.tree.leaves(alone), jax.tree.leaves(among_all), strict=True):
        np.testing.assert_allclose(actual, expected, atol=1e-5 * (1 + np.abs(expected).max()))
