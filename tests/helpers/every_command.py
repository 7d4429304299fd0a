"""Takes a network through training, resumption, evaluation, a slide and export."""

import csv
import json

import pytest

import bcss_jax
from bcss_jax.commands import evaluate, export, segment
from bcss_jax.errors import Preempted
from bcss_jax.training.checkpoint import load_model
from helpers.paths import ROOT
from helpers.segment_command import EVERYTHING
from helpers.slide_files import picture, tiled

TILES = ROOT / "tests" / "data" / "written_before" / "tiles"


def every_command(tmp_path, config):
    """Runs all commands; returns the network and the metadata of the trained run, and the folder of the scores."""
    run, results = tmp_path / "run", tmp_path / "results"
    with pytest.raises(Preempted):
        bcss_jax.train(config, run, hours=0)
    bcss_jax.train(config, run)
    rows = list(csv.DictReader((run / "history.csv").open()))
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert (
        evaluate.main([f"--checkpoints={run}", f"--output={results}", f"--prepared_dir={tmp_path / 'prepared'}"]) == 0
    )
    evaluated = json.loads((results / "evaluation.json").read_text())["evaluations"][0]
    best = json.loads((run / "summary.json").read_text())
    dice = evaluated["scores"]["scores"]["dice_global"]
    for name in ("tumor", "stroma"):
        assert dice[name] == pytest.approx(best["dice_global"][name], abs=1e-3)
    slide = tiled(tmp_path / "slide.tif", picture(150, 130), mpp=0.25)
    options = [f"--checkpoint={run}", f"--slide={slide}", "--readers=1", *EVERYTHING]
    assert segment.main([*options, f"--output={tmp_path / 'slide'}"]) == 0
    file = tmp_path / "network.jaxexport"
    assert export.main([f"--checkpoint={run}", f"--output={file}"]) == 0
    options[0] = f"--checkpoint={file}"
    assert segment.main([*options, f"--output={tmp_path / 'slide_of_export'}"]) == 0
    one, other = (
        json.loads((tmp_path / name / "slide" / "summary.json").read_text()) for name in ("slide", "slide_of_export")
    )
    assert [each["pixels"] for each in one["classes"]] == [each["pixels"] for each in other["classes"]]
    return load_model(run / "checkpoints"), results
