"""Finds the checkpoint of a trained run by its path and checks it before anything is computed.

Everything that decides what the scores mean comes from the checkpoint: network, label scheme, image statistics, data.
Nothing in a run's folder is executed or unpickled; a checkpoint consists of JSON and arrays.
"""

import dataclasses
import functools
import hashlib
import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar, cast

from flax import nnx
from jax.sharding import Mesh
from ml_collections import ConfigDict

from bcss_jax.common.ranges import WINDOW, Range
from bcss_jax.common.regular_file import real_path
from bcss_jax.config import validate, validate_network
from bcss_jax.data.resolution.check import check_mpp
from bcss_jax.data.stain.measured_stain import MeasuredStain
from bcss_jax.errors import ConfigError, DataError, first_line, printable
from bcss_jax.inference.predict import Member, View, log_probabilities, views
from bcss_jax.labels import LabelScheme, name_of, scheme_from_json
from bcss_jax.models.apply import ModelFunction
from bcss_jax.models.image_normalization import ImageStatistics
from bcss_jax.models.sam.weights.description import description_of
from bcss_jax.models.weights.torch_layout import HasAdapters
from bcss_jax.nnunet.folds import trained_fold_names
from bcss_jax.slides.windows import BLENDS, MAX_OVERLAP
from bcss_jax.training import checkpoint
from bcss_jax.training.history import COLUMNS
from bcss_jax.training.step_folder import step_numbers
from bcss_jax.training.summary import params_sha256
from bcss_jax.training.workdir import cross_validated_folds


