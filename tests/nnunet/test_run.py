"""Whole runs of nnU-Net's method on a few tiny cases, started by the command."""

import copy
import csv
import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
from helpers.nnunet_small import PLAN
from helpers.paths import ROOT
from PIL import Image

from bcss_jax.nnunet import folds
from bcss_jax.training.checkpoint import load_model

SHORT = ("--config.epochs=2", "--config.iterations=2", "--config.val_iterations=1", "--config.fold=0")


def write_case(root, suffix, number, size):
    random = np.random.RandomState(number)
    mask = np.zeros(size, np.uint8)
    mask[10:40, 10:40], mask[45:60, 20:60], mask[:4] = 1, 2, 3
    image = np.stack([200 - 80 * (mask == 1), 180 - 90 * (mask == 2), np.full(size, 190)], -1)
    image = (image + random.randint(-20, 20, image.shape)).clip(1, 255).astype(np.uint8)
    for folder, name, array in (("images", f"case{number}_0000.png", image), ("labels", f"case{number}.png", mask)):
        (root / f"{folder}{suffix}").mkdir(parents=True, exist_ok=True)
        Image.fromarray(array).save(root / f"{folder}{suffix}" / name)


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    """Writes a raw data folder of nnU-Net: six cases of different sizes and a test case."""
    root = tmp_path_factory.mktemp("raw")
    for number in range(6):
        write_case(root, "Tr", number, (64 + 2 * number, 80))
    write_case(root, "Ts", 6, (90, 70))
    dataset = {
        "channel_names": {"0": "R", "1": "G", "2": "B"},
        "labels": {"background": 0, "a": 1, "b": 2, "ignore": 3},
        "numTraining": 6,
        "file_ending": ".png",
    }
    (root / "dataset.json").write_text(json.dumps(dataset))
    return root


