"""A run resumes from its own checkpoints only."""

import json

import pytest

from bcss_jax.config import default
from bcss_jax.errors import ConfigError, DataError
from bcss_jax.labels import SCHEMES
from bcss_jax.training.resumed import check_same_run


def metadata(**changes):
    config = default().to_dict() | changes
    scheme = SCHEMES["tumor_stroma"].to_json()
    return {"config": config, "label_scheme": scheme, "data": {"content_sha256": "a"}, "pretrained": None}


def less_memory():
    config = default()
    config.data.memory_share = 0.0
    return config


def saved(**changes):
    """Returns metadata as they are read from a checkpoint: tuples are lists."""
    return json.loads(json.dumps(metadata(**changes)))


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    check_same_run(tmp_path, saved(), metadata())
    check_same_run(tmp_path, saved(log_seconds=3.0), metadata())  # changes no result
    raw = {"data": None, "data_sha256": "a"}  # of nnU-Net's method and a raw data folder
    check_same_run(tmp_path, saved() | raw, metadata() | raw)
    check_same_run(
        tmp_path, {name: value for name, value in (saved() | raw).items() if name != "data"}, metadata() | raw
    )
    older = saved()
    del older["config"]["early_stopping"]  # a setting that an earlier version did not have
    check_same_run(tmp_path, older, metadata())
    del older["config"]["augment_on"], older["config"]["data"]["memory_share"]
    check_same_run(tmp_path, older, metadata())
    with pytest.raises(ConfigError, match="config.augment_on: host -> device"):  # changes what is drawn
        check_same_run(tmp_path, older, metadata(augment_on="device"))
    check_same_run(tmp_path, saved(), metadata() | {"config": less_memory().to_dict()})  # changes no result
    with pytest.raises(ConfigError, match="saved by a run with other settings .*config.seed: 1 -> 0.*move it away"):
        check_same_run(tmp_path, saved(seed=1), metadata())


@pytest.mark.parametrize("name", ["config", "label_scheme", "data", "pretrained"])
@pytest.mark.parametrize("value", [None, 1, "x", [], {"data": 1}])
def test_damaged_metadata_are_one_error(tmp_path, name, value):
    """Checkpoints of earlier versions have no digests that would show it."""
    damaged = saved() | {name: value}
    if (name, value) == ("pretrained", None):
        return
    with pytest.raises((DataError, ConfigError)) as caught:
        check_same_run(tmp_path, damaged, metadata())
        assert damaged[name] == {"data": 1} and name == "data"  # has no digest, which the caller compares
        raise DataError("x")
    assert len(str(caught.value).splitlines()) == 1
    del damaged[name]
    with pytest.raises(DataError, match=str(tmp_path)):
        check_same_run(tmp_path, damaged, metadata())
