"""Whole runs of the command on tiny tiles: finished, killed, resumed, stopped, and on several devices."""

import csv
import hashlib
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
from helpers.paths import ROOT
from helpers.tile_files import kaggle512
from PIL import Image

KILLS = int(os.environ.get("KILLS", 4))  # each kill starts another process; KILLS=10 for a thorough run
SHORT = (
    "--config.batch_size=4", "--config.eval_batch_size=4", "--config.epochs=3",
    "--config.optimizer.learning_rate=0.01", "--config.data.threads=1",
)  # fmt: skip
SMALL = ("--config.model.width=4", "--config.model.depth=2", *SHORT)
# Three resolutions of nnU-Net's network.
PLAN = {
    "features_per_stage": (4, 8, 8), "strides": ((1, 1), (2, 2), (2, 2)), "n_conv_per_stage": (1, 1, 1),
    "n_conv_per_stage_decoder": (1, 1), "n_stages": 3,
}  # fmt: skip
SMALL_NNUNET = (*(f"--config.model.{key}={value}" for key, value in PLAN.items()), *SHORT)


@pytest.fixture(scope="module")
def tiles(tmp_path_factory):
    """Writes a data folder: 9 training tiles (not a multiple of the batch) of 3 patients, and 3 validation tiles."""
    patients = ("TCGA-A2-A0D2", "TCGA-BH-A0B1", "TCGA-A1-A0SK")
    return kaggle512(tmp_path_factory.mktemp("tiles"), train=patients, tiles_each=3)


@pytest.fixture(scope="module")
def command(tiles, tmp_path_factory):
    """Returns a function that builds the command line and the environment of a run."""
    prepared, cache = tmp_path_factory.mktemp("prepared"), tmp_path_factory.mktemp("compiled")

    def build(workdir, *options, devices=1, system="unet", small=SMALL):
        argv = [
            sys.executable,
            "-m",
            "bcss_jax.main",
            f"--config=configs/{system}.py:kaggle512",
            f"--workdir={workdir}",
        ]
        argv += [f"--config.data.dir={tiles}", f"--config.data.prepared_dir={prepared}", *small, *options]
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
    """A run that was not interrupted."""
    workdir = tmp_path_factory.mktemp("finished") / "run"
    result = run(command, workdir)
    assert result.returncode == 0, result.stderr
    return workdir, result


def test_a_run_writes_its_report(finished):
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
    assert "summary.json" in result.stdout and "tensorboard.main --logdir" in result.stdout
    assert "val Dice" in result.stdout


def test_a_run_says_what_its_start_took_and_other_libraries_say_nothing(finished):
    _, result = finished
    parts = r"imports [\d.]+, network [\d.]+, data [\d.]+, compiling [\d.]+, step [\d.]+"
    assert re.search(rf"^first step after [\d.]+ s: {parts}$", result.stdout, re.M)
    assert [line for line in result.stderr.splitlines() if not line.startswith(("INFO: ", "WARNING: "))] == []


def test_a_checkpoint_is_enough_for_prediction(finished):
    import jax

    from bcss_jax import labels, models
    from bcss_jax.models.apply import ModelFunction
    from bcss_jax.training import checkpoint, sharding

    workdir, _ = finished
    trained = checkpoint.load_trained(workdir / "checkpoints", sharding.make_mesh(jax.devices()[:1]), "latest")
    config, scheme = trained.metadata["config"], trained.metadata["label_scheme"]
    assert scheme == json.loads(json.dumps(labels.SCHEMES["tumor_stroma"].to_json()))
    model = models.create(**config["model"], num_classes=len(scheme["class_names"]), dtype=config["dtype"])
    images = np.zeros((1, 16, 16, 3), np.uint8)
    logits, _ = ModelFunction(model)(trained.params, trained.model_state, images, train=False)
    assert logits.shape == (1, 16, 16, 3)
    from bcss_jax.training.summary import params_sha256

    assert params_sha256(trained.params) == summary(workdir)["params_sha256"]
    assert trained.metadata["stain"] is None  # the tiles are noise


def test_a_finished_run_is_not_trained_again(finished, command):
    workdir, _ = finished
    before = summary(workdir)
    (workdir / "samples.png").unlink()
    result = run(command, workdir)
    assert result.returncode == 0 and "epoch 1 " not in result.stdout
    assert summary(workdir)["params_sha256"] == before["params_sha256"]
    assert (workdir / "samples.png").exists()  # missing files of the report are written again


