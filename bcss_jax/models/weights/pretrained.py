"""Weights of the reference implementations (PyTorch state dicts, files of pretrained encoders) in and out of our models."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from flax import nnx

from bcss_jax.errors import DataError
from bcss_jax.models.weights import google_npz
from bcss_jax.models.weights.files import read_weights
from bcss_jax.models.weights.torch_layout import TorchEntries

# What training programs put before the names of a network that they wrap; `features` is torchvision's DenseNet.
_PREFIX = re.compile(r"(?:(?:module|_orig_mod|model|backbone|encoder|features|transformer)\.)*")
# The classifiers of ImageNet networks, for which a segmentation network has no use.
_CLASSIFIER = re.compile(r"(?:fc|classifier)\.(?:weight|bias)")
# DenseNets as first released: `denselayer1.norm.1.weight`, since then `denselayer1.norm1.weight`.
_OLD_DENSENET = re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12])\.")
_LISTED = 20


def load_pretrained(model: nnx.Module, path: Path) -> dict:
    """Fills a model, or its encoder, from a file of weights.

    Args:
      model: a model of `bcss_jax.models`. Weights that fit `model.encoder` go there, others must fit the whole model.
      path: see `read_weights`; an .npz is Google's R50+ViT-B_16 (TransUNet), whose position table is resized.

    Returns:
      JSON for the checkpoint: `file`, `sha256`, `part` (`encoder` or `model`), `tensors` (how many were read) and
      `passed_over` (names of an ImageNet classifier).

    Raises:
      DataError: the file cannot be read or does not fit; the one message lists what is wrong and what was expected.
      ConfigError: as `read_weights`.
    """
    file = read_weights(path)
    state, encoder = file.arrays, getattr(model, "encoder", None)
    if google_npz.is_google(state):
        if not hasattr(encoder, "grid"):
            raise DataError(f"{path}: Google's R50+ViT weights fit transunet, not {type(model).__name__}")
        state = google_npz.torch_state(state, encoder.grid)
    part, name = model, "model"
    if encoder is not None:
        whole, inside = model.torch_entries(), encoder.torch_entries()
        variables = {id(variable) for variable, _ in inside.values()}
        others = {name for name, (variable, _) in whole.items() if id(variable) not in variables}
        if not others & _renamed(state, whole).keys():
            part, name = encoder, "encoder"
    try:
        passed_over = _load(part, state)
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    return {
        "file": Path(path).name,
        "sha256": file.sha256,
        "part": name,
        "tensors": len(state) - len(passed_over),
        "passed_over": passed_over,
    }


def load_torch_state(model: nnx.Module, state: Mapping[str, np.ndarray]) -> nnx.Module:
    """Fills a model with a PyTorch state dict.

    Args:
      model: a model of `bcss_jax.models`, or its encoder; its `torch_entries()` says which names it expects. Where one
        tensor has several names (nnU-Net) one is enough, and all that are there must agree.
      state: PyTorch name -> array in PyTorch's layout. `num_batches_tracked` entries are passed over: older files have
        none, and with a fixed momentum nothing reads them. So are a classifier (`fc`, `classifier`) and a common prefix
        such as `module.`.

    Returns:
      `model`, changed in place. It is left alone if anything is wrong.

    Raises:
      DataError: names are unknown or missing, shapes differ, or copies of a tensor do; the one message lists them.
    """
    _load(model, state)
    return model


def to_torch_state(model: nnx.Module) -> dict[str, np.ndarray]:
    """The model's weights under the reference's names, in PyTorch's layout: the inverse of `load_torch_state`.

    Returns:
      PyTorch name -> float32 array, all names of a tensor that has several. `num_batches_tracked` is left out;
      `torch.nn.Module.load_state_dict` sets it to 0 then.
    """
    return {
        name: np.ascontiguousarray(layout.to_torch(np.asarray(variable[...])))
        for name, (variable, layout) in model.torch_entries().items()
    }


def _load(model: nnx.Module, state: Mapping[str, np.ndarray]) -> list[str]:
    """Fills the model; returns the names of the classifier that were passed over."""
    entries = model.torch_entries()
    state = _renamed(state, entries)
    passed_over = [name for name in state if name not in entries and _CLASSIFIER.fullmatch(name)]
    state = {name: np.asarray(array) for name, array in state.items() if name not in passed_over}
    names: dict[int, list[str]] = {}  # of each variable
    for name, (variable, _) in entries.items():
        names.setdefault(id(variable), []).append(name)

    expected = {name: layout.torch_shape(variable.shape) for name, (variable, layout) in entries.items()}
    problems, chosen = [], {}
    for copies in names.values():
        found = [name for name in copies if name in state]
        wrong = [name for name in found if state[name].shape != expected[name]]
        if not found:
            problems.append(f"missing {copies[0]} {expected[copies[0]]}")
        problems += [f"{name} is {state[name].shape}, expected {expected[name]}" for name in wrong]
        if found and not wrong:
            chosen[found[0]] = state[found[0]]
            differing = [name for name in found[1:] if not np.array_equal(state[name], state[found[0]], equal_nan=True)]
            problems += [f"{name} differs from {found[0]}, of which it is a copy" for name in differing]
    problems += [f"unknown {name} {array.shape}" for name, array in state.items() if name not in expected]
    if problems:
        more = f"; and {len(problems) - _LISTED} more" if len(problems) > _LISTED else ""
        raise DataError(
            f"the weights do not fit {type(model).__name__} (check architecture, size and number of classes); "
            f"{len(problems)} of the tensors: " + "; ".join(problems[:_LISTED]) + more
        )
    for name, array in chosen.items():
        variable, layout = entries[name]
        variable[...] = jnp.asarray(layout.from_torch(array), variable.dtype)
    return passed_over


def _renamed(state: Mapping[str, np.ndarray], expected: TorchEntries | Iterable[str]) -> dict[str, np.ndarray]:
    """The state without batch counters, under today's names and with the prefix exchanged that the most names fit with."""
    state = {
        _OLD_DENSENET.sub(r"\1\2.", name): array
        for name, array in state.items()
        if not name.endswith("num_batches_tracked")
    }
    theirs = {""} | {prefix for name in state for prefix in _prefixes(name)}
    ours = {prefix for name in expected for prefix in _prefixes(name)}

    def exchanged(old, new):
        return {new + name.removeprefix(old) if name.startswith(old) else name: array for name, array in state.items()}

    # Sorted, so that the shortest exchange is taken where several fit as well: none, if possible.
    options = sorted(((old, new) for old in theirs for new in ours), key=lambda pair: (len(pair[0] + pair[1]), pair))
    candidates = (exchanged(*option) for option in options)
    lossless = [named for named in candidates if len(named) == len(state)]
    return max(lossless, key=lambda named: len(named.keys() & set(expected)))


def _prefixes(name: str) -> list[str]:
    """The beginnings of a name that are nothing but wrappers, the empty one included."""
    words = _PREFIX.match(name)[0].split(".")[:-1]
    return ["".join(f"{word}." for word in words[:count]) for count in range(len(words) + 1)]
