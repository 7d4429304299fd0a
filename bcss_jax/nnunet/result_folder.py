"""Reads and writes result folders of nnU-Net v2, so that networks can be exchanged with nnU-Net in both directions.

Such a folder (`nnUNetTrainer__nnUNetPlans__2d`) holds `plans.json`, `dataset.json`, and for each fold (`fold_0`, ...) a
file `checkpoint_final.pth`. The checkpoints are read with PyTorch's weights-only loader, which runs no code in them.
nnU-Net can predict with a folder that was written here (`nnUNetv2_predict_from_modelfolder -m FOLDER`) and start
another training from its checkpoints (`-pretrained_weights`). It cannot continue the training that wrote the folder,
because the state of the optimizer is not in the checkpoints.

Source: nnU-Net 2.8.1, `nnUNetPredictor.initialize_from_trained_model_folder` and `nnUNetTrainer.save_checkpoint`.
"""

import dataclasses
import hashlib
import importlib.util
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from flax.typing import Dtype

from bcss_jax.common.files import locked, storage_errors, whole_file, write_text
from bcss_jax.common.json_files import as_json, read_json
from bcss_jax.common.outputs import written_files
from bcss_jax.errors import ConfigError, DataError
from bcss_jax.models.weights.files import read_torch_checkpoint
from bcss_jax.models.weights.pretrained import load_torch_state
from bcss_jax.nnunet import plan_file
from bcss_jax.nnunet.labels import check_dataset, num_outputs
from bcss_jax.nnunet.network import network_from_plan

Fold = int | str  # a number, or "all" for a training on all cases
State = Mapping[str, np.ndarray]  # PyTorch name -> array in PyTorch's layout

_CONFIGURATION = "2d"
CHECKPOINT = "checkpoint_final.pth"
TRAINER = "nnUNetTrainer"
# nnU-Net's trainers that replace the network of the plan: those with BatchNorm and those with Primus transformers.
_OTHER_NETWORK = re.compile(r"BN(?![a-z])|Primus")


@dataclasses.dataclass(frozen=True)
class ResultFolder:
    """The contents of a result folder.

    Attributes:
      path: path of the folder.
      plan: contents of plans.json.
      dataset: contents of dataset.json.
      trainer: name of nnU-Net's trainer class.
      mirror_axes: axes that `predict.predict_logits` may mirror: 0 height, 1 width.
      folds: the weights of each fold, PyTorch name -> array.
    """

    path: Path
    plan: dict[str, Any]
    dataset: dict[str, Any]
    trainer: str
    mirror_axes: tuple[int, ...]
    folds: dict[Fold, State]

    @property
    def num_classes(self) -> int:
        """Channels of the logits: the labels with background, without ignore."""
        return num_outputs(self.dataset)

    @property
    def patch_size(self) -> tuple[int, int]:
        """Height and width of the windows."""
        height, width = self.plan["configurations"][_CONFIGURATION]["patch_size"]
        return height, width

    def model(self, fold: Fold, *, dtype: Dtype = jnp.float32) -> nnx.Module:
        """Returns the network with the weights of one fold.

        Raises:
          DataError: the weights do not fit the plan's network.
        """
        try:
            return load_torch_state(network_from_plan(self.plan, self.num_classes, dtype=dtype), self.folds[fold])
        except (ConfigError, DataError) as error:
            raise DataError(f"{self.path / f'fold_{fold}'}: trained by {self.trainer}: {error}") from error


def read_result_folder(folder: Path, folds: Sequence[Fold] | None = None, checkpoint: str = CHECKPOINT) -> ResultFolder:
    """Reads a result folder of nnU-Net v2 or of ours.

    Args:
      folder: the folder with plans.json.
      folds: folds to read; None: all numbered folds that have the checkpoint, or `all` if there are none.
      checkpoint: file to read in each fold; by default nnU-Net predicts with that of the last epoch.

    Raises:
      DataError: a file is missing, damaged or holds more than weights; the folds do not belong together; or the network
        is not a 2D network for RGB images and plain labels that `bcss_jax` supports.
      ConfigError: torch >= 2.10 is not installed.
    """
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise DataError(f"{folder}: there is no such folder of nnU-Net results")
    plan, dataset = plan_file.read_plan(folder / "plans.json"), _read_json(folder / "dataset.json")
    try:
        check_dataset(dataset)
        plan_file.check_plan(plan, dataset)
    except DataError as error:
        raise DataError(f"{folder / 'dataset.json'}: {error}") from error
    found = _folds_of(folder, checkpoint) if folds is None else list(folds)
    if not found:
        raise DataError(f"{folder}: no folds were given; expected one or more")
    contents = {fold: _read_checkpoint(folder / f"fold_{fold}" / checkpoint) for fold in found}
    (first, (_, metadata)), *others = contents.items()
    for fold, (_, other) in others:
        if other != metadata:
            raise DataError(
                f"{folder}: fold {fold} (trainer, mirrored axes: {other}) does not belong to fold {first} "
                f"({metadata}); expected folds of one training"
            )
    return ResultFolder(folder, plan, dataset, *metadata, {fold: state for fold, (state, _) in contents.items()})


