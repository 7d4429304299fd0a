"""Whole pretrainings of a tiny network on tiny tiles: finished, stopped and resumed, and refused."""

import csv
import dataclasses
import json
import shutil

import numpy as np
import pytest
from helpers.slides_small import tissue_picture
from PIL import Image
from safetensors import safe_open
from safetensors.numpy import load_file

import bcss_jax
from bcss_jax import models
from bcss_jax.errors import ConfigError, DataError, NumericalError, Preempted
from bcss_jax.models.encoders.vision_transformer import presets
from bcss_jax.models.weights.pretrained import load_pretrained, to_torch_state

SIDE = 48
SMALL = {
    "encoder": "vit_tiny16",
    "data.tile_size": SIDE,
    "views.global_size": 32,
    "views.local_size": 16,
    "views.local_views": 1,
    "head.prototypes": 16,
    "head.hidden": 16,
    "head.bottleneck": 8,
    "batch_size": 8,
    "epochs": 2,
    "epoch_steps": 2,
    "optimizer.warmup_epochs": 1,
    "knn_epochs": 1,
}


@pytest.fixture(scope="module", autouse=True)
def tiny_encoder():
    """A vision transformer that compiles in seconds takes the place of one with twelve blocks."""
    preset = presets.PRESETS["vit_tiny16"]
    form = dataclasses.replace(preset.architecture, width=24, depth=2, hidden=48, table=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(presets.PRESETS, "vit_tiny16", dataclasses.replace(preset, architecture=form))
        yield


@pytest.fixture(scope="module")
def tiles(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiles")
    for number in range(11):
        noise = np.random.default_rng(number).integers(-6, 7, (SIDE, SIDE, 3))  # a tile of few colors is no tissue
        pixels = np.clip(tissue_picture(SIDE, SIDE, number)[0] + noise, 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"tile{number}.png")
    return folder


def pretrain(tiles, workdir, argument="tiles", **changes):
    hours = changes.pop("hours", None)
    given = {"data.dir": str(tiles), **SMALL, **{name.replace("__", "."): value for name, value in changes.items()}}
    return bcss_jax.pretrain(bcss_jax.load_config(f"dino:{argument}", given), workdir, hours=hours)


@pytest.fixture(scope="module")
def finished(tiny_encoder, tiles, tmp_path_factory):
    return pretrain(tiles, tmp_path_factory.mktemp("finished") / "run")


def test_what_a_run_writes(finished, tiles):
    rows = list(csv.DictReader((finished.parent / "history.csv").open()))
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert all(np.isfinite(float(row[name])) for row in rows for name in ("loss", "kl", "teacher_entropy", "grad_norm"))
    for name in ("curves.png", "attention.png", "components.png"):
        assert min(Image.open(finished.parent / name).size) > 200
    summary = json.loads((finished.parent / "summary.json").read_text())
    assert summary["steps"] == 4 and summary["data"]["tiles"] == 11
    with safe_open(finished, "np") as file:
        about = json.loads(file.metadata()["bcss_jax"])
    assert about["encoder"] == "vit_tiny16" and about["architecture"]["width"] == 24
    assert oct(finished.stat().st_mode)[-3:] == oct((finished.parent / "summary.json").stat().st_mode)[-3:]


def test_the_encoder_loads_into_a_segmentation_network(finished):
    model = models.create("vit", num_classes=3, encoder="vit_tiny16")
    found = load_pretrained(model, finished)
    assert found["part"] == "encoder"
    stored = load_file(finished)
    for name, array in to_torch_state(model.encoder).items():
        np.testing.assert_array_equal(array, stored[name])


@pytest.mark.parametrize("argument", ["tiles", pytest.param("tiles,dinov2", marks=pytest.mark.slow)])
def test_a_run_that_is_stopped_after_every_step_ends_the_same(tiles, tmp_path, argument, capsys):
    learned = {"local_attention": True, "objective__words_weight": 1.0, "views__resize": False}
    whole = pretrain(tiles, tmp_path / "whole", argument, **learned)
    said = capsys.readouterr().out
    assert "attention starts with like patches" in said and "512 visual words of the tiles" in said
    stops = 0
    while True:
        try:
            stopped = pretrain(tiles, tmp_path / "stopped", argument, hours=1e-9, **learned)
            break
        except Preempted:
            stops += 1
    assert stops >= 3
    assert stopped.read_bytes() == whole.read_bytes()
    columns = ("loss", "kl", "words_loss", "center_norm", "grad_norm", "knn_accuracy")
    rows = [
        [[row[name] for name in columns] for row in csv.DictReader((path.parent / "history.csv").open())]
        for path in (whole, stopped)
    ]
    assert rows[0] == rows[1] and all(float(row[columns.index("words_loss")]) > 0 for row in rows[0])


def test_random_weights_start_whitened_and_loaded_ones_do_not(tiles, tmp_path, finished, capsys):
    few = {"epochs": 1, "epoch_steps": 1, "optimizer.learning_rate": 1e-9, "optimizer.final_learning_rate": 0.0}
    whitened, as_drawn = (
        load_file(pretrain(tiles, tmp_path / str(whiten), whiten_patches=whiten, **few)) for whiten in (True, False)
    )
    assert capsys.readouterr().out.count("the whitening of 704 patches of the tiles") == 1
    for name, array in whitened.items():
        changed = np.abs(array - as_drawn[name]).max()
        assert changed > 0.01 if name.startswith("patch_embed") else changed < 1e-6, name
    loaded = load_file(pretrain(tiles, tmp_path / "loaded", whiten_patches=True, pretrained=str(finished), **few))
    for name, array in load_file(finished).items():
        np.testing.assert_allclose(loaded[name], array, atol=1e-6)


@pytest.mark.parametrize(
    "changes,error,said",
    [
        ({"batch_size": 16}, DataError, "fewer|expected at least 16"),
        ({"views__global_size": 64}, ConfigError, "tiles of 48 pixels"),
        ({"views__local_size": 20}, ConfigError, "multiple of the patch of vit_tiny16, 16 pixels; try 16"),
        ({"batch_size": 12}, ConfigError, "does not divide over 8 devices"),
        ({"encoder": "vit_tiny"}, ConfigError, "vit_tiny"),
        ({"data__dir": "/nowhere"}, DataError, "/nowhere"),
        ({"data__dir": ""}, ConfigError, "data.dir=FOLDER"),
        ({"labeled__layout": "kaggle224"}, ConfigError, "need both"),
        ({"optimizer__version": 3}, ConfigError, "1 .DINO. or 2"),
        ({"optimizer__learning_rate": 1e30, "max_bad_steps": 1, "epochs": 4}, NumericalError, "tile[0-9]+.png"),
    ],
    ids=str,
)
def test_what_cannot_work_is_refused(tiles, tmp_path, changes, error, said):
    with pytest.raises(error, match=said):
        pretrain(tiles, tmp_path / "run", **changes)


def test_a_run_goes_on_with_its_own_tiles_only(tiles, tmp_path):
    folder = shutil.copytree(tiles, tmp_path / "tiles")
    with pytest.raises(Preempted):
        pretrain(folder, tmp_path / "run", hours=1e-9)
    (folder / "tile3.png").unlink()
    with pytest.raises(ConfigError, match="the tiles are not those that this run began with .11 then, 10 now"):
        pretrain(folder, tmp_path / "run")


@pytest.mark.slow
def test_a_teacher_that_finds_all_prototypes_equally_likely_ends_the_run(tiles, tmp_path):
    names = ("student_temperature", "teacher_temperature", "first_teacher_temperature")
    changes = {"epochs": 5, **{f"objective__{name}": 10.0 for name in names}}
    with pytest.raises(NumericalError, match="collapsed by epoch 4: the teacher finds all prototypes equally"):
        pretrain(tiles, tmp_path / "run", **changes)
    with pytest.raises(NumericalError, match="collapsed by epoch"):
        pretrain(tiles, tmp_path / "run", **changes)
    assert not (tmp_path / "run" / "encoder.safetensors").exists()


def test_the_commands_name_each_other(tmp_path):
    with pytest.raises(ConfigError, match="bcss_jax.pretrain"):
        bcss_jax.train(bcss_jax.load_config("dino"), tmp_path / "run")
    with pytest.raises(ConfigError, match="configs/dino.py, or python -m bcss_jax.main"):
        bcss_jax.pretrain(bcss_jax.load_config("unet"), tmp_path / "run")
    with pytest.raises(ConfigError, match="expected one of sample, tiles, slides"):
        bcss_jax.load_config("dino:kaggle224")
