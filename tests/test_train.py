"""Whole runs of the command, as a user starts them: on tiny tiles, killed, resumed, stopped, on several devices."""

import csv
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image
from tile_files import kaggle512

SMALL = (
    "--config.model.width=4", "--config.model.depth=2", "--config.batch_size=4", "--config.eval_batch_size=4",
    "--config.epochs=3", "--config.optimizer.learning_rate=0.01", "--config.data.threads=1",
)  # fmt: skip


@pytest.fixture(scope="module")
def tiles(tmp_path_factory):
    """A data folder: 9 training tiles (not a multiple of the batch) of 3 patients, 3 validation tiles."""
    patients = ("TCGA-A2-A0D2", "TCGA-BH-A0B1", "TCGA-A1-A0SK")
    return kaggle512(tmp_path_factory.mktemp("tiles"), train=patients, tiles_each=3)


@pytest.fixture(scope="module")
def command(tiles, tmp_path_factory):
    """Builds the command line and environment of a run in a work folder."""
    prepared, cache = tmp_path_factory.mktemp("prepared"), tmp_path_factory.mktemp("compiled")

    def build(workdir, *options, devices=1):
        argv = [sys.executable, "-m", "bcss_jax.main", "--config=configs/unet.py:kaggle512", f"--workdir={workdir}"]
        argv += [f"--config.data.dir={tiles}", f"--config.data.prepared_dir={prepared}", *SMALL, *options]
        environment = os.environ | {
            "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
            "JAX_COMPILATION_CACHE_DIR": str(cache),  # the same program is started many times
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }
        return {"args": argv, "env": environment, "cwd": ROOT}

    return build


def run(command, *arguments, **options):
    return subprocess.run(**command(*arguments, **options), capture_output=True, text=True, timeout=300)


def summary(workdir):
    return json.loads((workdir / "summary.json").read_text())


@pytest.fixture(scope="module")
def finished(command, tmp_path_factory):
    """A run that nobody disturbed."""
    workdir = tmp_path_factory.mktemp("finished") / "run"
    result = run(command, workdir)
    assert result.returncode == 0, result.stderr
    return workdir, result


def test_a_run_leaves_its_report(finished):
    workdir, result = finished
    report = summary(workdir)
    for measure in ("dice", "iou"):
        for average in ("global", "image", "batch"):
            scores = report[f"{measure}_{average}"]
            assert set(scores) == {"tumor", "stroma", "macro"}
            assert scores["macro"] == pytest.approx((scores["tumor"] + scores["stroma"]) / 2)
    assert 1 <= report["best_epoch"] <= 3 and report["last_epoch"]["epoch"] == 3
    assert report["seconds"] > 0 and len(report["params_sha256"]) == 64
    assert report["label_scheme"]["name"] == "tumor_stroma"
    assert report["data"]["layout"] == "kaggle512" and report["device"]["platform"] == "cpu"
    assert report["versions"]["jax"] and report["config"]["batch_size"] == 4
    rows = list(csv.DictReader((workdir / "history.csv").open()))
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    best = min(rows, key=lambda row: float(row["val_loss"]))
    assert best["best"] == "True" and int(best["epoch"]) == report["best_epoch"]
    assert float(best["val_dice"]) == pytest.approx(report["dice_global"]["macro"])
    for name in ("curves.png", "samples.png"):
        assert min(Image.open(workdir / name).size) > 200
    assert list((workdir / "tensorboard").glob("events*"))
    assert "summary.json" in result.stdout and "tensorboard --logdir" in result.stdout
    assert "val Dice" in result.stdout


def test_a_checkpoint_is_enough_to_predict_with(finished):
    import jax

    from bcss_jax import checkpoint, labels, models, sharding
    from bcss_jax.step import ModelFunction

    workdir, _ = finished
    trained = checkpoint.load_trained(workdir / "checkpoints", sharding.make_mesh(jax.devices()[:1]), "latest")
    config, scheme = trained.about["config"], trained.about["label_scheme"]
    assert scheme == json.loads(json.dumps(labels.SCHEMES["tumor_stroma"].to_json()))
    model = models.create(**config["model"], num_classes=len(scheme["class_names"]), dtype=config["dtype"])
    images = np.zeros((1, 16, 16, 3), np.uint8)
    logits, _ = ModelFunction(model)(trained.params, trained.rest, images, train=False)
    assert logits.shape == (1, 16, 16, 3)
    from bcss_jax.summary import params_sha256

    assert params_sha256(trained.params) == summary(workdir)["params_sha256"]


