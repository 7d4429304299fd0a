"""Converts weights between our models and reference implementations: PyTorch state dicts and pretrained encoders."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from flax import nnx

from bcss_jax.errors import DataError
from bcss_jax.models.encoders.vision_transformer.fitting import check_fit
from bcss_jax.models.encoders.vision_transformer.network import VisionTransformer
from bcss_jax.models.weights import google_npz
from bcss_jax.models.weights.files import WeightFile, read_weights
from bcss_jax.models.weights.torch_layout import (
    HasAdapters,
    HasTorchConstants,
    HasTorchEntries,
    LoadsStart,
    TorchEntries,
)
from bcss_jax.models.weights.vision_transformer_names import canonical

# Prefixes that training programs add to the names of a network when they wrap it; `features` is torchvision's DenseNet.
_PREFIX = re.compile(r"(?:(?:module|_orig_mod|model|backbone|encoder|features|transformer)\.)*")
# Classifiers of ImageNet networks, which a segmentation network does not have.
_CLASSIFIER = re.compile(r"(?:backbone\.)?(?:fc|classifier)\.(?:weight|bias)")
# The first release of DenseNets has `denselayer1.norm.1.weight`, later ones `denselayer1.norm1.weight`.
_OLD_DENSENET = re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12])\.")
_MAX_LISTED = 20  # tensors in an error


def load_pretrained(model: nnx.Module, path: Path) -> dict:
    """Loads a file of weights into a model or its encoder.

    Args:
      model: a model of `bcss_jax.models`. Weights that fit `model.encoder` are loaded into it; all others must fit the
        whole model.
      path: see `read_weights`; an .npz is Google's R50+ViT-B_16 (TransUNet), whose position embeddings are resized.

    Returns:
      JSON for the checkpoint: `file`, `sha256`, `part` (`encoder` or `model`), `tensors` (number of tensors that were
      loaded) and `passed_over` (skipped names of an ImageNet classifier and of constants), and, if the encoder is a
      published one, its `license`, and `notes` of what was changed.

    Raises:
      DataError: the file cannot be read or does not fit. The message lists all problems and what was expected.
      ConfigError: see `read_weights`.
    """
    file = read_weights(path)
    if isinstance(model, LoadsStart):
        return _load_start(model, path, file)
    state, encoder = file.arrays, getattr(model, "encoder", None)
    if google_npz.is_google(state):
        grid = getattr(encoder, "grid", None)
        if grid is None:
            raise DataError(f"{path}: Google's R50+ViT weights fit transunet, not {type(model).__name__}")
        state = google_npz.torch_state(state, grid)
    target, part, not_needed = model, "model", []
    if encoder is not None:
        all_entries = _torch_entries(model)
        in_encoder = {id(variable) for variable, _ in _torch_entries(encoder).values()}
        others = {name for name, (variable, _) in all_entries.items() if id(variable) not in in_encoder}
        if not others & _renamed(state, all_entries).keys():
            target, part = encoder, "encoder"
    try:
        if isinstance(target, VisionTransformer):
            state, not_needed = _vision_transformer_state(target, state)
        skipped = _load(target, state)
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    return {
        "file": Path(path).name,
        "sha256": file.sha256,
        "part": part,
        "tensors": len(state) - len(skipped),
        "passed_over": not_needed + skipped,
        **({"license": preset.license} if (preset := getattr(model, "preset", None)) else {}),
    }


def what_was_loaded(pretrained: dict) -> str:
    """Returns in words what `load_pretrained` or a start from another run returned."""
    said = f"{pretrained['tensors']} tensors into the {pretrained['part']}"
    if pretrained["passed_over"]:
        said += f"; passed over: {', '.join(pretrained['passed_over'])}"
    if pretrained.get("new"):
        said += f"; that run has other classes, so these start from random weights: {', '.join(pretrained['new'])}"
    said += "".join(f"; {note}" for note in pretrained.get("notes", ()))
    if license := pretrained.get("license"):
        said += f"; license of these weights: {license}"
    return said


def _load_start(model: LoadsStart, path: Path, file: WeightFile) -> dict:
    """Does what `load_pretrained` does, for a network that knows what it can start from."""
    try:
        start = model.load_start(file.arrays)
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    return {
        "file": Path(path).name,
        "sha256": file.sha256,
        "part": start.part,
        "tensors": len(start.arrays),
        "passed_over": list(start.unused),
        "notes": list(start.notes),
        **({} if start.license is None else {"license": start.license}),
    }


def _vision_transformer_state(encoder: VisionTransformer, state) -> tuple[dict[str, np.ndarray], list[str]]:
    """Returns the weights under our names, and the names in the file that the network does not need."""
    arrays, not_needed = canonical(state)
    if encoder.mask_token is None and arrays.pop("mask_token", None) is not None:
        not_needed.append("mask_token")
    check_fit(arrays, encoder.architecture)
    return arrays, not_needed


def load_torch_state(model: nnx.Module, state: Mapping[str, np.ndarray]) -> nnx.Module:
    """Loads a PyTorch state dict into a model.

    Args:
      model: a model of `bcss_jax.models`, or its encoder; its `torch_entries()` lists the expected names. If a tensor
        has several names (nnU-Net), one of them is enough; if there are several, they must be equal.
      state: PyTorch name -> array in PyTorch's layout. `num_batches_tracked` entries are ignored: older files do not
        have them, and they are not needed with a fixed momentum. A classifier (`fc`, `classifier`) and a common prefix
        such as `module.` are ignored as well, and so are the constants that the reference saves (`torch_constants`).

    Returns:
      `model`, changed in place. It is not changed if there is any problem.

    Raises:
      DataError: names are unknown or missing, shapes differ, or copies of a tensor differ. The message lists them all.
    """
    _load(model, state)
    return model


def load_with_skipped_names(model: nnx.Module, state: Mapping[str, np.ndarray]) -> list[str]:
    """Does what `load_torch_state` does; returns the names of a classifier and of constants that were skipped."""
    return _load(model, state)


def to_torch_state(model: nnx.Module) -> dict[str, np.ndarray]:
    """Returns the weights of a model under the reference's names, in PyTorch's layout; inverts `load_torch_state`.

    Returns:
      PyTorch name -> float32 array, under all names if a tensor has several. `num_batches_tracked` is left out;
      `torch.nn.Module.load_state_dict` then sets it to 0. Adapters (LoRA) are added to the matrices beside which they
      are.
    """
    model = model.merged() if isinstance(model, HasAdapters) else model
    return {
        name: np.ascontiguousarray(layout.to_torch(np.asarray(variable[...])))
        for name, (variable, layout) in _torch_entries(model).items()
    }


def _torch_entries(model: nnx.Module) -> TorchEntries:
    assert isinstance(model, HasTorchEntries), type(model).__name__
    return model.torch_entries()


def _load(model: nnx.Module, state: Mapping[str, np.ndarray]) -> list[str]:
    """Loads the state into the model; returns the names of a classifier and of constants that were skipped."""
    entries = _torch_entries(model)
    constants = model.torch_constants() if isinstance(model, HasTorchConstants) else {}
    state = _renamed(state, entries)
    skipped = [
        name
        for name, array in state.items()
        if name not in entries and (_CLASSIFIER.fullmatch(name) or _is_constant(array, constants.get(name)))
    ]
    state = {name: np.asarray(array) for name, array in state.items() if name not in skipped}
    names: dict[int, list[str]] = {}  # id of a variable -> its names
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
            problems += [f"{name} differs from its copy {found[0]}" for name in differing]
    problems += [f"unknown {name} {array.shape}" for name, array in state.items() if name not in expected]
    if problems:
        more = f"; and {len(problems) - _MAX_LISTED} more" if len(problems) > _MAX_LISTED else ""
        raise DataError(
            f"the weights do not fit {type(model).__name__} (check architecture, size and number of classes); "
            f"{len(problems)} problem(s): " + "; ".join(problems[:_MAX_LISTED]) + more
        )
    for name, array in chosen.items():
        variable, layout = entries[name]
        variable[...] = jnp.asarray(layout.from_torch(array), variable.dtype)
    if isinstance(model, HasAdapters):
        model.clear_adapters()
    return skipped


def _is_constant(array: np.ndarray, constant: np.ndarray | None) -> bool:
    return constant is not None and np.array_equal(array, constant)


def _renamed(state: Mapping[str, np.ndarray], expected: TorchEntries | Iterable[str]) -> dict[str, np.ndarray]:
    """Returns the state without batch counters and under current names.

    Of all exchanges of a prefix, the one after which most names are expected is applied.
    """
    state = {
        _OLD_DENSENET.sub(r"\1\2.", name): array
        for name, array in state.items()
        if not name.endswith("num_batches_tracked")
    }
    theirs = {""} | {prefix for name in state for prefix in _prefixes(name)}
    ours = {prefix for name in expected for prefix in _prefixes(name)}

    def exchanged(old, new):
        return {new + name.removeprefix(old) if name.startswith(old) else name: array for name, array in state.items()}

    # The shortest exchanges come first, so that they are preferred if several fit equally well: none, if possible.
    options = sorted(((old, new) for old in theirs for new in ours), key=lambda pair: (len(pair[0] + pair[1]), pair))
    candidates = (exchanged(*option) for option in options)
    lossless = [named for named in candidates if len(named) == len(state)]
    return max(lossless, key=lambda named: len(named.keys() & set(expected)))


def _prefixes(name: str) -> list[str]:
    """Returns all prefixes of a name that consist of wrappers only, including the empty one."""
    match = _PREFIX.match(name)
    words = match[0].split(".")[:-1] if match else []
    return ["".join(f"{word}." for word in words[:count]) for count in range(len(words) + 1)]
