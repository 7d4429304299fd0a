import numpy as np
import pytest

from bcss_jax.data.sampling import folds
from bcss_jax.errors import DataError
from bcss_jax.nnunet.folds import patients_on_both_sides

NAMES = [f"case_{i:03d}" for i in range(47)]
PATIENTS = [f"p{i * i % 9}{i % 3}" for i in range(47)]


def test_every_case_validates_once_and_no_patient_is_on_both_sides():
    splits = folds.by_patient(NAMES, PATIENTS)
    assert sorted(name for split in splits for name in split["val"]) == NAMES
    patient_of = dict(zip(NAMES, PATIENTS, strict=True))
    for split in splits:
        assert sorted(split["train"] + split["val"]) == NAMES
        assert patients_on_both_sides(split, patient_of) == []
    sizes = [len(split["val"]) for split in splits]
    largest = max(PATIENTS.count(p) for p in PATIENTS)
    assert max(sizes) - min(sizes) <= largest
    shuffled = np.random.RandomState(0).permutation(len(NAMES))
    again = folds.by_patient([NAMES[i] for i in shuffled], [PATIENTS[i] for i in shuffled])
    assert again == splits
    assert folds.by_patient(NAMES, PATIENTS, seed=1) != splits


def test_folds_by_case_equal_nnunet():
    model_selection = pytest.importorskip("sklearn.model_selection", reason="scikit-learn is not installed")
    for count in (5, 12, 47, 103):
        names = sorted(f"n{i}" for i in range(count))
        kfold = model_selection.KFold(n_splits=5, shuffle=True, random_state=12345)
        expected = [
            {"train": [names[i] for i in train], "val": [names[i] for i in val]} for train, val in kfold.split(names)
        ]
        assert folds.by_case(list(reversed(names))) == expected


def test_patients_that_leak_are_named():
    splits = folds.by_case(NAMES)
    leaking = patients_on_both_sides(splits[0], dict(zip(NAMES, PATIENTS, strict=True)))
    assert leaking and set(leaking) <= set(PATIENTS)


def test_too_few_patients_or_cases_are_refused():
    with pytest.raises(DataError, match="5 folds by patient need at least 5 patients, found 2 .a, b."):
        folds.by_patient(["x", "y", "z"], ["a", "b", "a"])
    with pytest.raises(DataError, match="5 folds need at least 5 cases, found 3"):
        folds.by_case(["x", "y", "z"])
