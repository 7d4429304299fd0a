"""Training and evaluating from Python: results that notebooks show, and the errors of the commands as exceptions."""

import pytest
from helpers.tile_files import kaggle512
from PIL import Image

import bcss_jax
from bcss_jax.errors import ConfigError, DataError, Preempted

PATIENTS = ("TCGA-A2-A0D2", "TCGA-BH-A0B1", "TCGA-A1-A0SK", "TCGA-A7-A0DA")


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    tiles = kaggle512(folder / "tiles", train=PATIENTS, tiles_each=4)
    changes = {
        "data.dir": str(tiles), "data.prepared_dir": str(folder / "prepared"), "data.threads": 1,
        "model.width": 4, "model.depth": 1, "batch_size": 8, "eval_batch_size": 8, "epochs": 2,
    }  # fmt: skip
    return bcss_jax.load_config("unet:kaggle512", changes)


@pytest.fixture(scope="module")
def run(config, tmp_path_factory):
    """A run whose time was over at once, and which went on to its end."""
    folder = tmp_path_factory.mktemp("runs") / "unet"
    with pytest.raises(Preempted, match="saved; the same command goes on from there"):
        bcss_jax.train(config, folder, hours=0)
    stopped = bcss_jax.Run(folder)
    assert not stopped.finished and "not finished" in stopped._repr_html_()
    return bcss_jax.train(config, folder)


def test_a_run_that_was_stopped_goes_on_to_its_end(run):
    assert run.finished and [row["epoch"] for row in run.history] == [1, 2]
    assert isinstance(run.history[0]["val_loss"], float) and run.history[-1]["best"] is True
    assert run.config["batch_size"] == 8 and set(run.summary["dice_global"]) == {"tumor", "stroma", "macro"}


def test_a_run_shows_curves_samples_and_scores(run):
    assert run.curves().size == Image.open(run.folder / "curves.png").size
    assert run.samples().size == Image.open(run.folder / "samples.png").size
    html = run._repr_html_()
    assert html.count('<img src="data:image/png;base64,') == 2
    assert "<th>stroma</th>" in html and "2 epochs, finished" in html and "unet on " in html


def test_evaluating_returns_the_report(run, tmp_path, capsys):
    report = bcss_jax.evaluate(run.folder, output=tmp_path / "results", batch_size=8)
    assert report.dice[run.folder.name].keys() == {"tumor", "stroma", "macro"}
    assert (report.folder / "report.html").is_file() and "look at:" in capsys.readouterr().out
    html = report._repr_html_()
    assert html.count("<img ") == 3 and "<th>95 % interval</th>" in html
    assert {"curves", "unet/confusion", "unet/best"} <= report.figures.keys()
    assert bcss_jax.EvaluationReport(tmp_path / "results").dice == report.dice
    with pytest.raises(ConfigError, match="--batch_size=0: must be a whole number from 1"):
        bcss_jax.evaluate(run.folder, output=tmp_path / "other", batch_size=0)
    with pytest.raises(ConfigError, match="--split=vali: choose one of"):
        bcss_jax.evaluate(run.folder, output=tmp_path / "other", split="vali")
    assert not (tmp_path / "other").exists()


def test_the_errors_are_those_of_the_command(config, run, tmp_path):
    changed = config.copy_and_resolve_references()
    changed.optimizer.learning_rate = 0.1
    with pytest.raises(ConfigError, match="learning_rate"):
        bcss_jax.train(changed, run.folder)
    changed.data.dir = str(tmp_path / "nowhere")
    with pytest.raises(DataError, match="nowhere: expected the layout kaggle512"):
        bcss_jax.train(changed, tmp_path / "other")
    changed.batch_size = 0
    with pytest.raises(ConfigError, match="batch_size"):
        bcss_jax.train(changed, tmp_path / "other")
    with pytest.raises(ConfigError, match="--hours=-1: must be from 0"):
        bcss_jax.train(config, run.folder, hours=-1)


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(DataError, match="expected the folder of a run with config.json, found none"):
        bcss_jax.Run(tmp_path)
    with pytest.raises(DataError, match="expected the results of an evaluation"):
        bcss_jax.EvaluationReport(tmp_path)