@dataclasses.dataclass(frozen=True)
class TrainedRun:
    """A checked checkpoint. Its arrays stay on disk until `member` or `weights` reads them.

    Attributes:
      name: unique within an evaluation. It consists of letters, digits, `_`, `.`, `+` and `-`, so that it can name a
        folder.
      folder: folder of the checkpoints.
      which: "best" or "latest".
      step: training step of the checkpoint.
      metadata: config, label scheme, data and versions, as the checkpoint stores them.
      scheme: label scheme of the model.
      function: the network, without adapters. Runs with the same structure have equal functions.
      sha256: hashes of the parameters ("params") and of the other state of the model, such as batch statistics
        ("rest").
      stain: of the training images; None for runs of earlier versions, for imported weights, and for images that do not
        show hematoxylin and eosin.
    """

    name: str
    folder: Path
    which: str
    step: int
    metadata: dict
    scheme: LabelScheme
    function: ModelFunction
    sha256: dict[str, str]
    stain: MeasuredStain | None = None

    @property
    def config(self) -> dict:
        """The training configuration."""
        return self.metadata["config"]

    @property
    def run_folder(self) -> Path:
        """Folder of the run."""
        return self.folder.parent if self.folder.name == "checkpoints" else self.folder

    @property
    def imported(self) -> dict:
        """What only a run of weights from another program has (`imported.run_folder.metadata_of`); {} for others."""
        return self.metadata.get("imported") or {}

    @property
    def trained_on(self) -> dict | None:
        """Description of the training data (`tfrecords.PreparedData.describe`); None if the weights were imported."""
        return self.metadata["data"]

    @property
    def fold(self) -> dict | None:
        """The fold that was held out: count, held_out, content_sha256 of the data set; None if none was."""
        return (self.trained_on or {}).get("folds")

    @property
    def batch_size(self) -> int:
        """Validation batch size of the training."""
        return self.config["eval_batch_size"]

    def identity(self) -> dict:
        """Returns everything that decides the predictions, as JSON."""
        config = {name: self.config[name] for name in ("model", "dtype", "image_mean", "image_std")}
        return {**self.sha256, **config, "label_scheme": self.scheme.identity()}

    def describe_checkpoint(self) -> dict:
        """Returns folder, step and epoch of the checkpoint, as JSON."""
        epoch = checkpoint.read_record(self.folder, self.step).get("epoch")
        return {"folder": str(self.folder), "which": self.which, "step": self.step, "epoch": epoch}

    def history(self) -> list[dict]:
        """Returns the rows of history.csv that the newest checkpoint stores."""
        rows = checkpoint.read_record(self.folder).get("history")
        rows = [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []
        finite = lambda value: None if isinstance(value, float) and not math.isfinite(value) else value  # noqa: E731
        return [{name: finite(row.get(name)) for name in COLUMNS} for row in rows]

    def views(self, height: int, width: int, tta: bool) -> tuple[View, ...]:
        """Returns the flips and turns of an image that `member` averages over."""
        return views(height, width, tta)

    def member(self, mesh: Mesh, tta: bool) -> Member:
        """Loads the model onto all devices of the mesh and returns its prediction function.

        Args:
          mesh: the devices.
          tta: whether to use test-time augmentation.

        Raises:
          DataError: The checkpoint cannot be read, or the run has replaced it.
        """
        return functools.partial(log_probabilities, self.function, self.scheme, tta, *self.weights(mesh))

    def weights(self, mesh: Mesh) -> tuple[dict, dict]:
        """Loads `params` and `model_state` of `function` onto all devices of the mesh. Raises the errors of `member`.

        Adapters (LoRA) are added to the matrices beside which they were trained.
        """
        trained = checkpoint.load_trained(self.folder, mesh, self.which, step=self.step)
        found = {"params": params_sha256(trained.params), "rest": params_sha256(trained.model_state)}
        if found != self.sha256:
            raise DataError(
                f"{self.folder / str(self.step)}: the checkpoint was replaced in the meantime; run the command again"
            )
        return checkpoint.merged_weights(trained)


class _Run(Protocol):
    """A run that `with_unique_names` can rename: a dataclass with a name and a folder."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def name(self) -> str: ...

    @property
    def run_folder(self) -> Path: ...


_AnyRun = TypeVar("_AnyRun", bound=_Run)


def read_trained_run(path: Path, mesh: Mesh, which: str) -> TrainedRun:
    """Finds and checks the checkpoint of a run.

    Args:
      path: folder of the run, or of its checkpoints.
      mesh: devices to read onto.
      which: "best" or "latest".

    Raises:
      DataError: There is no checkpoint of this program, or it is damaged, has another format, or contradicts itself.
      ConfigError: The checkpoint belongs to nnU-Net's method, which has its own commands.
    """
    folder = _checkpoints_of(path)
    trained = checkpoint.load_trained(folder, mesh, which)
    where, metadata = folder / str(trained.step), trained.metadata
    config = metadata.get("config")
    if isinstance(config, dict) and config.get("method") == "nnunet":
        raise _fold_of_nnunet(path)
    try:
        scheme = scheme_from_json(metadata.get("label_scheme"))
    except ValueError as error:
        raise DataError(f"{where}: {error}; the checkpoint was changed or is not of this program") from error
    try:
        settings: Any = ConfigDict(config)
        json.dumps(metadata, allow_nan=False)  # the evaluation writes it to JSON again
        if metadata.get("imported") is not None:
            validate_network(settings)
            _check_imported(metadata)
        else:
            validate(settings, scheme)
            if not {"layout", "split", "tiles"} <= metadata["data"].keys():
                raise KeyError("data")
        if name_of(settings.labels) != scheme.name:
            raise ConfigError(f"its config says labels={settings.labels}, its label scheme is {scheme.name}")
        statistics = ImageStatistics(tuple(settings.image_mean), tuple(settings.image_std))
        stain = None if metadata.get("stain") is None else MeasuredStain.from_json(metadata["stain"])
    except (ConfigError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(
            f"{where}: {first_line(error)}; the checkpoint was changed or is not of this program"
        ) from error
    network = checkpoint.network_of(trained)
    if "adapters" in trained.params:
        network = nnx.eval_shape(lambda network: cast(HasAdapters, network).merged(), network)
    function = ModelFunction(network, statistics)
    sha256 = {"params": params_sha256(trained.params), "rest": params_sha256(trained.model_state)}
    name = sanitized_name(_name(folder))
    return TrainedRun(name, folder, trained.which, trained.step, metadata, scheme, function, sha256, stain)


def _check_imported(metadata: dict) -> None:
    """Raises ConfigError or KeyError unless the metadata of an imported network are as they were written."""
    imported, data = metadata["imported"], metadata["config"]["data"]
    if imported["overlap"] not in Range(0, MAX_OVERLAP) or imported["blend"] not in BLENDS:
        raise ConfigError(f"its windows are blended by {imported['blend']} with the overlap {imported['overlap']}")
    if metadata["data"] is not None or data["layout"] or data["patch_size"] not in WINDOW:
        raise ConfigError("it was imported, and yet names training data, or windows of no size")
    check_mpp(data["mpp"], "data.mpp")


def with_unique_names(runs: Sequence[_AnyRun], taken: Sequence[str] = ()) -> list[_AnyRun]:
    """Returns the runs with unique names.

    Runs with the same name get the name of the parent folder as a prefix, and a number where that is not enough.

    Args:
      runs: the runs.
      taken: names that no run may have.

    Raises:
      ConfigError: Two runs have the same folder.
    """
    folders = [run.run_folder for run in runs]
    for number, folder in enumerate(folders):
        if folder in folders[:number]:
            raise ConfigError(f"--checkpoints names {printable(folder)} twice; name it once")
    names = [run.name for run in runs]
    longer = [sanitized_name(f"{run.run_folder.parent.name}_{name}") if names.count(name) > 1 else name
              for run, name in zip(runs, names, strict=True)]  # fmt: skip
    unique = []
    for name in longer:
        number, candidate = 1, name
        while candidate in unique or candidate in taken:
            number += 1
            candidate = f"{name}-{number}"
        unique.append(candidate)
    return [dataclasses.replace(run, name=name) for run, name in zip(runs, unique, strict=True)]


def joint_sha256(each: Sequence[str]) -> str:
    """Returns one hash for a sequence of hashes."""
    return hashlib.sha256(json.dumps(list(each)).encode()).hexdigest()


def sanitized_name(name: str) -> str:
    """Returns the name of an evaluation's folder.

    `_` replaces every character except letters, digits, `_`, `+`, `-` and `.`.
    """
    return re.sub(r"[^\w.+-]", "_", name).lstrip(".-") or "run"


def _checkpoints_of(path):
    path = Path(path).expanduser()
    if path.is_file():
        if description_of(path):
            raise DataError(
                f"{printable(path)}: expected the folder of a run or of its checkpoints, found the file of a SAM, that "
                "answers prompts; python -m bcss_jax.evaluate --clicks scores it, bcss_jax.prompt and "
                "bcss_jax.annotate segment with it"
            )
        raise DataError(
            f"{printable(path)}: expected the folder of a run or of its checkpoints, found a file; to start training "
            "from the weights of another program, use --config.pretrained of python -m bcss_jax.main"
        )
    if not path.is_dir():
        raise DataError(f"{printable(path)}: no such folder; expected the folder of a run, such as runs/unet")
    for folder in (path / "checkpoints", path):
        if step_numbers(folder):
            return real_path(folder)
    if folds := cross_validated_folds(path):
        raise ConfigError(
            f"{printable(path)}: expected one run, found the folds of a cross-validation; name one of them, such as "
            f"{printable(folds[0])} (python -m bcss_jax.evaluate scores them together)"
        )
    if trained_fold_names(path):
        raise ConfigError(
            f"{printable(path)}: a run of nnU-Net's method, which crops and normalizes images and joins its folds in "
            "its own way; use python -m bcss_jax.nnunet predict to segment images with it"
        )
    raise DataError(
        f"{printable(path)}: expected the folder of a run or of its checkpoints, found no checkpoint in it; train "
        "first, or name another folder"
    )


def _fold_of_nnunet(path):
    return ConfigError(
        f"{printable(path)}: a single fold of nnU-Net's method; name the folder of the run, because its folds are "
        "evaluated together"
    )


def _name(folder):
    return folder.parent.name if folder.name == "checkpoints" else folder.name