def write_result_folder(
    folder: Path,
    plan: Mapping[str, Any],
    dataset: Mapping[str, Any],
    folds: Mapping[Any, State],
    *,
    mirror_axes: Sequence[int] = (0, 1),
    trainer: str = TRAINER,
    checkpoint: str = CHECKPOINT,
) -> None:
    """Writes a result folder with which nnU-Net can predict; folds can be added later.

    Args:
      folder: created if it does not exist.
      plan: contents of plans.json.
      dataset: contents of dataset.json.
      folds: fold (a number or "all") -> weights, as returned by `pretrained.to_torch_state`.
      mirror_axes: axes that were mirrored in training and therefore may be mirrored in prediction.
      trainer: name of the class with which nnU-Net builds the network.
      checkpoint: name of the file in each fold.

    Raises:
      DataError: the folder holds the results of another plan or data set.
      ConfigError: PyTorch, which writes the checkpoints, is not installed.
      StorageError: it cannot be written, or another process works in it.
    """
    folder = Path(folder).expanduser()
    if importlib.util.find_spec("torch") is None:
        raise ConfigError(f"{folder}: checkpoints of nnU-Net are written by PyTorch: pip install 'torch>=2.10'")
    import torch  # pyright: ignore[reportMissingImports]  # optional

    plan, dataset = (as_json(content) for content in (plan, dataset))  # copies of plain types
    with locked(folder):
        missing = {}
        written_files.check(folder / name for name in ("plans.json", "dataset.json") if (folder / name).is_symlink())
        for name, content in (("plans.json", plan), ("dataset.json", dataset)):
            if not (folder / name).exists():
                missing[name] = content
            elif _read_json(folder / name) != content:
                raise DataError(f"{folder / name}: the existing file differs from the new one; use another folder")
        for fold in folds:
            written_files.check_folders(folder / f"fold_{fold}")
            written_files.check([folder / f"fold_{fold}" / checkpoint])
        for fold, state in folds.items():
            init_args = {"plans": plan, "configuration": _CONFIGURATION, "fold": fold, "dataset_json": dataset}
            metadata = {
                "init_args": init_args | {"device": torch.device("cpu")},
                "trainer_name": trainer,
                "inference_allowed_mirroring_axes": tuple(mirror_axes) or None,
                "optimizer_state": None,
                "grad_scaler_state": None,
                "logging": {},
                "_best_ema": None,
                "current_epoch": 0,
            }
            _write_checkpoint(folder / f"fold_{fold}" / checkpoint, state, metadata)
        for name, content in missing.items():
            write_text(folder / name, json.dumps(content, indent=4) + "\n")


def _read_json(path: Path) -> dict:
    if not path.is_file():
        raise DataError(
            f"{path}: missing; a folder of nnU-Net results holds plans.json, dataset.json and fold_0/{CHECKPOINT}, ..."
        )
    return read_json(path, "a JSON object as nnU-Net writes it", "copy the file again", kind=dict)


def _folds_of(folder: Path, checkpoint: str) -> list[Fold]:
    complete = [path.parent.name.removeprefix("fold_") for path in folder.glob(f"fold_*/{checkpoint}")]
    numbered = sorted(int(name) for name in complete if name.isdecimal())
    if numbered:
        return [*numbered]
    if "all" in complete:
        return ["all"]
    files = sorted(str(path.relative_to(folder)) for path in folder.glob("fold_*/*.pth"))
    raise DataError(f"{folder}: no fold has a {checkpoint}; found {', '.join(files) or 'no checkpoint at all'}")


def _read_checkpoint(path: Path) -> tuple[State, tuple[str, tuple[int, ...]]]:
    """Returns the weights, and the name of the trainer with the axes to mirror."""
    if not path.is_file():
        files = sorted(str(file.relative_to(path.parents[1])) for file in path.parents[1].glob("fold_*/*.pth"))
        raise DataError(f"{path}: missing; checkpoints of this folder: {', '.join(files) or 'none'}")
    weights, metadata = read_torch_checkpoint(path)
    init_args, trainer = metadata.get("init_args"), metadata.get("trainer_name")
    if not isinstance(init_args, dict) or not isinstance(trainer, str):
        raise DataError(
            f"{path}: expected a checkpoint of nnU-Net v2 with network_weights, init_args and trainer_name; "
            f"found in addition to the weights: {', '.join(map(str, metadata)) or 'nothing'}"
        )
    if not trainer.startswith(TRAINER) or _OTHER_NETWORK.search(trainer):
        raise DataError(
            f"{path}: trained by {trainer}, which is not supported; expected {TRAINER} or a variant that trains the "
            "network of the plan"
        )
    configuration, axes = init_args.get("configuration"), metadata.get("inference_allowed_mirroring_axes")
    axes = () if axes is None else axes
    if configuration != _CONFIGURATION or not isinstance(axes, list | tuple) or not set(axes) <= {0, 1}:
        raise DataError(
            f"{path}: trained in configuration {configuration!r} with mirrored axes {axes}; expected "
            f"{_CONFIGURATION!r} and only the axes 0 and 1"
        )
    return weights, (trainer, tuple(axes))


def _write_checkpoint(path: Path, state: State, metadata: dict) -> None:
    import torch  # pyright: ignore[reportMissingImports]  # optional

    tensors, shared = {}, {}
    for name, array in state.items():
        array = np.ascontiguousarray(array)
        # Equal arrays are stored once, because these networks have up to four names for one tensor.
        key = (array.shape, array.dtype.str, hashlib.sha256(array.data).digest())
        if key not in shared:
            shared[key] = torch.from_numpy(array.copy())
        tensors[name] = shared[key]
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as unfinished, open(unfinished, "wb") as file:
        torch.save({"network_weights": tensors, **metadata}, file)