def test_another_config_is_refused_with_the_difference(finished, command):
    workdir, _ = finished
    result = run(command, workdir, "--config.seed=1", "--config.model.width=8")
    assert result.returncode == 2
    assert "config.seed: 0 -> 1" in result.stderr and "config.model.width: 4 -> 8" in result.stderr
    assert "--fresh" in result.stderr and "Traceback" not in result.stderr


@pytest.mark.slow
def test_fresh_starts_over(command, tmp_path):
    run(command, tmp_path / "run", "--config.epochs=1")
    result = run(command, tmp_path / "run", "--config.epochs=1", "--config.seed=3", "--fresh")
    assert result.returncode == 0, result.stderr
    assert "resuming" not in result.stdout and summary(tmp_path / "run")["config"]["seed"] == 3


EVERY_STEP = ("--config.log_seconds=0",)  # a progress line after each step


def first_step(process) -> str:
    """Reads the output until the first step is done, and returns it."""
    output = ""
    for line in process.stdout:
        output += line
        if re.match(r"epoch \d+ \d+/\d+", line):
            return output
    raise AssertionError(f"no step done, exit code {process.wait()}:\n{output}\n{process.stderr.read()}")


def last_saved_step(workdir) -> int | None:
    """Returns the step of the newest whole checkpoint."""
    steps = [int(p.name) for p in (workdir / "checkpoints").glob("*") if p.name.isdecimal()]
    return max(steps, default=None)


def rows_without_times(workdir):
    rows = list(csv.DictReader((workdir / "history.csv").open()))
    return [{k: v for k, v in row.items() if k not in ("seconds", "images_per_second", "input_wait")} for row in rows]


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ("float32", "float16"))
def test_killed_at_random_moments_the_parameters_are_bit_identical(command, tmp_path, dtype):
    # With a checkpoint after every step, nearly every moment is during a save.
    epochs = f"--config.epochs={4 * KILLS}"
    options = (
        *EVERY_STEP,
        epochs,
        f"--config.dtype={dtype}",
        "--config.early_stopping=0",
        "--config.checkpoint_steps=1",
    )
    undisturbed = run(command, tmp_path / "undisturbed", *options)
    assert undisturbed.returncode == 0, undisturbed.stderr
    moments, resumed_at, cut_saves = random.Random(0), set(), 0
    for kill in range(KILLS):
        before = last_saved_step(tmp_path / "killed")
        process = subprocess.Popen(**command(tmp_path / "killed", *options), stdout=-1, stderr=-1, text=True)
        resumed_at.update(re.findall(r"\(step (\d+)\)", first_step(process)))
        # A slow disk may not end a save before the kill; only the first time nothing need be there.
        while kill and process.poll() is None and last_saved_step(tmp_path / "killed") == before:
            time.sleep(0.01)
        time.sleep(moments.uniform(0.1, 0.5))
        assert process.poll() is None, f"the run ended before it was killed: {process.communicate()}"
        process.kill()
        process.communicate()
        cut_saves += any((tmp_path / "killed" / "checkpoints").glob("*tmp*"))
    assert len(resumed_at) >= KILLS // 3, resumed_at
    assert cut_saves >= 1 or KILLS < 10
    result = run(command, tmp_path / "killed", *options)
    assert result.returncode == 0, result.stderr
    assert "resuming" in result.stdout
    a, b = summary(tmp_path / "undisturbed"), summary(tmp_path / "killed")
    assert a["params_sha256"] == b["params_sha256"]
    assert a["last_epoch"] == b["last_epoch"] and a["best_epoch"] == b["best_epoch"]
    assert a.get("skipped_by_loss_scale") == b.get("skipped_by_loss_scale")
    assert ("skipped_by_loss_scale" in a) == (dtype == "float16") and a["bad_steps"] == 0
    assert rows_without_times(tmp_path / "undisturbed") == rows_without_times(tmp_path / "killed")
    assert not list((tmp_path / "killed" / "checkpoints").glob("*tmp*"))


def test_sigterm_saves_and_exits_75(command, tmp_path):
    options = (*EVERY_STEP, "--config.epochs=400", "--config.early_stopping=0")
    process = subprocess.Popen(**command(tmp_path / "run", *options), stdout=-1, stderr=-1, text=True)
    first_step(process)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 75, errors
    assert "the same command goes on from there" in errors and "Traceback" not in errors
    saved = last_saved_step(tmp_path / "run")
    resumed = subprocess.Popen(**command(tmp_path / "run", *options), stdout=-1, stderr=-1, text=True)
    assert f"(step {saved})" in first_step(resumed)
    resumed.kill()
    resumed.communicate()


