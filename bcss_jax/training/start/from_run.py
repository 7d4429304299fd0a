"""Starts a training with the weights of another run.

Everything is taken over if both runs have the same classes. Otherwise the layers whose shape depends on the number of
classes, the head, keep their new weights. Adapters (LoRA) of the other run are added to the matrices beside which they
were trained; those of the new run begin anew.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from bcss_jax import models
from bcss_jax.errors import DataError, printable
from bcss_jax.labels import LabelScheme
from bcss_jax.models.apply import split_model
from bcss_jax.models.sam.weights.description import SAM_FILE
from bcss_jax.models.weights.pretrained import load_pretrained
from bcss_jax.training.checkpoint import TrainedWeights, load_trained, merged_weights, network_of
from bcss_jax.training.sharding import make_mesh
from bcss_jax.training.step_folder import step_numbers
from bcss_jax.training.summary import params_sha256

log = logging.getLogger(__name__)

_Arrays = dict[tuple, Any]


def load_from_run(model: nnx.Module, folder: Path, config: Any, scheme: LabelScheme) -> dict:
    """Loads the best weights of a run into a new network.

    Args:
      model: the network; changed in place.
      folder: of the run, or of its checkpoints. Of a SAM that was tuned to prompts, its file is taken.
      config: settings of the new run.
      scheme: label scheme of the new run.

    Returns:
      JSON for the checkpoint, as `models.weights.pretrained.load_pretrained` returns it: `file` is the name of the run
      and `sha256` that of its parameters. `new` lists what was not loaded. `source`, `license` and `trained_on` are
      those of the weights that the other run began with, if it knows them.

    Raises:
      DataError: the folder holds no run, or the run has another network.
    """
    if (folder / SAM_FILE).is_file():  # its checkpoints are of a network that takes prompts
        return load_pretrained(model, folder / SAM_FILE)
    trained = best_of_run(
        folder, " or the folder of a run", "name another one (for a run of nnU-Net's method name a fold of it)"
    )
    network_of(trained)  # its weights fit its description
    theirs = trained.metadata["config"]
    own = [_flat(tree) for tree in split_model(model)[1:]]
    arrays = [_flat(tree) for tree in merged_weights(trained)]
    same_classes = tuple(trained.metadata["label_scheme"]["class_names"]) == scheme.class_names
    head = set() if same_classes else _head(config, scheme.num_classes, own[0])
    adapters = {path for path in own[0] if path[0] == "adapters"}
    new = head | adapters
    if any(_shapes(a, head) != _shapes(b, head) for a, b in zip(arrays, _without(adapters, own), strict=True)):
        raise DataError(
            f"{printable(folder)}: expected a run of {_described(config.model)}, found one of "
            f"{_described(theirs['model'])}; the weights of another network cannot be taken over: change "
            "--config.model or name another run"
        )
    _warn_of_other_images(folder, theirs, config)
    _, params, model_state = nnx.split(model, nnx.Param, ...)
    for variables, found, begun in zip((params, model_state), arrays, own, strict=True):
        chosen = {path: begun[path] if path in new else np.asarray(found[path]) for path in begun}
        nnx.replace_by_pure_dict(variables, nnx.traversals.unflatten_mapping(chosen))
    nnx.update(model, params, model_state)
    return {
        "part": "model",
        "tensors": sum(len(each) for each in own) - len(new),
        "passed_over": [],
        "new": sorted("/".join(map(str, path)) for path in head),
        **origin(trained, folder),
    }


def best_of_run(folder: Path, expected: str, remedy: str) -> TrainedWeights:
    """Returns the best weights of a run.

    Args:
      folder: of the run, or of its checkpoints.
      expected: for the message, what is expected beside a file of weights, with what joins it to that.
      remedy: for the message.

    Raises:
      DataError: the folder holds no run.
    """
    where = _checkpoints_of(folder)
    if not step_numbers(where):
        raise DataError(
            f"{printable(folder)}: expected a file of weights{expected}, found a folder without checkpoints; {remedy}"
        )
    return load_trained(where, make_mesh(jax.local_devices()[:1]))


def origin(trained: TrainedWeights, folder: Path) -> dict:
    """Returns JSON for the checkpoint: name of the run, digest of its parameters, and what these began with."""
    where, began_with = _checkpoints_of(folder), trained.metadata.get("pretrained") or {}
    return {
        "file": where.parent.name if where.name == "checkpoints" else where.name,
        "sha256": params_sha256(trained.params),
        **{name: began_with[name] for name in ("source", "license", "trained_on") if began_with.get(name)},
    }


def _checkpoints_of(folder: Path) -> Path:
    return folder / "checkpoints" if step_numbers(folder / "checkpoints") else folder


def _without(paths: set[tuple], trees: list[_Arrays]) -> list[_Arrays]:
    return [{path: array for path, array in tree.items() if path not in paths} for tree in trees]


def _flat(tree: dict) -> _Arrays:
    return dict(nnx.traversals.flatten_mapping(tree))


def _shapes(arrays: _Arrays, head: set[tuple]) -> dict[tuple, Any]:
    """Returns the shapes of the arrays, None for those of the head."""
    lists = {_list_of(path) for path in head} - {None}
    return {
        path: None if path in head else array.shape for path, array in arrays.items() if _list_of(path) not in lists
    }


def _head(config: Any, num_classes: int, own: _Arrays) -> set[tuple]:
    """Returns the paths of the parameters whose shape, or whose number, depends on the number of classes."""
    arguments = {**config.model, "num_classes": num_classes + 1, "dtype": config.dtype}
    other = _flat(split_model(nnx.eval_shape(lambda: models.create(**arguments)))[1])
    # A list with a layer for each class has one more in the other network.
    lists = {_list_of(path) for path in other.keys() - own.keys()}
    return {path for path, array in own.items() if _list_of(path) in lists or other[path].shape != array.shape}


def _list_of(path: tuple) -> tuple | None:
    """Returns the path of the first list that a parameter is in; None if it is in none."""
    return next((path[:i] for i, key in enumerate(path) if isinstance(key, int)), None)


def _described(model: Any) -> str:
    arguments = ", ".join(f"{name}={_plain(value)}" for name, value in sorted(dict(model).items()) if name != "name")
    return f"{model['name']} ({arguments})" if arguments else model["name"]


def _plain(value: Any) -> Any:
    is_sequence = isinstance(value, Sequence) and not isinstance(value, str)
    return tuple(_plain(each) for each in value) if is_sequence else value


def _warn_of_other_images(folder: Path, theirs: dict, config: Any) -> None:
    """Logs where the images of the new run differ from those that the weights were trained on."""
    if theirs["data"].get("mpp", config.data.mpp) != config.data.mpp:
        log.warning(
            "%s: was trained at %g um per pixel, this run has %g",
            printable(folder),
            theirs["data"]["mpp"],
            config.data.mpp,
        )
    for name in ("image_mean", "image_std"):
        if tuple(theirs.get(name, config[name])) != tuple(config[name]):
            log.warning(
                "%s: was trained with config.%s=%s, this run has %s; set it to the same to keep what the weights know",
                printable(folder),
                name,
                tuple(theirs[name]),
                tuple(config[name]),
            )
