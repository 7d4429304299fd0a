import json

import pytest

from bcss_jax.errors import DataError
from bcss_jax.nnunet import folds


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