@pytest.mark.slow
def test_stopped_at_any_step_of_an_epoch_the_result_is_the_same(command, tmp_path, finished):
    """Stops after each step of the first epoch, including the last, and after the first step of the next."""
    for _ in range(4):
        process = subprocess.Popen(**command(tmp_path / "run", *EVERY_STEP), stdout=-1, stderr=-1, text=True)
        for line in process.stdout:
            if line.startswith("epoch  train loss"):  # the loop begins; it stops after one step
                process.send_signal(signal.SIGTERM)
                break
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 75, errors
    result = run(command, tmp_path / "run")
    assert result.returncode == 0 and "(step 4)" in result.stdout, result.stdout + result.stderr
    assert summary(tmp_path / "run")["params_sha256"] == summary(finished[0])["params_sha256"]
    assert rows_without_times(tmp_path / "run") == rows_without_times(finished[0])
    from bcss_jax.training.checkpoint import Checkpoints  # the checkpoint of the best epoch exists

    best = summary(tmp_path / "run")["best_epoch"]
    assert 3 * best in Checkpoints(tmp_path / "run" / "checkpoints").steps()


def test_tiles_that_are_decoded_in_every_epoch_give_the_same_result(command, tmp_path, finished):
    result = run(command, tmp_path / "run", "--config.data.memory_share=0")
    assert result.returncode == 0, result.stderr
    assert "training tiles are decoded in every epoch (config.data.memory_share is 0)" in result.stdout
    assert "training tiles are held decoded in memory" in finished[1].stdout
    assert summary(tmp_path / "run")["params_sha256"] == summary(finished[0])["params_sha256"]


@pytest.mark.slow
def test_a_run_that_is_augmented_on_the_device_is_another_run(command, tmp_path):
    options = ("--config.dtype=float16", "--config.micro_batches=2", "--config.epochs=1")
    options += ("--config.augment.elastic=0.0", "--config.augment.color_jitter=0.0")  # compiles faster
    result = run(command, tmp_path / "run", "--config.augment_on=device", *options, devices=2)
    assert result.returncode == 0, result.stderr
    result = run(command, tmp_path / "run", *options, devices=2)
    assert result.returncode == 2 and "config.augment_on: device -> host" in result.stderr, result.stderr


@pytest.mark.slow
def test_stopped_runs_that_are_augmented_on_the_device_go_on_with_the_same_images(command, tmp_path):
    options = (*EVERY_STEP, "--config.augment_on=device")
    undisturbed = run(command, tmp_path / "undisturbed", *options)
    assert undisturbed.returncode == 0, undisturbed.stderr
    process = subprocess.Popen(**command(tmp_path / "run", *options), stdout=-1, stderr=-1, text=True)
    first_step(process)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 75
    result = run(command, tmp_path / "run", *options, "--config.data.memory_share=0")
    assert result.returncode == 0 and "resuming" in result.stdout, result.stderr
    assert summary(tmp_path / "run")["params_sha256"] == summary(tmp_path / "undisturbed")["params_sha256"]