def start(raw, workdir, *options):
    argv = [sys.executable, "-m", "bcss_jax.main", "--config=configs/nnunet.py:nnunet", f"--workdir={workdir}"]
    argv += [f"--config.data.dir={raw}", f"--config.data.prepared_dir={raw / 'prepared'}", *SHORT, *options]
    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(raw / "compiled")}
    return subprocess.run(argv, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def planned(raw):
    """Writes a plan for the raw data folder, edited to a network of three small stages."""
    from bcss_jax.nnunet import plan_file
    from bcss_jax.nnunet.__main__ import main

    file = raw / "plans.json"
    assert main(["plan", f"--raw={raw}", f"--out={file}", f"--prepared_dir={raw / 'prepared'}"]) == 0
    plan = plan_file.read_plan(file)
    small = copy.deepcopy(PLAN["configurations"]["2d"])
    plan["configurations"]["2d"] |= {name: small[name] for name in ("architecture", "patch_size", "batch_size")}
    plan_file.write_plan(file, plan)
    return file


@pytest.fixture(scope="module")
def trained(raw, planned, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "run"
    result = start(raw, workdir, f"--config.plan={planned}", "--fresh")
    assert result.returncode == 0, result.stderr
    return workdir, result.stdout


def test_a_fold_is_planned_trained_and_validated(trained, planned):
    workdir, printed = trained
    assert "64x64 (*, rule: " in printed  # the table marks what was edited
    assert json.loads((workdir / "plans.json").read_text()) == json.loads(planned.read_text())
    splits = json.loads((workdir / "splits_final.json").read_text())
    assert len(splits) == 5 and all(len(split["train"]) + len(split["val"]) == 6 for split in splits)
    summary = json.loads((workdir / "fold_0" / "validation" / "summary.json").read_text())
    assert sorted(summary["counts"]) == splits[0]["val"]
    for name in splits[0]["val"]:
        number = int(name.removeprefix("case"))
        assert Image.open(workdir / "fold_0" / "validation" / f"{name}.png").size == (80, 64 + 2 * number)
        pixels = np.sum(summary["counts"][name])
        assert pixels == 80 * (64 + 2 * number - 4)  # ignored ones are left out
    assert len((workdir / "fold_0" / "history.csv").read_text().splitlines()) == 3
    # Evaluation knows by this hash which cases a fold was trained on.
    _, metadata = load_model(workdir / "fold_0" / "checkpoints", "latest")
    fingerprint = json.loads((workdir / "dataset_fingerprint.json").read_text())
    assert metadata["data_sha256"] == folds.fold_sha256(fingerprint, splits[0], metadata["plan"])
    assert "the table is written when all folds are trained" in printed
    assert "6 training cases (dataset.json says 6), 1 test cases with masks" in printed
    assert "the names of 6 of 6 cases do not say their patient, so the folds are not by patient" in printed
    assert summary["data"]["folds"] == "patient" and summary["data"]["patients"] is None


def test_the_same_command_resumes_and_other_settings_are_refused(raw, planned, trained):
    workdir, _ = trained
    before = (workdir / "fold_0" / "validation" / "summary.json").stat().st_mtime_ns
    resumed = start(raw, workdir, f"--config.plan={planned}")
    assert resumed.returncode == 0 and "resuming after epoch 2" in resumed.stdout
    assert (workdir / "fold_0" / "validation" / "summary.json").stat().st_mtime_ns == before
    other = start(raw, workdir, f"--config.plan={planned}", "--config.iterations=5")
    assert other.returncode == 2 and "config.iterations: 2 -> 5" in other.stderr and "Traceback" not in other.stderr


def test_folds_and_plans_of_the_user_are_used_or_refused_and_never_replaced(raw, planned, tmp_path):
    from bcss_jax.nnunet.__main__ import main

    before = planned.read_bytes()
    assert main(["plan", f"--raw={raw}", f"--out={planned}", f"--prepared_dir={raw / 'prepared'}"]) == 2
    assert planned.read_bytes() == before
    own = tmp_path / "splits_final.json"
    own.write_text(json.dumps([{"train": ["case0", "case1"], "val": ["case2", "case3"]}]))
    content = own.read_bytes()
    result = start(raw, tmp_path, f"--config.plan={planned}")
    assert result.returncode == 2 and f"use them with --config.folds={own}" in result.stderr
    assert own.read_bytes() == content and not (tmp_path / "fold_0" / "history.csv").exists()


def test_the_trained_fold_predicts_images(raw, trained, tmp_path):
    from bcss_jax.nnunet.__main__ import main

    arguments = ["predict", f"--model={trained[0]}", f"--images={raw / 'imagesTs'}", f"--out={tmp_path}"]
    assert main(arguments) == 0
    labels = np.asarray(Image.open(tmp_path / "case6_0000.png"))
    assert labels.shape == (90, 70) and labels.max() <= 2
    assert Image.open(tmp_path / "overlays" / "case6_0000.jpg").size == (70, 90)
    assert main(arguments) == 2  # existing results are not overwritten


def test_a_stopped_prediction_goes_on_with_the_same_command_alone(raw, trained, tmp_path, monkeypatch):
    from bcss_jax.nnunet import __main__ as command

    predicted, labels = [], command._labels

    def then_asked(image, path, *others):
        predicted.append(path)
        if len(predicted) == 2:
            signal.raise_signal(signal.SIGTERM)
        return labels(image, path, *others)

    monkeypatch.setattr(command, "_labels", then_asked)
    arguments = ["predict", f"--model={trained[0]}", f"--images={raw / 'imagesTr'}", f"--out={tmp_path / 'out'}"]
    assert command.main(arguments) == 75 and len(predicted) == 2
    assert command.main([*arguments, "--no-mirror"]) == 2  # other predictions
    assert command.main(arguments) == 0
    again = len(predicted) - len(set(predicted))
    assert again == 1 and len(set(predicted)) == len(list((tmp_path / "out").glob("*.png")))
    assert not (tmp_path / "out" / ".unfinished_predictions.json").exists()


def test_errors_name_the_flags_of_the_command(tmp_path, capsys):
    from bcss_jax.nnunet.__main__ import main

    assert main(["plan", f"--raw={tmp_path}", f"--out={tmp_path / 'plans.json'}"]) == 3
    assert "name another folder with --raw" in capsys.readouterr().err


def test_bad_input_gives_one_line(raw, tmp_path):
    def refused(*options, code):
        result = start(raw, tmp_path / "run", *options)
        lines = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
        assert (result.returncode, len(lines)) == (code, 1) and "Traceback" not in result.stderr, result.stderr
        return lines[0]

    bad = tmp_path / "bad"
    (bad / "imagesTr").mkdir(parents=True)
    assert "labelsTr" in refused(f"--config.data.dir={bad}", code=3)
    (bad / "dataset.json").write_text(json.dumps({"labels": {"background": 0, "a": 2}, "channel_names": {"0": "R"}}))
    assert "without gaps" in refused(f"--config.data.dir={bad}", code=3)
    for number in range(3):
        write_case(bad, "Tr", number, (64, 64))
    (bad / "dataset.json").write_text((raw / "dataset.json").read_text())
    assert "expected 6 training cases (numTraining), found 3" in refused(f"--config.data.dir={bad}", code=3)
    (bad / "dataset.json").write_text((raw / "dataset.json").read_text().replace("6", "3"))
    assert "at least 5 patients, found 3" in refused(f"--config.data.dir={bad}", code=3)
    missing = refused(f"--config.plan={tmp_path / 'none.json'}", code=3)
    assert "none.json" in missing


@pytest.mark.slow
def test_a_fold_in_float16_is_trained_validated_exported_and_resumed(raw, planned, tmp_path):
    pytest.importorskip("torch", reason="PyTorch, which writes the exported folder, is not installed")
    from bcss_jax.nnunet.__main__ import main

    run, options = tmp_path / "run", (f"--config.plan={planned}", "--config.dtype=float16")
    result = start(raw, run, *options, "--fresh")
    assert result.returncode == 0, result.stderr
    history = list(csv.DictReader((run / "fold_0" / "history.csv").open()))
    assert len(history) == 2 and all(float(row["loss_scale"]) >= 1 and float(row["train_loss"]) for row in history)
    summary = json.loads((run / "fold_0" / "validation" / "summary.json").read_text())
    assert all(np.sum(counts) for counts in summary["counts"].values())
    assert main(["export", f"--model={run}", f"--out={tmp_path / 'exported'}"]) == 0
    predicted = []
    for model, out in ((run, tmp_path / "own"), (tmp_path / "exported", tmp_path / "theirs")):
        assert main(["predict", f"--model={model}", f"--images={raw / 'imagesTs'}", f"--out={out}"]) == 0
        predicted.append(np.asarray(Image.open(out / "case6_0000.png")))
    assert (predicted[0] == predicted[1]).mean() > 0.95  # an exported fold computes in float32
    resumed = start(raw, run, *options)
    assert resumed.returncode == 0 and "resuming after epoch 2" in resumed.stdout
