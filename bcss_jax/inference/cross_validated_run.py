"""The folds of a cross-validation, each a trained run of its own that has not seen the images of its fold.

`python -m bcss_jax.main ... --config.data.folds=5` trains them into `fold_0`, `fold_1`, .. of one folder.
"""

import collections
import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from bcss_jax.common.regular_file import real_path
from bcss_jax.errors import DataError, printable
from bcss_jax.inference.trained_run import TrainedRun, read_trained_run, sanitized_name
from bcss_jax.labels import LabelScheme
from bcss_jax.training.workdir import cross_validated_folds

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class CrossValidatedRun:
    """The trained folds of one cross-validation.

    Attributes:
      name: as in `TrainedRun`.
      run_folder: the folder that holds the folds.
      folds: the runs of the folds, by number.
    """

    name: str
    run_folder: Path
    folds: tuple[TrainedRun, ...]

    @property
    def scheme(self) -> LabelScheme:
        """Label scheme of all folds."""
        return self.folds[0].scheme

    @property
    def config(self) -> dict:
        """The training configuration of the first fold; those of the others differ in the fold alone."""
        return self.folds[0].config

    @property
    def batch_size(self) -> int:
        """Validation batch size of the training."""
        return self.folds[0].batch_size

    @property
    def content_sha256(self) -> str:
        """Of the data set that was divided into folds."""
        return self._first["content_sha256"]

    @property
    def count(self) -> int:
        """Number of folds of the cross-validation, trained or not."""
        return self._first["count"]

    @property
    def held_out(self) -> list[int]:
        """Number of the fold that each of `folds` held out."""
        return [_fold_of(run)["held_out"] for run in self.folds]

    @property
    def _first(self) -> dict:
        return _fold_of(self.folds[0])


def _fold_of(run: TrainedRun) -> dict:
    """Returns `run.fold`. Raises DataError if it is not one of a cross-validation."""
    fold = run.fold
    if not isinstance(fold, dict) or not {"count", "held_out", "content_sha256"} <= fold.keys():
        raise DataError(
            f"{printable(run.run_folder)}: expected a fold of a cross-validation, found another run; name the run "
            "itself, or move it away"
        )
    return fold


def read_cross_validated_run(path: Path, mesh: Mesh, which: str) -> CrossValidatedRun:
    """Finds and checks the checkpoints of all folds that are trained. The log names those that are missing.

    Args:
      path: the folder that holds the folds.
      mesh: devices to read onto.
      which: "best" or "latest".

    Raises:
      DataError: a checkpoint cannot be used, or the folds do not belong together.
    """
    folder = real_path(Path(path).expanduser())
    folds = tuple(read_trained_run(each, mesh, which) for each in cross_validated_folds(folder))
    first, numbers = folds[0], []
    for run in folds:
        of = _fold_of(run)
        numbers.append(of["held_out"])
        expected = {**_fold_of(first), "held_out": of["held_out"]}
        if of != expected or run.scheme != first.scheme or run.config["model"] != first.config["model"]:
            raise DataError(
                f"{printable(run.run_folder)}: expected a fold of the cross-validation of "
                f"{printable(first.run_folder.name)}, found other data, folds, labels or another network; "
                "name the runs one by one"
            )
    if len(set(numbers)) < len(numbers):
        twice = max(numbers, key=numbers.count)
        raise DataError(f"{printable(folder)}: expected each fold once, found fold {twice} twice; move one away")
    count = _fold_of(first)["count"]
    missing = sorted(set(range(count)) - set(numbers))
    if missing:
        log.warning(
            "%s: fold %s of %d not trained; the images of these folds are not scored",
            printable(folder),
            ", ".join(map(str, missing)),
            count,
        )
    return CrossValidatedRun(sanitized_name(folder.name), folder, folds)


def joint_description(folds: Sequence[Any]) -> dict:
    """Returns a description of the held-out images of all folds together, as `tfrecords.PreparedData.describe` does.

    Args:
      folds: the data set with each of the folds held out (`sampling.folded_data.FoldedData`).
    """
    first, pixels = folds[0].describe(), collections.Counter()
    for each in folds:
        pixels.update(each.describe()["code_pixels"].get("val", {}))
    rows = [row for each in folds for row in each.table("val")]
    held_out = [each.describe()["folds"]["held_out"] for each in folds]
    return first | {
        "tiles": {"val": len(rows)},
        "patients": {"val": len({row["patient"] for row in rows})},
        "patients_in_two_parts": 0,
        "code_pixels": {"val": dict(pixels)},
        "content_sha256": first["folds"]["content_sha256"],
        "folds": {**first["folds"], "held_out": held_out},
    }
