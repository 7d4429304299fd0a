"""SAM and SAM 2.1 give the maps, masks and scores of the references."""

import re

import jax
import numpy as np
import pytest
from flax import nnx
from helpers.references import FOUNDATION, foundation_case, module_at

from bcss_jax.models.sam import presets
from bcss_jax.models.sam.architecture import DecoderForm, ViTForm
from bcss_jax.models.sam.sam import Sam
from bcss_jax.models.weights.pretrained import load_torch_state

TINY = ViTForm(48, 3, 3, (1,), patch=8, window=4, hidden=192, table=10)
TINY_DECODER = DecoderForm(channels=32, heads=4, hidden=64, score_hidden=24)


def tiny():
    return Sam(TINY, TINY_DECODER)


CASES = {
    "sam_tiny": tiny,
    "sam_vit_b": lambda: presets.create("sam_vit_b"),
    "sam2.1_hiera_t": lambda: presets.create("sam2.1_hiera_t"),
}


def inputs_of(entry):
    """Returns points, labels, box and mask as the notes of the reference describe them."""
    weights = module_at(FOUNDATION / "weights.py", "no reference outputs")
    size, seed = entry["size"], entry["input_seed"]
    points = np.random.RandomState(seed).uniform(0.1, 0.9, (1, 3, 2)) * size
    box = np.array([[0.2, 0.15, 0.8, 0.7]]) * size
    mask = 4 * weights.image(seed + 1, entry["inputs"]["mask"][0])[:, 0]
    return points.astype(np.float32), np.array([[1, 0, 1]]), box.astype(np.float32), mask


@pytest.mark.parametrize(
    "name", [name if name == "sam_tiny" else pytest.param(name, marks=pytest.mark.slow) for name in CASES]
)
def test_maps_masks_and_scores_are_those_of_the_reference(name):
    entry, state, images, expected = foundation_case(name)
    model = load_torch_state(CASES[name](), state)
    with jax.default_matmul_precision("highest"):
        actual = dict(outputs(model, images["image"], entry))
    assert actual.keys() >= expected.keys(), expected.keys() - actual.keys()
    for key, wanted in expected.items():
        value = sliced(np.asarray(actual[key]), entry["outputs"][key].get("slice"))
        scale = entry["outputs"][key]["std"] or np.abs(wanted).max()  # one number has no deviation
        difference = np.abs(value - wanted).max() / scale
        assert value.shape == wanted.shape and difference < 3e-4, (key, value.shape, difference)


@nnx.jit
def encoded(model, image):
    maps = model.image_encoder.block_outputs(image) if isinstance(model, Sam) else model.image_encoder(image)
    return maps, model.encode(image)


@nnx.jit
def decoded(model, features, points, labels, box, mask):
    tokens = model.tokens(points, labels, box)
    predictions = model.decode(features, tokens, mask)
    rows, columns = features.embedding.shape[1:3]
    dense = model.prompt_encoder.dense(mask, rows, columns)
    return {
        "sparse": model.prompt_encoder.sparse(tokens, (model.image_size,) * 2),
        "dense": dense.transpose(0, 3, 1, 2),
        "masks": predictions.masks,
        "iou": predictions.scores,
        "object_score": None if predictions.object_scores is None else predictions.object_scores[:, None],
        "single_iou": model.select(predictions, multimask=False).scores,
    }


def outputs(model, image, entry):
    points, labels, box, mask = inputs_of(entry)
    maps, features = encoded(model, image)
    if isinstance(model, Sam):
        yield from ((f"block{i}", block) for i, block in enumerate(maps))
    else:
        yield from ((f"fpn{i}", x.transpose(0, 3, 1, 2)) for i, x in enumerate((*features.finer, maps[2])))
    yield "embedding", features.embedding.transpose(0, 3, 1, 2)
    yield "image_pe", model.prompt_encoder.positions(*features.embedding.shape[1:3]).transpose(2, 0, 1)[None]
    prompts = {
        "points": (points, labels, None, None),
        "box": (None, None, box, None),
        "mask": (None, None, None, mask),
        "all": (points, labels, box, mask),
    }
    for key, prompt in prompts.items():
        yield from ((f"{name}_{key}", value) for name, value in decoded(model, features, *prompt).items())


def sliced(array, text):
    if text is None:
        return array
    parts = [[int(n) if n else None for n in part.split(":")] for part in re.sub(r"[\[\] ]", "", text).split(",")]
    return array[tuple(slice(*part) for part in parts)]
