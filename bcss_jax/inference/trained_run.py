"""A trained run as the evaluation needs it: found by its path, and checked before anything is computed.

Everything that decides what the figures mean comes from the checkpoint: network, label scheme, image statistics, data.
Nothing in a run's folder is executed or unpickled; a checkpoint is JSON and arrays.
"""

import dataclasses
import functools
import hashlib
import json
import math
import re
from collections.abc import Sequence
from pathlib import Path

from jax.sharding import Mesh
from ml_collections import ConfigDict

from bcss_jax.config import validate
from bcss_jax.errors import ConfigError, DataError, first_line, printable
from bcss_jax.inference.predict import Member, View, log_probabilities, views
from bcss_jax.labels import LabelScheme, name_of, scheme_from_json
from bcss_jax.models.apply import ImageStatistics, ModelFunction
from bcss_jax.nnunet.folds import trained_folds
from bcss_jax.training import checkpoint
from bcss_jax.training.history import COLUMNS
from bcss_jax.training.summary import params_sha256


@dataclasses.dataclass(frozen=True)
class TrainedRun:
    """A checkpoint that can be evaluated; its arrays stay on the disk until `member` reads them.

    Attributes:
      name: unique among those of an evaluation; letters, digits, `_`, `.`, `+` and `-`, so that it can be a folder's.
      folder: of the checkpoints.
      which: "best" or "latest".
      step: of the checkpoint.
      about: what it says of itself.
      scheme: its label scheme.
      function: its network, equal to that of another run of the same structure.
      sha256: of `params`, and of `model_state` (batch statistics).
    """

    name: str
    folder: Path
    which: str
    step: int
    about: dict
    scheme: LabelScheme
    function: ModelFunction
    sha256: dict[str, str]

    @property
    def config(self) -> dict:
        """All settings of the training."""
        return self.about["config"]

    @property
    def home(self) -> Path:
        """The folder of the run."""
        return self.folder.parent if self.folder.name == "checkpoints" else self.folder

    @property
    def trained_on(self) -> dict:
        """`dataset.PreparedData.describe` of the training."""
        return self.about["data"]

    @property
    def batch_size(self) -> int:
        """Images at a time in the validation of its training."""
        return self.config["eval_batch_size"]

    def identity(self) -> dict:
        """What decides its predictions, as JSON."""
        config = {name: self.config[name] for name in ("model", "dtype", "image_mean", "image_std")}
        return {**self.sha256, **config, "label_scheme": self.scheme.identity()}

    def position(self) -> dict:
        """Where the checkpoint comes from, as JSON."""
        epoch = checkpoint.read_record(self.folder, self.step).get("epoch")
        return {"folder": str(self.folder), "which": self.which, "step": self.step, "epoch": epoch}

    def history(self) -> list[dict]:
        """The rows of history.csv that the newest checkpoint knows of."""
        rows = checkpoint.read_record(self.folder).get("history")
        rows = [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []
        finite = lambda value: None if isinstance(value, float) and not math.isfinite(value) else value  # noqa: E731
        return [{name: finite(row.get(name)) for name in COLUMNS} for row in rows]

    def views(self, height: int, width: int, tta: bool) -> tuple[View, ...]:
        """The flips and turns of an image that `member` looks at."""
        return views(height, width, tta)

    def member(self, mesh: Mesh, tta: bool) -> Member:
        """The model on all devices of the mesh, with test-time augmentation or without.

        Raises:
          DataError: the checkpoint cannot be read, or another one has taken its place.
        """
        return functools.partial(log_probabilities, self.function, self.scheme, tta, *self.weights(mesh))

    def weights(self, mesh: Mesh) -> tuple[dict, dict]:
        """`params` and `model_state` on all devices of the mesh; errors as of `member`."""
        trained = checkpoint.load_trained(self.folder, mesh, self.which)
        if trained.step != self.step:
            raise DataError(
                f"{self.folder}: the run has saved another checkpoint meanwhile; run the same command again"
            )
        return trained.params, trained.model_state


def read(path: Path, mesh: Mesh, which: str) -> TrainedRun:
    """Finds a run's checkpoint and checks it.

    Args:
      path: the folder of a run, or of its checkpoints.
      mesh: devices to read onto.
      which: "best" or "latest".

    Raises:
      DataError: there is no checkpoint of this program, or it is damaged, of another format, or contradicts itself.
      ConfigError: it is one that another command evaluates.
    """
    folder = _checkpoints_of(path)
    trained = checkpoint.load_trained(folder, mesh, which)
    where, about = folder / str(trained.step), trained.about
    config = about.get("config")
    if isinstance(config, dict) and config.get("method") == "nnunet":
        raise _fold_of_nnunet(path)
    try:
        scheme = scheme_from_json(about.get("label_scheme"))
    except ValueError as error:
        raise DataError(f"{where}: {error}; the checkpoint was changed or is not of this program") from error
    try:
        settings = ConfigDict(config)
        validate(settings, scheme)
        json.dumps(about, allow_nan=False)  # it is written down again
        if not {"layout", "split", "tiles"} <= about["data"].keys():
            raise KeyError("data")
        if name_of(settings.labels) != scheme.name:
            raise ConfigError(f"its config says labels={settings.labels}, its label scheme is {scheme.name}")
        statistics = ImageStatistics(tuple(settings.image_mean), tuple(settings.image_std))
    except (ConfigError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(
            f"{where}: {first_line(error)}; the checkpoint was changed or is not of this program"
        ) from error
    function = ModelFunction(checkpoint.network_of(trained), statistics)
    sha256 = {"params": params_sha256(trained.params), "rest": params_sha256(trained.model_state)}
    return TrainedRun(folder_name(_name(folder)), folder, which, trained.step, about, scheme, function, sha256)


def with_unique_names(runs: Sequence[TrainedRun], taken: Sequence[str] = ()) -> list[TrainedRun]:
    """The same runs; those of one name get that of the folder above in front, and a number if that is not enough.

    Raises:
      ConfigError: the same checkpoint twice.
    """
    folders = [run.home for run in runs]
    for number, folder in enumerate(folders):
        if folder in folders[:number]:
            raise ConfigError(f"--checkpoints names {printable(folder)} twice; name it once")
    names = [run.name for run in runs]
    longer = [folder_name(f"{run.home.parent.name}_{name}") if names.count(name) > 1 else name
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
    """Of several hashes, in their order."""
    return hashlib.sha256(json.dumps(list(each)).encode()).hexdigest()


def folder_name(name: str) -> str:
    """A name that can be that of a folder, in any file system."""
    return re.sub(r"[^\w.+-]", "_", name).lstrip(".-") or "run"


def _checkpoints_of(path):
    path = Path(path).expanduser()
    if path.is_file():
        raise DataError(
            f"{printable(path)}: expected the folder of a run or its checkpoints, found a file; weights of other programs "
            "are read by --config.pretrained of python -m bcss_jax.main only"
        )
    if not path.is_dir():
        raise DataError(f"{printable(path)}: no such folder; expected the folder of a run, such as runs/unet")
    for folder in (path / "checkpoints", path):
        if folder.is_dir() and any(each.name.isdecimal() for each in folder.iterdir()):
            return folder.resolve()
    if trained_folds(path):
        raise ConfigError(
            f"{printable(path)}: a run of nnU-Net's method, which crops, normalizes and joins folds in its own way; python -m "
            "bcss_jax.nnunet predict segments images with it"
        )
    raise DataError(
        f"{printable(path)}: expected the folder of a run or its checkpoints, found no checkpoint in it; train first, or "
        "name another folder"
    )


def _fold_of_nnunet(path):
    return ConfigError(
        f"{printable(path)}: one fold of nnU-Net's method; name the folder of its run, whose folds are evaluated together"
    )


def _name(folder):
    return folder.parent.name if folder.name == "checkpoints" else folder.name
