"""A command that was stopped at any moment finds the predictions that it has written."""

import pytest

from bcss_jax.errors import ConfigError, StorageError
from bcss_jax.nnunet import unfinished_predictions
from bcss_jax.nnunet.unfinished_predictions import UnfinishedPredictions

IDENTITY = {"weights": "a"}


@pytest.mark.parametrize("written", [False, True])
def test_a_prediction_is_known_wherever_the_command_stops(tmp_path, monkeypatch, written):
    target = tmp_path / "a.png"

    def stopped(path, content):
        if written:
            path.write_bytes(content)
        raise StorageError("full")

    with monkeypatch.context() as patch:
        patch.setattr(unfinished_predictions, "write_bytes", stopped)
        with pytest.raises(StorageError):
            UnfinishedPredictions(tmp_path, IDENTITY).write(target, b"labels")
    again = UnfinishedPredictions(tmp_path, IDENTITY)
    assert again.has(target) is written
    again.refuse_others([target], overwrite=False)
    if written:
        target.write_bytes(b"half")
        assert not again.has(target)
        with pytest.raises(ConfigError, match="this prediction already exists"):
            again.refuse_others([target], overwrite=False)
        with pytest.raises(ConfigError):
            UnfinishedPredictions(tmp_path, {"weights": "b"}).refuse_others([target], overwrite=False)