@pytest.mark.slow
def test_the_step_is_compiled_once_in_a_run(command, tmp_path):
    options = (
        "--config.plateau.patience=0",
        "--config.plateau.factor=0.5",
        "--config.epochs=16",
        "--config.optimizer.learning_rate=0.05",
    )
    line = command(tmp_path / "run", *options)
    line["env"] |= {"JAX_LOG_COMPILES": "1", "JAX_ENABLE_COMPILATION_CACHE": "0"}
    result = subprocess.run(**line, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    rates = {row["learning_rate"] for row in csv.DictReader((tmp_path / "run" / "history.csv").open())}
    assert len(rates) > 1  # the plateau rule reduced it
    for name in ("train_step", "eval_step"):
        assert len(re.findall(rf"Finished XLA compilation of jit\({name}\)", result.stderr)) == 1, result.stderr


def test_non_finite_losses_are_reported_and_end_the_run_with_4(command, tmp_path):
    options = ("--config.optimizer.learning_rate=1e38", "--config.checkpoint_steps=1", "--config.batch_size=1")
    result = run(command, tmp_path / "run", *options)
    assert result.returncode == 4, result.stderr
    assert "Traceback" not in result.stderr and "gradient norm" in result.stderr and "TCGA-" in result.stderr
    assert result.stderr.count("left out; batch:") == 4  # three warnings, and the error, which repeats the last one
    assert [p for p in (tmp_path / "run" / "checkpoints").iterdir() if p.name.isdecimal()]


def test_a_second_run_in_the_same_folder_is_refused(command, tmp_path):
    options = (*EVERY_STEP, "--config.epochs=400", "--config.early_stopping=0")
    first = subprocess.Popen(**command(tmp_path / "run", *options), stdout=-1, stderr=-1, text=True)
    first_step(first)
    second = run(command, tmp_path / "run", *options)
    first.kill()
    first.communicate()
    assert second.returncode == 5 and f"in use by process {first.pid}" in second.stderr


def test_a_folder_that_cannot_be_written_is_reported_at_once(command, tmp_path):
    (tmp_path / "file").write_text("in the way")
    result = run(command, tmp_path / "file" / "run")
    assert result.returncode == 2 and "file: expected a folder for what is written, found a file" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    "options, code, message",
    (
        (["--config.batchsize=3"], 2, "did you mean config.batch_size"),
        (["--config.data.dri=x"], 2, "did you mean config.data.dir"),
        (["--config.batch_size=many"], 2, "--config.batch_size=many"),
        (["--config.optimizer.learning_rate=-1"], 2, "learning_rate=-1.0: must be above 0"),
        (["--config.optimizer.learning_rate=nan"], 2, "must be above 0"),
        (["--config.labels=tumor"], 2, "did you mean tumor_stroma"),
        (["--config.data.dir=nowhere"], 3, "configs/unet.py"),
        (["--config=configs/nope.py"], 2, "expected a config file, found no such file"),
        (["--unknown"], 2, "--unknown: no such option"),
        (["stray"], 2, "stray"),
        (["--config", "configs/nope.py"], 2, "configs/nope.py: expected a config file, found no such file"),
        (["--processes=2"], 2, "--coordinator"),
        (["--config.batch_size=0"], 2, "must be a whole number from 1 to"),
        (["--config.model.name=resnet"], 2, "the models are"),
        (["--config.augment.flip=1"], 2, "config.augment.flip: there is no such setting"),
        (["--config.augment.blur=2"], 2, "blur"),
        (["--config.pretrained=nowhere.npz"], 3, "nowhere.npz: expected a file of weights, found no such file"),
        (["--config.freeze_encoder_epochs=1"], 2, "unet has no encoder of its own"),
        (["--config.deep_supervision=True"], 2, "one head only"),
        (["--config.model.widht=4"], 2, "did you mean config.model.width"),
    ),
)
def test_mistakes_on_the_command_line_get_one_line(command, tmp_path, options, code, message):
    result = run(command, tmp_path / "run", *options)
    assert result.returncode == code, result.stderr
    assert message in result.stderr and "Traceback" not in result.stderr
    assert len([line for line in result.stderr.splitlines() if line.startswith("error: ")]) == 1


@pytest.mark.slow
def test_settings_may_be_corrected_while_nothing_is_saved(command, tmp_path):
    assert run(command, tmp_path / "run", "--config.data.dir=nowhere").returncode == 3
    result = run(command, tmp_path / "run", "--config.epochs=1", "--config.seed=9")
    assert result.returncode == 0, result.stderr
    assert summary(tmp_path / "run")["config"]["seed"] == 9


def test_fresh_does_not_delete_a_folder_that_is_not_a_run(command, tmp_path):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    result = run(command, tmp_path / "run", "--fresh")
    assert result.returncode == 2 and "which no run wrote" in result.stderr
    assert (tmp_path / "run" / "checkpoints").is_dir()