def test_a_finished_run_is_not_trained_again(finished, command):
    workdir, _ = finished
    before = summary(workdir)
    (workdir / "samples.png").unlink()
    result = run(command, workdir)
    assert result.returncode == 0 and "epoch 1 " not in result.stdout
    assert summary(workdir)["params_sha256"] == before["params_sha256"]
    assert (workdir / "samples.png").exists()  # what is missing of the report is made again


def test_another_config_is_refused_with_the_difference(finished, command):
    workdir, _ = finished
    result = run(command, workdir, "--config.seed=1", "--config.model.width=8")
    assert result.returncode == 2
    assert "config.seed: 0 -> 1" in result.stderr and "config.model.width: 4 -> 8" in result.stderr
    assert "--fresh" in result.stderr and "Traceback" not in result.stderr


def test_fresh_starts_over(command, tmp_path):
    run(command, tmp_path / "run", "--config.epochs=1")
    result = run(command, tmp_path / "run", "--config.epochs=1", "--config.seed=3", "--fresh")
    assert result.returncode == 0, result.stderr
    assert "resuming" not in result.stdout and summary(tmp_path / "run")["config"]["seed"] == 3


def loop_started(process):
    """Reads until training begins."""
    for line in process.stdout:
        if line.startswith("epoch "):
            return
    raise AssertionError(process.stderr.read())


def test_killed_at_ten_random_moments_the_parameters_are_bit_identical(command, tmp_path):
    options = ("--config.epochs=40", "--config.early_stopping=0", "--config.checkpoint_steps=1")
    undisturbed = run(command, tmp_path / "undisturbed", *options)
    assert undisturbed.returncode == 0, undisturbed.stderr
    loop_seconds = summary(tmp_path / "undisturbed")["seconds"]
    moments, kills = random.Random(0), 0
    while kills < 10:
        process = subprocess.Popen(**command(tmp_path / "killed", *options), stdout=-1, stderr=-1, text=True)
        loop_started(process)
        time.sleep(moments.uniform(0, loop_seconds / 12))
        assert process.poll() is None, "the run ended before it was killed: make it longer"
        process.kill()
        process.communicate()
        kills += 1
    result = run(command, tmp_path / "killed", *options)
    assert result.returncode == 0, result.stderr
    assert "resuming" in result.stdout
    a, b = summary(tmp_path / "undisturbed"), summary(tmp_path / "killed")
    assert a["params_sha256"] == b["params_sha256"]
    assert a["last_epoch"] == b["last_epoch"] and a["best_epoch"] == b["best_epoch"]
    steady = [c for c in csv.DictReader((tmp_path / "killed" / "history.csv").open()).fieldnames if "second" not in c and c != "input_wait"]
    rows = [[[row[c] for c in steady] for row in csv.DictReader((tmp_path / name / "history.csv").open())] for name in ("undisturbed", "killed")]
    assert rows[0] == rows[1]
    assert not list((tmp_path / "killed" / "checkpoints").glob("*tmp*"))


def test_sigterm_saves_and_exits_75(command, tmp_path, finished):
    options = ("--config.epochs=200", "--config.early_stopping=0")
    process = subprocess.Popen(**command(tmp_path / "run", *options), stdout=-1, stderr=-1, text=True)
    loop_started(process)
    time.sleep(1.0)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 75, errors
    assert "saved" in errors and "Traceback" not in errors
    saved = [int(p.name) for p in (tmp_path / "run" / "checkpoints").iterdir() if p.name.isdecimal()]
    step = int(errors.split("step ")[1].split()[0]) if "step " in errors else max(saved)
    assert max(saved) == step
    again = subprocess.Popen(**command(tmp_path / "run", *options), stdout=-1, stderr=-1, text=True)
    for line in again.stdout:
        if line.startswith("resuming"):
            break
    assert f"(step {step})" in line
    again.kill()
    again.communicate()


