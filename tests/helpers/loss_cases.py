"""Reference values of losses and metrics, and the inputs they belong to."""

import functools
import json

import jax.numpy as jnp

from helpers.references import module_at

CASES = ("plain", "class2_absent", "ignore255", "ignore0", "ignore0_class2_absent", "ignore_highest")


def case(shared, name):
    """Returns the reference values of a case and its logits [N, H, W, 3], labels [N, H, W] and ignored label."""
    values, module = _reference(shared / "loss_values")
    kwargs = module.CASES[name]
    logits, labels = module.inputs(**kwargs)
    return values[name], jnp.asarray(logits.transpose(0, 2, 3, 1)), jnp.asarray(labels), kwargs.get("ignore")


@functools.cache
def _reference(folder):
    return json.loads((folder / "values.json").read_text()), module_at(folder / "inputs.py", "no reference values")


def report_case(shared, name):
    """Returns values that the report's own code gives (`seed1`, `seed2`), and their logits and labels, as `case`."""
    folder = shared / "loss_values"
    _, module = _reference(folder)
    logits, labels = module.inputs(seed=int(name.removeprefix("seed")), c=3)
    values = json.loads((folder / "report_losses.json").read_text())[name]
    return values, jnp.asarray(logits.transpose(0, 2, 3, 1)), jnp.asarray(labels)
