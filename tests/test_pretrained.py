"""Loading reference weights: parity with the reference's outputs, errors, and the way back."""

import importlib.util
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

from bcss_jax import models
from bcss_jax.errors import DataError
from bcss_jax.pretrained import load_torch_state, to_torch_state

PARITY = Path(__file__).parents[1].parent / "shared" / "parity"


def reference_weights():
    if not PARITY.is_dir():
        pytest.skip(f"no reference outputs: {PARITY} is missing")
    spec = importlib.util.spec_from_file_location("reference_weights", PARITY / "weights.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    "case, kwargs", [("unet_milesial_64", {}), ("unet_milesial_bilinear", {"bilinear": True})], ids=lambda v: str(v)
)
def test_unet_gives_the_references_logits(case, kwargs):
    weights = reference_weights()
    entry = json.loads((PARITY / "index.json").read_text())[case]
    model = models.create("unet", num_classes=3, **kwargs)
    assert sum(p.size for p in jax.tree.leaves(nnx.state(model, nnx.Param))) == entry["n_params"]

    load_torch_state(model, {name: weights.tensor(name, shape) for name, shape in entry["tensors"].items()})
    image = weights.image(entry["input_seed"], entry["input_shape"]).transpose(0, 2, 3, 1)
    model.eval()
    with jax.default_matmul_precision("highest"):
        logits = np.asarray(nnx.jit(lambda m, x: m(x))(model, image)).transpose(0, 3, 1, 2)
    expected = np.load(PARITY / "outputs" / f"{case}.npz")["out0"]
    assert np.abs(logits - expected).max() / expected.std() < 3e-4


@pytest.mark.parametrize("bilinear", [False, True])
def test_state_survives_the_way_out_and_in(bilinear):
    one, other = (models.create("unet", num_classes=2, width=4, depth=2, bilinear=bilinear, seed=s) for s in (1, 2))
    state = to_torch_state(one)
    load_torch_state(other, state | {"inc.double_conv.1.num_batches_tracked": np.array(3)})
    for a, b in zip(jax.tree.leaves(nnx.state(one)), jax.tree.leaves(nnx.state(other)), strict=True):
        np.testing.assert_array_equal(a, b)


def test_all_misfits_are_told_in_one_error():
    model = models.create("unet", num_classes=2, width=4, depth=1)
    state = to_torch_state(model)
    before = np.array(model.outc.bias[...])
    del state["inc.double_conv.0.weight"]
    state["outc.conv.weight"] = np.zeros((5, 4, 1, 1), np.float32)
    state["outc.conv.bias"] = np.zeros(2, np.float32)
    state["n_averaged"] = np.zeros((), np.float32)
    with pytest.raises(DataError) as error:
        load_torch_state(model, state)
    message = str(error.value)
    assert "\n" not in message
    for part in (
        "missing inc.double_conv.0.weight (4, 3, 3, 3)", "unknown n_averaged ()",
        "outc.conv.weight is (5, 4, 1, 1), expected (2, 4, 1, 1)",
    ):  # fmt: skip
        assert part in message
    np.testing.assert_array_equal(model.outc.bias[...], before)