def test_help_lists_the_options():
    result = subprocess.run([sys.executable, "-m", "bcss_jax.main", "--help"], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0 and "--workdir" in result.stdout and "--[no]fresh" in result.stdout


def test_a_batch_that_does_not_divide_over_the_devices_is_refused(command, tmp_path):
    result = run(command, tmp_path / "run", "--config.batch_size=12", devices=8)
    assert result.returncode == 2 and "nearest sizes are 8 or 16" in result.stderr


def run_two_processes(command, workdir, *options):
    """Runs two processes as one job. Returns their exit codes and outputs."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options += (f"--coordinator=127.0.0.1:{port}", "--processes=2")
    lines = [command(workdir, *options, f"--process={i}") for i in range(2)]
    processes = [subprocess.Popen(**line, stdout=-1, stderr=-1, text=True) for line in lines]
    outputs = [process.communicate(timeout=300) for process in processes]
    return [process.returncode for process in processes], outputs


def column(workdir, name):
    return [float(row[name]) for row in csv.DictReader((workdir / "history.csv").open())]


@pytest.mark.slow
def test_two_processes_train_together_and_match_one(command, tmp_path):
    options = ("--config.optimizer.learning_rate=1e-4", "--config.epochs=2")
    one = run(command, tmp_path / "one", *options)
    assert one.returncode == 0, one.stderr
    codes, outputs = run_two_processes(command, tmp_path / "two", *options)
    assert codes == [0, 0], outputs
    assert "finished after epoch 2" in outputs[0][0] and "finished" not in outputs[1][0]
    np.testing.assert_allclose(
        column(tmp_path / "two", "train_loss"), column(tmp_path / "one", "train_loss"), rtol=1e-5
    )
    np.testing.assert_allclose(column(tmp_path / "two", "val_loss"), column(tmp_path / "one", "val_loss"), rtol=1e-4)
    device = summary(tmp_path / "two")["device"]
    assert device["processes"] == 2 and device["count"] == 2
    assert min(Image.open(tmp_path / "two" / "samples.png").size) > 200

    codes, outputs = run_two_processes(command, tmp_path / "two", *options, "--config.seed=5")
    assert codes == [2, 2]  # all processes fail, not only the one that checks
    assert "config.seed: 0 -> 5" in outputs[0][1] and "Traceback" not in outputs[1][1]


@pytest.mark.slow
def test_from_pretrained_weights_with_a_frozen_encoder(command, tmp_path):
    """Uses nnU-Net's network, loss, optimizer and schedule as well."""
    from bcss_jax import models
    from bcss_jax.models.weights.pretrained import to_torch_state
    from bcss_jax.training import checkpoint

    weights = to_torch_state(models.create("nnunet", **PLAN, num_classes=3, seed=7).encoder)
    file = tmp_path / "weights.npz"
    np.savez(file, **{f"module.{name}": array for name, array in weights.items()})
    options = (f"--config.pretrained={file}", "--config.freeze_encoder_epochs=1", "--config.epochs=2")
    nnunet = {"system": "nnunet_plain", "small": SMALL_NNUNET}

    first = run(command, tmp_path / "run", *options, "--config.epochs=1", **nnunet)
    assert first.returncode == 0, first.stderr
    # A run that was killed during its first save has no checkpoint, so it still needs the weights.
    (saved,) = (tmp_path / "run" / "checkpoints").glob("*[0-9]")
    saved.rename(saved.with_name(f"{saved.name}.orbax-checkpoint-tmp"))
    (tmp_path / "run" / "summary.json").unlink()
    first = run(command, tmp_path / "run", *options, "--config.epochs=1", **nnunet)
    assert first.returncode == 0, first.stderr
    assert f"{file}: {len(weights)} tensors into the encoder" in first.stdout
    model, metadata = checkpoint.load_model(tmp_path / "run" / "checkpoints", "latest")
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    assert metadata["pretrained"]["sha256"] == digest and metadata["pretrained"]["file"] == "weights.npz"
    for name, array in to_torch_state(model.encoder).items():
        np.testing.assert_array_equal(array, weights[name])

    second = run(command, tmp_path / "two", *options, **nnunet)
    assert second.returncode == 0, second.stderr
    model, _ = checkpoint.load_model(tmp_path / "two" / "checkpoints", "latest")
    assert any((array != weights[name]).any() for name, array in to_torch_state(model.encoder).items())
    np.testing.assert_allclose(column(tmp_path / "two", "learning_rate"), [0.01, 0.01 * 0.5**0.9], rtol=1e-6)

    (tmp_path / "two" / "samples.png").unlink()
    np.savez(file, **{f"module.{name}": array + 1 for name, array in weights.items()})
    third = run(command, tmp_path / "two", *options, **nnunet)
    assert third.returncode == 0 and f"{file}: has changed since the run began with it" in third.stderr
    assert summary(tmp_path / "two")["pretrained"]["sha256"] == digest

    file.unlink()  # the weights are in the checkpoint now
    (tmp_path / "two" / "samples.png").unlink()
    third = run(command, tmp_path / "two", *options, **nnunet)
    assert third.returncode == 0, third.stderr
    assert summary(tmp_path / "two")["pretrained"]["sha256"] == digest
