"""Plans and folds of a user beside those of a run."""

import json
import os

import pytest

from bcss_jax.errors import ConfigError, DataError
from bcss_jax.nnunet import given_files
from bcss_jax.nnunet.config import default, fold_names, validate

PLAN, SPLITS = {"plans_name": "ours"}, [{"train": ["a"], "val": ["b"]}]


@pytest.fixture
def config(tmp_path):
    found = default()
    found.data.layout, found.data.dir = "nnunet", str(tmp_path / "raw")
    for folder in ("raw", "run"):
        (tmp_path / folder).mkdir()
    return found


@pytest.mark.parametrize(
    "file, option",
    (
        ("raw/splits_final.json", "--config.folds="),
        ("raw/splits.json", "--config.folds="),
        ("raw/nnUNetPlans.json", "--config.plan="),
        ("raw/plans.json", "--config.plan="),
        ("run/nnUNetResEncUNetMPlans.json", "--config.plan="),
        ("run/splits.json", "--config.folds="),
    ),
)
def test_files_that_the_config_does_not_name_are_refused(config, tmp_path, file, option):
    places = (tmp_path / "raw", tmp_path / "run")
    ours = SPLITS if "splits" in file else PLAN
    for content in ("{}", "not json"):
        (tmp_path / file).write_text(content)
        with pytest.raises(ConfigError, match=f"{file}: .*{option}"):
            given_files.refuse_unnamed(config, places, PLAN, SPLITS)
        assert (tmp_path / file).read_text() == content
    (tmp_path / file).write_text(json.dumps(ours))
    given_files.refuse_unnamed(config, places, PLAN, SPLITS)  # it says the same as the run
    (tmp_path / file).write_text("{}")
    config.plan, config.folds = "plan.json", "splits.json"  # the user has chosen others
    given_files.refuse_unnamed(config, places, PLAN, SPLITS)


def test_documents_of_a_run_are_written_once(tmp_path):
    documents = {"plans": PLAN, "splits_final": SPLITS, "dataset": {"labels": {}}}
    (tmp_path / "plans.json").write_text(json.dumps(PLAN, indent=4))
    (tmp_path / "splits_final.json").write_text("[]\n")  # of a network that was trained on all cases
    assert given_files.missing_documents(tmp_path, documents) == ["splits_final", "dataset"]
    (tmp_path / "dataset.json").write_text("{}")
    with pytest.raises(ConfigError, match="dataset.json: expected the dataset of this run .*name another --workdir"):
        given_files.missing_documents(tmp_path, documents)


def test_a_file_of_folds_gives_the_number_of_folds(tmp_path):
    config, file = default(), tmp_path / "splits.json"
    config.folds = str(file)
    with pytest.raises(DataError, match="splits.json: expected a list of folds"):
        validate(config)
    file.write_text(json.dumps(SPLITS * 3))
    validate(config)
    assert fold_names(config) == ["0", "1", "2"]
    config.fold = "3"
    with pytest.raises(ConfigError, match="config.fold=3: must be one of each, all, 0, 1, 2"):
        validate(config)


def test_a_fifo_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "splits_final.json")
    with pytest.raises(
        ConfigError,
        match="splits_final.json: expected the splits_final of this run",
    ):
        given_files.missing_documents(tmp_path, {"splits_final": SPLITS})