def test_non_finite_losses_are_named_and_end_the_run_with_4(command, tmp_path):
    result = run(command, tmp_path / "run", "--config.optimizer.learning_rate=1e38", "--config.checkpoint_steps=1")
    assert result.returncode == 4, result.stderr
    assert "Traceback" not in result.stderr and "gradient norm" in result.stderr and "TCGA-" in result.stderr
    assert result.stderr.count("left out; batch:") == 4  # three warnings, and the error that repeats the last
    assert [p for p in (tmp_path / "run" / "checkpoints").iterdir() if p.name.isdecimal()]


def test_two_runs_in_one_folder_the_second_is_refused(command, tmp_path):
    options = ("--config.epochs=200", "--config.early_stopping=0")
    first = subprocess.Popen(**command(tmp_path / "run", *options), stdout=-1, stderr=-1, text=True)
    loop_started(first)
    second = run(command, tmp_path / "run", *options)
    first.kill()
    first.communicate()
    assert second.returncode == 5 and f"in use by process {first.pid}" in second.stderr


def test_a_folder_that_cannot_be_written_is_said_at_once(command, tmp_path):
    (tmp_path / "file").write_text("in the way")
    result = run(command, tmp_path / "file" / "run")
    assert result.returncode == 5 and "Traceback" not in result.stderr and "file" in result.stderr


@pytest.mark.parametrize(
    "options, code, said",
    (
        (["--config.batchsize=3"], 2, "did you mean config.batch_size"),
        (["--config.data.dri=x"], 2, "did you mean config.data.dir"),
        (["--config.batch_size=many"], 2, "--config.batch_size=many"),
        (["--config.optimizer.learning_rate=-1"], 2, "learning_rate=-1.0: must be above 0"),
        (["--config.optimizer.learning_rate=nan"], 2, "must be above 0"),
        (["--config.labels=tumour"], 2, "did you mean tumor_stroma"),
        (["--config.data.dir=nowhere"], 3, "configs/unet.py"),
        (["--config=configs/nope.py"], 2, "no such config file"),
        (["--unknown"], 2, "--unknown: no such option"),
        (["stray"], 2, "stray"),
    ),
)
def test_mistakes_on_the_command_line_get_one_line(command, tmp_path, options, code, said):
    result = run(command, tmp_path / "run", *options)
    assert result.returncode == code, result.stderr
    assert said in result.stderr and "Traceback" not in result.stderr
    assert len([line for line in result.stderr.splitlines() if line.startswith("error: ")]) == 1


def test_a_batch_that_does_not_divide_over_the_devices_is_refused(command, tmp_path):
    result = run(command, tmp_path / "run", "--config.batch_size=12", devices=8)
    assert result.returncode == 2 and "nearest sizes are 8 or 16" in result.stderr


def final_losses(workdir):
    return [float(row["val_loss"]) for row in csv.DictReader((workdir / "history.csv").open())]


def test_two_processes_train_together_and_match_one(command, tmp_path):
    options = ("--config.optimizer.learning_rate=1e-3", "--config.epochs=2")
    one = run(command, tmp_path / "one", *options, devices=2)
    assert one.returncode == 0, one.stderr
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    processes = [
        subprocess.Popen(
            **command(tmp_path / "two", *options, f"--coordinator=127.0.0.1:{port}", "--processes=2", f"--process={i}"),
            stdout=-1, stderr=-1, text=True,
        )
        for i in range(2)
    ]  # fmt: skip
    outputs = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert "finished after epoch 2" in outputs[0][0] and "finished" not in outputs[1][0]
    np.testing.assert_allclose(final_losses(tmp_path / "two"), final_losses(tmp_path / "one"), rtol=1e-3)
    a, b = (json.loads((tmp_path / name / "summary.json").read_text()) for name in ("one", "two"))
    assert b["device"]["processes"] == 2 and b["device"]["count"] == 2
    assert a["last_epoch"]["dice_global"]["macro"] == pytest.approx(b["last_epoch"]["dice_global"]["macro"], abs=0.02)
