"""Cross-validation folds: which examples are trained on and which are held out.

Tiles of one patient look alike. A fold with tiles of the same patient on both sides measures what the network memorized
rather than how it generalizes. By default, all examples of a patient are therefore on the same side.
"""

import collections
from collections.abc import Sequence

import numpy as np

from bcss_jax.errors import DataError, printable

NUM_FOLDS, SEED = 5, 12345  # nnU-Net's
Split = dict[str, list[str]]


def by_patient(
    names: Sequence[str], patients: Sequence[str], count: int = NUM_FOLDS, *, seed: int = SEED, remedy: str = "add data"
) -> list[Split]:
    """Returns folds in which all cases of a patient are on the same side.

    Patients are shuffled. Then each patient, starting with the one that has most cases, is assigned to the fold with
    the fewest cases.

    Args:
      names: names of the cases.
      patients: patient of each case.
      count: number of folds.
      seed: of the shuffle.
      remedy: what to do about too few patients.

    Returns:
      One {"train": names, "val": names} per fold with sorted names, as in nnU-Net's splits_final.json.

    Raises:
      DataError: there are fewer patients than folds.
    """
    cases = collections.defaultdict(list)
    for name, patient in sorted(zip(names, patients, strict=True)):
        cases[patient].append(name)
    if len(cases) < count:
        found = ", ".join(map(printable, sorted(cases)[:5])) or "none"
        raise DataError(
            f"{count} folds by patient need at least {count} patients, found {len(cases)} ({found}; a case whose name "
            f"does not say its patient counts as one); {remedy}"
        )
    order = np.random.RandomState(seed).permutation(sorted(cases)).tolist()
    order.sort(key=lambda patient: -len(cases[patient]))  # stable, so patients with equally many cases stay shuffled
    held_out = [[] for _ in range(count)]
    for patient in order:
        min(held_out, key=len).extend(cases[patient])
    return [_split(names, val) for val in held_out]


def by_case(names: Sequence[str], count: int = NUM_FOLDS, seed: int = SEED) -> list[Split]:
    """Returns nnU-Net's own folds, which ignore patients: scikit-learn's shuffled KFold over the sorted names.

    Returns:
      See `by_patient`.

    Raises:
      DataError: there are fewer cases than folds.
    """
    if len(names) < count:
        raise DataError(f"{count} folds need at least {count} cases, found {len(names)}; add data")
    order = np.random.RandomState(seed).permutation(len(names))
    ordered = np.asarray(sorted(names), object)
    return [_split(names, ordered[held_out]) for held_out in np.array_split(order, count)]


def _split(names, held_out) -> Split:
    held_out = set(held_out)
    return {"train": sorted(set(names) - held_out), "val": sorted(held_out)}
