"""Training on annotated slides and scoring the folds of a cross-validation, by the commands."""

import json
import os
import subprocess
import sys

import pytest
from helpers.annotated_slides import listed_slides
from helpers.paths import ROOT

from bcss_jax.commands import evaluate


@pytest.mark.slow
def test_folds_of_annotated_slides_are_trained_resumed_and_scored_together(tmp_path):
    path = listed_slides(tmp_path / "data", ("a", "b", "c", "d"))
    prepared, work = tmp_path / "prepared", tmp_path / "run"
    options = (
        f"--config.data.list={path}", f"--config.data.prepared_dir={prepared}", "--config.data.folds=2",
        "--config.data.balance=classes", "--config.data.patch_size=64", "--config.data.stride=64",
        "--config.model.width=2", "--config.model.depth=1", "--config.epochs=1", "--config.batch_size=8",
        "--config.eval_batch_size=8", "--config.data.threads=1",
    )  # fmt: skip

    def train(*more):
        command = [sys.executable, "-m", "bcss_jax.main", "--config=configs/unet.py:slides,few", f"--workdir={work}"]
        cache = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "compiled"), "XLA_FLAGS": ""}
        return subprocess.run([*command, *options, *more], capture_output=True, text=True, cwd=ROOT, env=cache)

    result = train("--config.data.fold=1")
    assert result.returncode == 0, result.stderr
    assert not (work / "fold_0").exists()
    result = train()  # fold 1 is done already
    assert result.returncode == 0, result.stderr
    assert "training images are drawn" in result.stdout and "python -m bcss_jax.evaluate" in result.stdout
    found = [json.loads((work / f"fold_{fold}" / "summary.json").read_text())["data"] for fold in range(2)]
    assert [each["folds"]["held_out"] for each in found] == [0, 1]
    assert [each["patients"] for each in found] == [{"train": 2, "val": 2}] * 2
    out = tmp_path / "scores"
    assert evaluate.main([f"--checkpoints={work}", f"--output={out}", f"--prepared_dir={prepared}"]) == 0
    (evaluation,) = json.loads((out / "evaluation.json").read_text())["evaluations"]
    assert evaluation["scores"]["number"]["patients"] == 4
    segment = [sys.executable, "-m", "bcss_jax.segment", f"--checkpoint={work}", f"--slide={tmp_path}/data/slide0.png"]
    result = subprocess.run([*segment, f"--output={tmp_path}/o"], capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 2 and "found the folds of a cross-validation" in result.stderr
