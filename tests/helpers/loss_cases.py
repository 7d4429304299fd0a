"""Reference values of losses and metrics, and the inputs they belong to."""

import importlib.util
import json

import jax.numpy as jnp
import pytest

CASES = ("plain", "class2_absent", "ignore255", "ignore0", "ignore0_class2_absent", "ignore_highest")


@pytest.fixture(scope="module")
def reference(shared):
    folder = shared / "loss_values"
    spec = importlib.util.spec_from_file_location("loss_inputs", folder / "inputs.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return json.loads((folder / "values.json").read_text()), module


def case(reference, name):
    values, module = reference
    kwargs = module.CASES[name]
    logits, labels = module.inputs(**kwargs)
    return values[name], jnp.asarray(logits.transpose(0, 2, 3, 1)), jnp.asarray(labels), kwargs.get("ignore")
