"""Runs, results, segmented slides and prepared data of an earlier version are read as that version read them."""

import csv
import json
import os
import shutil
import subprocess
import sys

import pytest
import tifffile
from helpers.paths import ROOT

OLD = ROOT / "tests" / "data" / "written_before"
TILES_WRITTEN_NS = (
    1_700_000_000 * 10**9
)  # prepared data are known by the tiles' time of modification, which git does not keep
TRAIN = (
    "bcss_jax.main", f"--config={ROOT / 'configs' / 'unet.py'}:kaggle224", "--config.data.dir=tiles",
    "--config.data.prepared_dir=prepared", "--config.model.width=4", "--config.model.depth=2", "--config.batch_size=2",
    "--config.eval_batch_size=2", "--config.epochs=6", "--config.optimizer.learning_rate=0.02",
)  # fmt: skip
EVALUATE = ("bcss_jax.evaluate", "--checkpoints=run", "--prepared_dir=prepared")
SEGMENT = ("bcss_jax.segment", "--checkpoint=run", "--slide=case.tif", "--tissue=all", "--truth_codes=kaggle3")
# What differs between two sessions of the same work.
TIMES = ("seconds", "images_per_second", "input_wait")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A copy of what the earlier version wrote."""
    copy = tmp_path_factory.mktemp("earlier") / "folder"
    shutil.copytree(OLD, copy)
    for path in (copy / "tiles").rglob("*.png"):
        os.utime(path, ns=(TILES_WRITTEN_NS, TILES_WRITTEN_NS))
    return copy


def run(folder, *arguments):
    # One CPU device and XLA's own optimization, as the earlier version ran: the bits depend on both.
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}
    command = [sys.executable, "-m", *arguments]
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    return result.stdout + result.stderr


def rows(path):
    return [{k: v for k, v in row.items() if k not in TIMES} for row in csv.DictReader(path.open())]


def test_a_finished_run_is_finished_and_its_prepared_data_are_found(folder):
    (prepared,) = (folder / "prepared").glob("kaggle224-*")
    before = {path: path.stat().st_mtime_ns for path in prepared.rglob("*") if path.is_file()}
    expected = json.loads((folder / "run" / "summary.json").read_text())
    output = run(folder, *TRAIN, "--workdir=run")
    assert "resuming after epoch 6" in output
    assert [path.name for path in (folder / "prepared").glob("kaggle224-*") if path.is_dir()] == [prepared.name]
    assert {path: path.stat().st_mtime_ns for path in before} == before
    found = json.loads((folder / "run" / "summary.json").read_text())
    assert found["params_sha256"] == expected["params_sha256"]
    for scores in ("dice_global", "dice_image", "dice_batch", "iou_global", "last_epoch", "best_epoch"):
        assert found[scores] == expected[scores]


def test_a_stopped_run_goes_on_to_the_same_epochs(folder):
    """The run keeps its data, its state and its place in the third epoch.

    On the machine that wrote them, the losses are equal to the last digit.
    """
    assert len(rows(folder / "stopped" / "history.csv")) == 2
    run(folder, *TRAIN, "--workdir=stopped")
    found, expected = rows(folder / "stopped" / "history.csv"), rows(OLD / "run" / "history.csv")
    assert len(found) == 6 and found[:2] == expected[:2]
    for one, other in zip(found, expected, strict=True):
        assert one.keys() == other.keys() and one["best"] == other["best"]
        for name in ("train_loss", "val_loss", "val_dice", "learning_rate"):
            assert float(one[name]) == pytest.approx(float(other[name]), rel=1e-3), name


def test_an_evaluation_is_not_computed_again_and_a_new_one_gives_the_same_scores(folder):
    old = json.loads((folder / "results" / "evaluation.json").read_text())
    assert "already evaluated" in run(folder, *EVALUATE, "--output=results")
    assert json.loads((folder / "results" / "evaluation.json").read_text())["evaluations"] == old["evaluations"]
    run(folder, *EVALUATE, "--output=results_now")
    now = json.loads((folder / "results_now" / "evaluation.json").read_text())
    assert now.keys() == old.keys() and now["settings"] == old["settings"]
    (one,), (other,) = now["evaluations"], old["evaluations"]
    assert one.keys() == other.keys()
    assert one["scores"]["confusion"] == other["scores"]["confusion"]


def test_a_segmented_slide_is_done_and_a_new_one_has_the_same_labels(folder):
    old = json.loads((folder / "out" / "case" / "summary.json").read_text())
    assert "done before" in run(folder, *SEGMENT, "--output=out")
    assert json.loads((folder / "out" / "case" / "summary.json").read_text()) == old
    run(folder, *SEGMENT, "--glass=keep", "--output=out_now")
    now = json.loads((folder / "out_now" / "case" / "summary.json").read_text())
    assert list(now) == list(old) and now["identity"] == old["identity"]
    assert [each["name"] for each in now["classes"]] == [each["name"] for each in old["classes"]]
    assert now["seams"]["score"] == pytest.approx(old["seams"]["score"], rel=1e-3)
    # Another processor or jax may round a pixel to the other class; on the machine that wrote them all bytes are equal.
    labels, before = (
        tifffile.imread(parent / "case" / "labels.ome.tif") for parent in (folder / "out_now", OLD / "out")
    )
    assert labels.shape == before.shape and (labels != before).mean() < 1e-3
    regions = json.loads((folder / "out_now" / "case" / "regions.geojson").read_text())
    before = json.loads((OLD / "out" / "case" / "regions.geojson").read_text())
    assert regions.keys() == before.keys() and regions["bcss_jax"] == before["bcss_jax"]
    assert {str(each["properties"]["classification"]) for each in regions["features"]} == {
        str(each["properties"]["classification"]) for each in before["features"]
    }


def test_the_viewer_lists_a_slide_of_before(folder):
    from bcss_jax.viewer import results

    (found,) = results.find(folder / "out").values()
    assert [(each.name, each.color) for each in found.summary.classes] == [
        ("tumor", (230, 159, 0)),
        ("stroma", (0, 114, 178)),
    ]
