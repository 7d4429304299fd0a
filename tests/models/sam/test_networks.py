"""SAM and SAM 2.1 give the maps, masks and scores of the references."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers.references import FOUNDATION, foundation_case, module_at
from helpers.sam_tiny import DECODER, FORM, sam_tiny

from bcss_jax.models.sam import presets
from bcss_jax.models.sam.architecture import HieraForm
from bcss_jax.models.sam.mask_decoder import Predictions
from bcss_jax.models.sam.sam import Sam
from bcss_jax.models.sam.sam2 import Sam2
from bcss_jax.models.weights.pretrained import load_torch_state, to_torch_state

CASES = {
    "sam_tiny": lambda: Sam(FORM, DECODER),
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
    maps = model.image_encoder.trunk.block_outputs(image) if isinstance(model, Sam) else model.image_encoder(image)
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


@pytest.mark.slow
def test_gradients_are_those_of_the_reference():
    entry, _, images, _ = foundation_case("sam_tiny")
    wanted = json.loads((FOUNDATION / "values.json").read_text())["sam_tiny_gradients"]
    model = sam_tiny()
    points, labels, box, _ = inputs_of(entry)
    weights = module_at(FOUNDATION / "weights.py", "no reference outputs")
    target = weights.image(23, (1, 3, 40, 40)) > 0
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)

    @jax.jit
    def loss_and_gradients(params):
        def loss(params):
            model = nnx.merge(graphdef, params, rest)
            tokens = model.tokens(points, labels, box)
            masks, scores, _ = model.select(model.decode(model.encode(images["image"]), tokens), multimask=True)
            return (jax.nn.softplus(masks) - target * masks).mean() + jnp.square(scores - 0.5).mean()

        return jax.value_and_grad(loss)(params)

    with jax.default_matmul_precision("highest"):
        value, gradients = loss_and_gradients(params)
    np.testing.assert_allclose(value, wanted["loss"], rtol=1e-5)
    sums = {name: np.abs(array).sum() for name, array in to_torch_state(nnx.merge(graphdef, gradients, rest)).items()}
    for name, total in wanted["grad_abs_sum"].items():
        # Gradients that are zero in exact arithmetic, such as those of biases of keys, are noise in both.
        assert abs(sums[name] - total) < 1e-4 * max(total, 0.1), (name, sums[name], total)


@pytest.mark.slow
def test_several_prompts_at_once_are_each_prompt_alone():
    images = foundation_case("sam_tiny")[2]
    model = sam_tiny()
    rs = np.random.RandomState(1)
    points = rs.uniform(0, 80, (3, 2, 2)).astype(np.float32)
    labels = np.array([[1, 0], [0, 1], [1, 1]])
    boxes = np.array([[5, 6, 40, 70], [0, 0, 80, 80], [30, 30, 50, 45]], np.float32)
    masks = rs.standard_normal((3, 40, 40)).astype(np.float32)
    features = encoded(model, images["image"])[1]
    for prompt in [(points, labels, boxes, None), (None, None, None, masks)]:
        of_all = decoded(model, features, *prompt)
        for i in range(3):
            alone = decoded(model, features, *(x if x is None else x[i : i + 1] for x in prompt))
            for name in ("masks", "iou"):
                bar = 1e-4 * float(of_all[name].std())
                np.testing.assert_allclose(of_all[name][i], alone[name][0], atol=bar, err_msg=name)


def test_an_unstable_single_mask_of_sam2_is_replaced_by_the_best_of_the_others():
    model = Sam2(HieraForm(8, 1, (1, 1, 1, 1), ()), DECODER, image_size=32)
    masks = np.full((2, 4, 10, 10), -5.0, np.float32)
    masks[0, 0, :5] = 5  # stable
    masks[1, 0, :5] = 0.01  # between the thresholds
    scores = np.array([[0.1, 0.5, 0.9, 0.7], [0.1, 0.5, 0.6, 0.7]], np.float32)
    chosen = model.select(Predictions(jnp.asarray(masks), jnp.asarray(scores)), multimask=False)
    np.testing.assert_allclose(chosen.scores, [[0.1], [0.7]])
    np.testing.assert_array_equal(chosen.masks[:, 0], [masks[0, 0], masks[1, 3]])


def sliced(array, text):
    if text is None:
        return array
    parts = [[int(n) if n else None for n in part.split(":")] for part in re.sub(r"[\[\] ]", "", text).split(",")]
    return array[tuple(slice(*part) for part in parts)]
