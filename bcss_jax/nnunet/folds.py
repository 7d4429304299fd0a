"""Cross-validation folds: which cases are trained on, which are validated on, and which folds of a run are trained.

Tiles of one patient look alike. A fold with tiles of the same patient on both sides measures what the network memorized
rather than how it generalizes. By default, all cases of a patient are therefore on the same side.
"""

import collections
import contextlib
import hashlib
import json
import logging
from collections.abc import Sequence
from pathlib import Path

from bcss_jax.common.json_files import read_json
from bcss_jax.data.image_folder import composed
from bcss_jax.data.sampling.folds import Split
from bcss_jax.errors import DataError, printable

log = logging.getLogger(__name__)

ALL = "all"  # name of the fold that is trained on all cases


def patients_on_both_sides(split: Split, patient_of: dict[str, str]) -> list[str]:
    """Returns the patients who have both training and validation cases in a fold, which inflates its scores."""
    return sorted({patient_of[name] for name in split["train"]} & {patient_of[name] for name in split["val"]})


def read_splits(path: Path | str) -> list[Split]:
    """Reads folds that the user gives, in the form of nnU-Net's splits_final.json.

    Raises:
      DataError: it is not such a file, or a fold has no case to train on or to validate on, or the same case twice.
    """
    path = Path(path).expanduser()
    expected, remedy = "a list of folds, each with the names of its train and val cases", "correct it"
    content = read_json(path, expected, "correct it, or name another file with --config.folds", kind=list)
    if not content:
        raise DataError(f"{printable(path)}: expected {expected}, found none; {remedy}")
    splits = []
    for number, fold in enumerate(content):
        sides = [fold.get(side) for side in ("train", "val")] if isinstance(fold, dict) else [None]
        if not all(isinstance(side, list) and all(isinstance(name, str) for name in side) for side in sides):
            raise DataError(f"{printable(path)}: expected {expected}, found something else in fold {number}; {remedy}")
        train, val = (sorted(map(composed, fold[side])) for side in ("train", "val"))
        counts = collections.Counter(train + val)
        twice = next((name for name, count in counts.items() if count > 1), None)
        if twice is not None:
            raise DataError(
                f"{printable(path)}: expected each case once in fold {number}, found {printable(twice)} "
                f"{'in train and in val' if twice in train and twice in val else 'twice'}; {remedy}"
            )
        if not train or not val:
            raise DataError(
                f"{printable(path)}: expected cases in train and in val of fold {number}, found none in "
                f"{'val' if train else 'train'}; {remedy}"
            )
        splits.append({"train": train, "val": val})
    return splits


def check_splits(path: Path | str, splits: Sequence[Split], names: Sequence[str]) -> list[str]:
    """Compares folds that the user gives with the cases of the data set.

    Args:
      path: of the file, for messages.
      splits: as `read_splits` returns them.
      names: of the cases to train on.

    Returns:
      One phrase for each thing that is unusual but allowed: cases that a fold leaves out, and cases that are validated
      several times or never.

    Raises:
      DataError: a fold names a case that the data set does not have.
    """
    known, remarks = set(names), []
    for number, split in enumerate(splits):
        used = {*split["train"], *split["val"]}
        if unknown := sorted(used - known):
            raise DataError(
                f"{printable(path)}: expected names of the {len(known)} cases of the data set, found {len(unknown)} "
                f"others in fold {number}, first {printable(unknown[0])}; correct it, or complete the data set"
            )
        if absent := sorted(known - used):
            remarks.append(
                f"fold {number} leaves out {len(absent)} of {len(known)} cases, first {printable(absent[0])}"
            )
    validated = collections.Counter(name for split in splits for name in split["val"])
    repeated = sorted(name for name, count in validated.items() if count > 1)
    if repeated:
        remarks.append(f"{len(repeated)} cases are validated in several folds, first {printable(repeated[0])}")
    if never := sorted(known - validated.keys()):
        remarks.append(f"{len(never)} cases are validated in no fold, first {printable(never[0])}")
    return remarks


def fold_sha256(fingerprint: dict, split: Split, plan: dict) -> str:
    """Returns a hash of what a fold is trained on and how; it is stored in the checkpoints of the fold."""
    return hashlib.sha256(json.dumps([fingerprint, split, plan], sort_keys=True).encode()).hexdigest()


def trained_fold_names(run: Path) -> list[str]:
    """Returns the sorted names of the folds with checkpoints in the folder of a run; empty for other runs.

    Other folders, such as a copy fold_0_old, are no folds.
    """
    return [name for name in _names_with_checkpoints(run) if name == ALL or name.isdecimal()]


def folds_of_ensemble(run: Path) -> list[str]:
    """Returns the folds of a run that predict together: the numbered ones, or "all" if there are no others.

    The log names those that are left out: copies, and folds that were planned but not trained.
    """
    names = trained_fold_names(run)
    chosen = [name for name in names if name != ALL] or names
    others = [f"fold_{name}" for name in _names_with_checkpoints(run) if name not in chosen]
    if others:
        log.warning("%s: not used: %s", printable(run), ", ".join(map(printable, others)))
    if chosen and ALL not in chosen:
        planned = []
        with contextlib.suppress(DataError):  # predicting does not need the file
            planned = read_json(run / "splits_final.json", "the folds of a run", "put the file back", kind=list)
        untrained = [str(number) for number in range(len(planned)) if str(number) not in chosen]
        if untrained:
            log.warning("%s: fold %s of %d not trained, left out", printable(run), ", ".join(untrained), len(planned))
    return chosen


def _names_with_checkpoints(run):
    folders = [path.parent for path in run.glob("fold_*/checkpoints")]
    # Folds with a config of their own are runs of the other recipe (`training.workdir.cross_validated_folds`).
    return sorted(each.name.removeprefix("fold_") for each in folders if not (each / "config.json").exists())
