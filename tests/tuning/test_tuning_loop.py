"""A training with prompts goes from tiles to a file that the predictor reads, also after it was stopped."""

import csv
import json
import shutil

import numpy as np
import pytest
from helpers.sam_small import TILES, prompt_settings, use_small_sams
from helpers.small_networks import SAM_DECODER
from PIL import Image

import bcss_jax
from bcss_jax.errors import ConfigError, DataError, Preempted
from bcss_jax.models.sam.weights import loading
from bcss_jax.models.sam.weights.loading import load
from bcss_jax.models.weights.pretrained import to_torch_state
from bcss_jax.prompting import Predictor
from bcss_jax.training.checkpoint import load_model


@pytest.fixture(autouse=True)
def small_sams(monkeypatch):
    use_small_sams(monkeypatch)
    # A file does not say how many heads a decoder of another width has.
    monkeypatch.setattr(loading, "decoder_form_of", lambda arrays: SAM_DECODER)


@pytest.mark.slow
@pytest.mark.parametrize("how", [{}, {"freeze_encoder": True}, {"lora.rank": 2}, {"encoder": "tiny2"}])
def test_a_resumed_run_ends_with_the_same_file(tmp_path, how):
    config = prompt_settings(tmp_path, **how)
    bcss_jax.train(config, tmp_path / "whole")
    with pytest.raises(Preempted):
        bcss_jax.train(config, tmp_path / "resumed", hours=0)
    bcss_jax.train(config, tmp_path / "resumed")
    one, other = (load(tmp_path / name / "sam.safetensors") for name in ("whole", "resumed"))
    for (name, a), b in zip(to_torch_state(one.model).items(), to_torch_state(other.model).values(), strict=True):
        np.testing.assert_array_equal(a, b, err_msg=name)
    assert one.model.image_size == 32
    rows = list(csv.DictReader((tmp_path / "resumed" / "history.csv").open()))
    assert [row["epoch"] for row in rows] == ["1", "2"] and all(float(row["val_objects"]) > 0 for row in rows)
    summary = json.loads((tmp_path / "resumed" / "summary.json").read_text())
    assert 0 <= summary["val_iou_first"] <= 1 and summary["config"]["method"] == "prompts"
    predictor = Predictor(one.model)
    predictor.set_image(np.full((64, 64, 3), 200, np.uint8))
    assert predictor.predict(np.array([[30, 30]]), np.array([1])).masks.shape == (3, 64, 64)
    if how.get("lora.rank"):
        assert summary["val_loss"] is not None
    # The file is a start for the next training, and the run is no semantic network.
    file, encoder = str(tmp_path / "whole" / "sam.safetensors"), how.get("encoder", "tiny")
    bcss_jax.train(prompt_settings(tmp_path, pretrained=file, epochs=1, encoder=encoder), tmp_path / "next")
    with pytest.raises(ConfigError, match="evaluate --clicks"):
        load_model(tmp_path / "whole" / "checkpoints")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_size": 33}, "image_size=33: must be a multiple of 8 for tiny; try 32"),
        ({"prompts.objects": 0}, "config.prompts.objects=0: must be"),
        ({"loss.smooth": 1.0}, "config.loss.smooth=1.0: has no effect on a training with prompts"),
        ({"encoder": "gigapath_flash"}, "has a SwiGLU"),
        ({"augment_on": "device"}, "augments on the host"),
    ],
)
def test_settings_that_cannot_work_are_refused(tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        bcss_jax.train(prompt_settings(tmp_path, **changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("split", ["train", "val"])
def test_tiles_without_an_object_are_refused_before_the_training(tmp_path, split):
    tiles = tmp_path / "tiles"
    shutil.copytree(TILES, tiles)
    for path in (tiles / f"{split}_mask").glob("*.png"):
        mask = np.zeros_like(np.asarray(Image.open(path)))
        mask[:7, :9] = 1  # 63 pixels of tumor
        Image.fromarray(mask).save(path)
    with pytest.raises(DataError, match=f"no tile of the split {split} has a connected region of at least 64 pixels"):
        bcss_jax.train(prompt_settings(tmp_path, **{"data.dir": str(tiles)}), tmp_path / "run")


def test_recipes_fit_large_images():
    config = bcss_jax.load_config("sam:kaggle224,prompts,kaggle_t4")
    assert (config.batch_size, config.micro_batches, config.image_size) == (8, 4, 1024)
    with pytest.raises(ConfigError, match=r"',prompts' \(points and boxes instead of classes\)"):
        bcss_jax.load_config("sam:kaggle224,prompt")
