"""Cross-validation folds: which cases train and which validate, and which folds of a run are trained.

Tiles of one patient look alike, so a fold that has some of them on both sides measures memory, not skill. Folds are
therefore made of whole patients unless told otherwise.
"""

import collections
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from bcss_jax.errors import DataError

NUM_FOLDS, SEED = 5, 12345  # nnU-Net's
Split = dict[str, list[str]]


def by_patient(names: Sequence[str], patients: Sequence[str], count: int = NUM_FOLDS, seed: int = SEED) -> list[Split]:
    """Folds in which all cases of a patient are on the same side.

    Patients are shuffled, then each in turn, those with most cases first, joins the fold that has fewest cases.

    Args:
      names: of the cases.
      patients: of each case.
      count: of the folds.
      seed: of the shuffle.

    Returns:
      One {"train": names, "val": names} per fold, names sorted: nnU-Net's splits_final.json.

    Raises:
      DataError: fewer patients than folds.
    """
    cases = collections.defaultdict(list)
    for name, patient in sorted(zip(names, patients, strict=True)):
        cases[patient].append(name)
    if len(cases) < count:
        found = ", ".join(sorted(cases)[:5]) or "none"
        raise DataError(
            f"{count} folds by patient need at least {count} patients, found {len(cases)} ({found}); add data, or take the "
            "data set's own parts with --config.folds=published, or train on everything with --config.fold=all"
        )
    order = np.random.RandomState(seed).permutation(sorted(cases)).tolist()
    order.sort(key=lambda patient: -len(cases[patient]))  # stable: equal ones stay shuffled
    held_out = [[] for _ in range(count)]
    for patient in order:
        min(held_out, key=len).extend(cases[patient])
    return [_split(names, val) for val in held_out]


def by_case(names: Sequence[str], count: int = NUM_FOLDS, seed: int = SEED) -> list[Split]:
    """nnU-Net's own folds: scikit-learn's KFold, shuffled, over the sorted names, whoever the patients are.

    Returns:
      As `by_patient`.

    Raises:
      DataError: fewer cases than folds.
    """
    if len(names) < count:
        raise DataError(f"{count} folds need at least {count} cases, found {len(names)}; add data")
    order = np.random.RandomState(seed).permutation(len(names))
    ordered = np.asarray(sorted(names), object)
    return [_split(names, ordered[held_out]) for held_out in np.array_split(order, count)]


def patients_on_both_sides(split: Split, patient_of: dict[str, str]) -> list[str]:
    """The patients whose cases a fold both trains on and validates with: what its figures leak through."""
    return sorted({patient_of[name] for name in split["train"]} & {patient_of[name] for name in split["val"]})


def fold_sha256(fingerprint: dict, split: Split, plan: dict) -> str:
    """What a fold is trained on, and how, as a hash: in its checkpoints."""
    return hashlib.sha256(json.dumps([fingerprint, split, plan], sort_keys=True).encode()).hexdigest()


def trained_fold_names(run: Path) -> list[str]:
    """Names of the folds, sorted, that have checkpoints in the folder of a run; none if it is no run of nnU-Net's method."""
    return sorted(folder.parent.name.removeprefix("fold_") for folder in run.glob("fold_*/checkpoints"))


def _split(names, held_out) -> Split:
    held_out = set(held_out)
    return {"train": sorted(set(names) - held_out), "val": sorted(held_out)}
