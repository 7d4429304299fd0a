"""A run takes the position table of the weights that it begins with, and keeps it without them."""

import json

import numpy as np
import pytest
from helpers.small_networks import TINY_FORM, small_vit
from ml_collections import ConfigDict
from safetensors.numpy import save_file

from bcss_jax.models.encoders.vision_transformer.presets import PRESETS, Preset
from bcss_jax.models.image_normalization import IMAGENET
from bcss_jax.models.weights.pretrained import to_torch_state
from bcss_jax.training.start.position_table import set_position_table


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    monkeypatch.setitem(PRESETS, "tiny", Preset(TINY_FORM, IMAGENET, ""))


def config(pretrained, table=0, name="vit"):
    return ConfigDict({"pretrained": str(pretrained), "model": {"name": name, "encoder": "tiny", "table": table}})


def set_for(workdir, *args, **kwargs):
    changed = config(*args, **kwargs)
    set_position_table(changed, workdir)
    return changed.model.table


def test_the_table_of_the_file_is_taken_and_kept(tmp_path, capsys):
    state = to_torch_state(small_vit(3, table=6).encoder)
    file = tmp_path / "encoder.safetensors"
    save_file(state | {"head.weight": np.zeros((2, 2), np.float32)}, file)
    assert set_for(tmp_path, file) == 6
    assert "has a position table of 6x6" in capsys.readouterr().out
    assert set_for(tmp_path, file, table=5) == 5  # an explicit one stays, and the file is refused later
    assert set_for(tmp_path, file, name="unet") == 0
    file.unlink()
    assert set_for(tmp_path, file) == 0
    (tmp_path / "config.json").write_text(json.dumps({"model": {"encoder": "tiny", "table": 6}}))
    assert set_for(tmp_path, file) == 6
    assert set_for(tmp_path / "other", tmp_path) == 6  # another run as the source


def test_the_published_table_and_other_files_change_nothing(tmp_path, capsys):
    file = tmp_path / "encoder.safetensors"
    save_file(to_torch_state(small_vit(3).encoder), file)
    assert set_for(tmp_path, file) == 0
    file.write_bytes(file.read_bytes()[:100])
    assert set_for(tmp_path, file) == 0
    save_file({"conv1.weight": np.zeros((4, 3, 3, 3), np.float32)}, file)
    assert set_for(tmp_path, file) == 0
    save_file(to_torch_state(small_vit(3)), file)
    assert set_for(tmp_path, file) == 0
    assert capsys.readouterr().out == ""
