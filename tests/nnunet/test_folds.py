import json

import numpy as np
import pytest

from bcss_jax.errors import DataError
from bcss_jax.nnunet import folds

NAMES = [f"case_{i:03d}" for i in range(47)]
PATIENTS = [f"p{i * i % 9}{i % 3}" for i in range(47)]


def test_every_case_validates_once_and_no_patient_is_on_both_sides():
    splits = folds.by_patient(NAMES, PATIENTS)
    assert sorted(name for split in splits for name in split["val"]) == NAMES
    patient_of = dict(zip(NAMES, PATIENTS, strict=True))
    for split in splits:
        assert sorted(split["train"] + split["val"]) == NAMES
        assert folds.patients_on_both_sides(split, patient_of) == []
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
    leaking = folds.patients_on_both_sides(splits[0], dict(zip(NAMES, PATIENTS, strict=True)))
    assert leaking and set(leaking) <= set(PATIENTS)


def test_too_few_patients_or_cases_are_refused():
    with pytest.raises(DataError, match="5 folds by patient need at least 5 patients, found 2 .a, b."):
        folds.by_patient(["x", "y", "z"], ["a", "b", "a"])
    with pytest.raises(DataError, match="5 folds need at least 5 cases, found 3"):
        folds.by_case(["x", "y", "z"])


def given(tmp_path, content):
    path = tmp_path / "splits.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_folds_of_a_file_are_read_and_compared_with_the_cases(tmp_path):
    path = given(tmp_path, [{"train": ["b", "a"], "val": ["c"]}, {"train": ["c"], "val": ["a"], "other": 1}])
    splits = folds.read_splits(path)
    assert splits == [{"train": ["a", "b"], "val": ["c"]}, {"train": ["c"], "val": ["a"]}]
    assert folds.check_splits(path, splits, ["a", "b", "c"]) == [
        "fold 1 leaves out 1 of 3 cases, first b",
        "1 cases are validated in no fold, first b",
    ]
    with pytest.raises(DataError, match="found 1 others in fold 0, first b"):
        folds.check_splits(path, splits, ["a", "c"])
    assert folds.check_splits(path, [splits[0], splits[0]], ["a", "b", "c"])[0] == (
        "1 cases are validated in several folds, first c"
    )


@pytest.mark.parametrize(
    "content, said",
    (
        ("[", "found: no JSON"),
        ({"train": [], "val": []}, "type dict"),
        ([], "found none"),
        ([["a"]], "something else in fold 0"),
        ([{"train": ["a"]}], "something else in fold 0"),
        ([{"train": ["a"], "val": [1]}], "something else in fold 0"),
        ([{"train": ["a"], "val": "b"}], "something else in fold 0"),
        ([{"train": ["a"], "val": []}], "none in val"),
        ([{"train": ["a", "b"], "val": ["b"]}], "found b in train and in val"),
        ([{"train": ["a", "a"], "val": ["b"]}], "found a twice"),
    ),
)
def test_files_that_are_no_folds_are_refused(tmp_path, content, said):
    with pytest.raises(DataError, match=said):
        folds.read_splits(given(tmp_path, content))


def test_copies_of_folds_are_no_folds_and_untrained_ones_are_named(tmp_path, caplog):
    for name in ("0", "1", "1_old", "0 copy", "all"):
        (tmp_path / f"fold_{name}" / "checkpoints").mkdir(parents=True)
    (tmp_path / "splits_final.json").write_text("[{}, {}, {}]")
    assert folds.trained_fold_names(tmp_path) == ["0", "1", "all"]
    assert folds.folds_of_ensemble(tmp_path) == ["0", "1"]
    said = " ".join(record.getMessage() for record in caplog.records)
    assert "not used: fold_0 copy, fold_1_old, fold_all" in said and "fold 2 of 3 not trained, left out" in said
