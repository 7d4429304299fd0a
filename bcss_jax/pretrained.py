"""Weights of the reference implementations (PyTorch state dicts) in and out of our models."""

from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np
from flax import nnx

from bcss_jax.errors import DataError


def load_torch_state(model: nnx.Module, state: Mapping[str, np.ndarray]) -> nnx.Module:
    """Fills a model with a PyTorch state dict.

    Args:
      model: a model of `bcss_jax.models`; its `torch_entries()` says which names it expects.
      state: PyTorch name -> array in PyTorch's layout. `num_batches_tracked` entries are passed over: older files have
        none, and with a fixed momentum nothing reads them.

    Returns:
      `model`, changed in place. It is left alone if anything is wrong.

    Raises:
      DataError: names are unknown or missing, or shapes differ; the one message lists all of them.
    """
    entries = model.torch_entries()
    state = {name: np.asarray(array) for name, array in state.items() if not name.endswith("num_batches_tracked")}
    expected = {name: layout.torch_shape(variable.shape) for name, (variable, layout) in entries.items()}
    problems = [f"missing {name} {shape}" for name, shape in expected.items() if name not in state]
    problems += [f"unknown {name} {array.shape}" for name, array in state.items() if name not in expected]
    problems += [
        f"{name} is {state[name].shape}, expected {shape}"
        for name, shape in expected.items()
        if name in state and state[name].shape != shape
    ]
    if problems:
        raise DataError(
            f"the weights do not fit {type(model).__name__} (check its width, depth and number of classes); "
            f"{len(problems)} of the tensors: " + "; ".join(problems)
        )
    for name, (variable, layout) in entries.items():
        variable[...] = jnp.asarray(layout.from_torch(state[name]), variable.dtype)
    return model


def to_torch_state(model: nnx.Module) -> dict[str, np.ndarray]:
    """The model's weights under the reference's names, in PyTorch's layout: the inverse of `load_torch_state`.

    Returns:
      PyTorch name -> float32 array. `num_batches_tracked` is left out: load with `strict=False`.
    """
    return {
        name: np.ascontiguousarray(layout.to_torch(np.asarray(variable[...])))
        for name, (variable, layout) in model.torch_entries().items()
    }
