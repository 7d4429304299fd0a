"""The evaluation command, from checkpoints to files: scores against plain NumPy, stop and resume, invalid input."""

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from subprocess import PIPE

import numpy as np
import pytest
from helpers.paths import ROOT
from helpers.tile_files import image, kaggle512, mask, name, save
from helpers.trained_small import save_checkpoint
from PIL import Image

from bcss_jax import config, labels, models
from bcss_jax.commands import evaluate
from bcss_jax.common.files import write_bytes
from bcss_jax.data import tfrecords
from bcss_jax.data.discovery import DataSettings
from bcss_jax.data.sampling.folded_data import hold_out
from bcss_jax.errors import DataError, in_flags_of_command
from bcss_jax.evaluation import accumulate, image_counts, per_image_csv, results_folder
from bcss_jax.evaluation.reporting import gallery
from bcss_jax.evaluation.statistics.surface_distance import surface_scores
from bcss_jax.inference import predict
from bcss_jax.models.apply import ModelFunction, split_model
from bcss_jax.training import checkpoint, step_folder

BATCH, VAL = 8, 15  # the last batch is not full
TILE = 16


@pytest.fixture(scope="module")
def tiles(tmp_path_factory):
    """Returns a data folder with 15 validation tiles of three patients."""
    held_out = ("TCGA-OL-A5D6", "TCGA-EW-A1P1", "TCGA-GM-A2DB")
    return kaggle512(tmp_path_factory.mktemp("tiles"), val=held_out, tiles_each=5)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    return tmp_path_factory.mktemp("prepared")


@pytest.fixture(scope="module")
def new_run(tiles, prepared):
    """Returns a function that writes the folder of a run: a small U-Net with random weights, saved as in training."""

    def write(folder, seed=0, scheme="tumor_stroma", layout="kaggle512", data_dir=tiles, width=4):
        settings = config.default("unet", width=width, depth=1)
        settings.update(name=folder.name, labels=scheme, eval_batch_size=BATCH)
        settings.data.update(layout=layout, dir=str(data_dir))
        scheme = labels.SCHEMES[scheme]
        data = tfrecords.prepare(DataSettings(layout, data_dir), prepared_dir=prepared, scheme=scheme)
        model = models.create(**settings.model, num_classes=scheme.num_classes, seed=seed)
        _, params, model_state = split_model(model)
        metadata = {"config": settings.to_dict(), "label_scheme": scheme.to_json(), "data": data.describe()}
        progress = {"epoch": 2, "history": [{"epoch": 1, "train_loss": 0.5, "scores": {}}, {"epoch": 2}]}
        save_checkpoint(folder / "checkpoints", params, model_state, metadata | {"pretrained": None}, progress=progress)
        return folder

    return write


@pytest.fixture(scope="module")
def runs(new_run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return [new_run(folder / "one", seed=1), new_run(folder / "two", seed=2)]


@pytest.fixture(scope="module")
def command(prepared):
    def call(runs, output, *options):
        paths = ",".join(map(str, runs))
        return evaluate.main([f"--checkpoints={paths}", f"--output={output}", f"--prepared_dir={prepared}", *options])

    return call


@pytest.fixture(scope="module")
def finished(command, runs, tmp_path_factory):
    """Returns the results of an undisturbed evaluation, and how often it traced a network."""
    output, traces, call = tmp_path_factory.mktemp("results") / "here", [], ModelFunction.__call__

    def counted(self, *args, **kwargs):
        traces.append(self)
        return call(self, *args, **kwargs)

    predict.log_probabilities.clear_cache()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ModelFunction, "__call__", counted)
        assert command(runs, output, "--ensemble") == 0
    return output, len(traces)


@pytest.fixture(scope="module")
def with_views(command, runs, tmp_path_factory):
    """Returns the results of the same evaluation with test-time augmentation."""
    output = tmp_path_factory.mktemp("results") / "tta"
    assert command(runs, output, "--tta", "--ensemble") == 0
    return output


@pytest.fixture(scope="module")
def expected(runs, tiles, prepared):
    """Returns keys, images and ground truth of all validation tiles, read from their files, and the models."""
    scheme = labels.SCHEMES["tumor_stroma"]
    keys = sorted(path.stem for path in (tiles / "val_512").iterdir())
    images = np.stack([np.asarray(Image.open(tiles / "val_512" / f"{key}.png")) for key in keys])
    masks = np.stack([np.asarray(Image.open(tiles / "val_mask_512" / f"{key}.png")) for key in keys])
    truth = labels.lookup_table(scheme, "bcss22")[masks]
    return keys, images, truth, [model_and_weights(folder) for folder in runs]


def model_and_weights(folder):
    model, _ = checkpoint.load_model(folder / "checkpoints")
    return (ModelFunction(model), *split_model(model)[1:])


def probabilities(member, images):
    """Returns the softmax over the two evaluated classes, in float64."""
    function, params, model_state = member
    logits = np.asarray(function(params, model_state, images, train=False)[0], np.float64)[..., 1:]
    exps = np.exp(logits - logits.max(-1, keepdims=True))
    return exps / exps.sum(-1, keepdims=True)


def with_tta(member, images, views):
    total = 0
    for turns, flipped in views:
        seen = images[:, :, ::-1] if flipped else images
        found = np.rot90(probabilities(member, np.rot90(seen, turns, (1, 2)).copy()), -turns, (1, 2))
        total = total + (found[:, :, ::-1] if flipped else found)
    return total / len(views)


def confusion(truth, prediction):
    return [
        [int(((truth == t) & (prediction == p)).sum()) for p in (1, 2)] for t in (1, 2)
    ]  # rows: ground truth; pixels of label 0 have none


def document(output):
    return json.loads((output / "evaluation.json").read_text())


SQUARE = [(turns, flipped) for flipped in (False, True) for turns in range(4)]


@pytest.mark.parametrize(("which", "tta"), ((0, False), (1, False), ("ensemble", False), (0, True), ("ensemble", True)))
def test_scores_equal_plain_numpy(finished, with_views, expected, which, tta):
    keys, images, truth, members = expected
    output = with_views if tta else finished[0]
    views = SQUARE if tta else SQUARE[:1]
    chosen = members if which == "ensemble" else [members[which]]
    mean = np.mean([with_tta(member, images, views) for member in chosen], axis=0)
    prediction = mean.argmax(-1) + 1

    (found,) = [
        e for e in document(output)["evaluations"] if e["folder"] == {0: "one", 1: "two"}.get(which, "ensemble_of_2")
    ]
    pixels = confusion(truth, prediction)
    # Rounding decides the class of a pixel with two nearly equal probabilities.
    assert np.abs(np.subtract(found["scores"]["confusion"]["pixels"], pixels)).sum() <= 2
    assert found["scores"]["number"]["images"] == VAL and found["scores"]["number"]["pixels"] == (truth > 0).sum()
    rows = per_image_csv.read_per_image(output / found["folder"] / "per_image.csv")
    assert sorted(rows.key) == keys
    for n, key in enumerate(rows.key):
        t, p = truth[keys.index(key)], prediction[keys.index(key)]
        counts = np.array([[(t == c) & (p == c), (t > 0) & (t != c) & (p == c), (t == c) & (p != c)] for c in (1, 2)])
        assert np.abs(np.stack([rows.tp[n], rows.fp[n], rows.fn[n]], -1) - counts.sum((-1, -2))).sum() <= 4
        outline = surface_scores(t, p, (1, 2), 0, mpp=0.25, tolerance_um=2.0)
        np.testing.assert_allclose(rows.hd95_um[n], outline.hd95_um, atol=0.3)
    confidence = mean.max(-1)[truth > 0]
    curve = found["scores"]["calibration"]["curve"]
    filled = [n for n, c in zip(curve["pixels"], curve["confidence"], strict=True) if c is not None]
    known = [c for c in curve["confidence"] if c is not None]
    assert np.average(known, weights=filled) == pytest.approx(confidence.mean(), abs=1e-5)
    assert len(found["augmentation"]) == len(views)


def test_images_that_are_not_square_are_only_flipped(expected):
    member, scheme = expected[3][0], labels.SCHEMES["tumor_stroma"]
    images = np.random.default_rng(0).integers(0, 256, (2, 16, 24, 3), np.uint8)
    found = np.exp(predict.log_probabilities(member[0], scheme, True, *member[1:], images))
    flips = [(0, False), (2, False), (0, True), (2, True)]
    assert [tuple(view) for view in predict.views(16, 24, True)] == flips
    np.testing.assert_allclose(found[..., 1:], with_tta(member, images, flips), atol=1e-6)
    assert not found[..., 0].any()


def test_the_untrained_logit_of_the_ignored_class_has_no_influence(expected):
    scheme = labels.SCHEMES["tumor_stroma"]

    def function(params, model_state, images, *, train):
        return images[..., :3].astype(np.float32) * params, model_state

    images = np.array([[[[250, 2, 0], [0, 200, 0]]]], np.uint8)
    found = np.asarray(predict.log_probabilities(function, scheme, False, np.float32(1), {}, images))
    assert found[0, 0, 0, 1] == pytest.approx(-np.log1p(np.exp(-2)), abs=1e-6)
    assert np.isfinite(found[..., 1:]).all() and found[0, 0, 1, 2] == -200  # no underflow


def test_networks_with_the_same_structure_are_compiled_once(finished):
    assert finished[1] == 1


def test_what_evaluation_json_holds(finished, runs):
    output, _ = finished
    content = document(output)
    assert (
        content["format"] == 1 and content["settings"]["part"] == "val" and content["settings"]["batch_size"] == BATCH
    )
    one, two, both = content["evaluations"]
    assert [one["name"], two["name"], both["name"]] == ["one", "two", "ensemble of 2"]
    assert one["model"] == "unet" and one["label_scheme"]["name"] == "tumor_stroma" and one["part"] == "val"
    assert one["data"] == one["trained_on"] and one["data"]["layout"] == "kaggle512"
    assert one["config"]["model"]["width"] == 4 and one["versions"] == {"jax": "of the training"}
    assert one["checkpoint"]["step"] == 7 and one["checkpoint"]["epoch"] == 2 and one["checkpoint"]["which"] == "best"
    assert [row["epoch"] for row in one["history"]] == [1, 2] and "scores" not in one["history"][0]
    assert len({one["params_sha256"], two["params_sha256"], both["params_sha256"]}) == 3
    assert [member["name"] for member in both["checkpoint"]["members"]] == ["one", "two"]
    assert set(one["seconds"]) == {"input", "compute", "metrics"} and one["evaluated_with"]["versions"]["jax"]
    assert one["temperature"]["in_sample"] and one["temperature"]["fitted_on"] == "val"
    assert one["temperature"]["ece_after"] <= one["temperature"]["ece_before"] + 0.01
    assert [(d["a"], d["b"]) for d in content["differences"]] == [
        ("one", "two"), ("one", "ensemble of 2"), ("two", "ensemble of 2"),
    ]  # fmt: skip
    dice = [each["scores"]["scores"]["dice_global"]["macro"] for each in (one, two)]
    found = content["differences"][0]["dice_global"]["macro"]
    assert found["difference"] == pytest.approx(dice[0] - dice[1], abs=1e-12)
    assert found["low"] <= found["difference"] <= found["high"]
    assert (output / "table.md").read_text().count("| one |") == 1
    assert r"\begin{tabular}" in (output / "table.tex").read_text()
    assert json.loads((output / "one" / "scores.json").read_text())["evaluation"] == one


def test_the_gallery_holds_images_truth_and_prediction(finished, expected):
    keys, images, truth, members = expected
    (one, *_), folder = document(finished[0])["evaluations"], finished[0] / "one"
    assert [(each["rank"], each["place"]) for each in one["gallery"]] == [
        (rank, place) for rank in ("worst", "median", "best") for place in (1, 2, 3, 4)
    ]
    assert len({each["key"] for each in one["gallery"]}) == 12
    dice = [each["dice"] for each in one["gallery"]]
    assert dice[:8] == sorted(dice[:8]) and dice[8:] == sorted(dice[8:], reverse=True) and dice[7] <= dice[11]
    for each in one["gallery"]:
        n = keys.index(each["key"])
        shown, true, guess = (np.asarray(Image.open(folder / each["files"][kind])) for kind in gallery.KINDS)
        assert guess.dtype == true.dtype == np.uint8
        np.testing.assert_array_equal(shown, images[n])
        np.testing.assert_array_equal(true, truth[n])
        assert np.mean(guess == probabilities(members[0], images[n : n + 1]).argmax(-1)[0] + 1) > 0.99


@pytest.mark.parametrize("count", (0, 1, 2, 5, 11, 12, 13, 40))
def test_the_gallery_shows_no_image_twice(count):
    dice = np.append(np.linspace(0, 1, count), np.nan)
    chosen = gallery.choose(dice)
    assert (
        len({each.position for each in chosen})
        == len(chosen)
        == min(count, 12) - (count < 12 and count % 3) + (count == 1) + (count == 2) * 2
    )
    assert all(each.position < count for each in chosen)
    assert len({name for each in chosen for name in each.files.values()}) == 3 * len(chosen)


class Killed(BaseException):
    """Stands for SIGKILL: nothing in the program handles it."""


def files(folder):
    """Returns the content of every file, without the measured times."""
    found = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and path.name != ".lock"):
        content = path.read_bytes()
        if path.suffix == ".json":
            content = json.loads(content)
            for each in content.get("evaluations", [content.get("evaluation")]):
                del each["seconds"]
        found[str(path.relative_to(folder))] = content
    return found


def test_a_killed_and_resumed_evaluation_leaves_the_same_files(
    finished, command, runs, tmp_path, monkeypatch, capsys, caplog
):
    output, keep, kept = tmp_path / "here", results_folder.ResultsFolder.save_progress, []

    def then_killed(self, name, *model_state):
        keep(self, name, *model_state)
        kept.append(name)
        if kept.count("two") == 1:
            raise Killed

    monkeypatch.setattr(accumulate, "SAVE_EVERY", 0.0)
    monkeypatch.setattr(results_folder.ResultsFolder, "save_progress", then_killed)
    with pytest.raises(Killed):
        command(runs, output, "--ensemble")
    assert (output / "one" / "scores.json").exists() and not (output / "two" / "scores.json").exists()
    with np.load(output / "two" / "progress.npz", allow_pickle=False) as arrays:
        assert len(arrays["index"]) == BATCH
    monkeypatch.setattr(results_folder.ResultsFolder, "save_progress", keep)
    caplog.set_level("INFO", "bcss_jax")
    assert command(runs, output, "--ensemble") == 0
    assert "one: already evaluated" in capsys.readouterr().out
    assert f"two: resuming after {BATCH} of {VAL} images" in caplog.text
    assert files(output) == files(finished[0])


# Imports once, forks before any thread starts, kills the command after some seconds and prints its exit code.
SPAWNER = """
import json, os, signal, sys, time
from bcss_jax.commands import evaluate
from bcss_jax.data import input_pipeline, tfrecords
from bcss_jax.evaluation import accumulate

accumulate.SAVE_EVERY = 0.0  # after every batch
for line in sys.stdin:
    log, seconds, arguments = json.loads(line)
    child = os.fork()
    if not child:
        os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 1)
        os.dup2(1, 2)
        os._exit(evaluate.main(arguments))
    end, status = time.monotonic() + seconds, (0, 0)
    while not status[0]:
        time.sleep(0.01)
        status = os.waitpid(child, os.WNOHANG)
        if not status[0] and time.monotonic() > end:
            os.kill(child, signal.SIGKILL)
            status = os.waitpid(child, 0)
    print(os.waitstatus_to_exitcode(status[1]), flush=True)
"""


@pytest.mark.slow
def test_an_evaluation_killed_at_any_moment_and_resumed_leaves_the_same_files(runs, prepared, tmp_path):
    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "compiled")}
    environment |= {
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "XLA_FLAGS": "--xla_backend_optimization_level=0",
    }
    log, output = tmp_path / "log", tmp_path / "killed"
    spawner = subprocess.Popen(
        [sys.executable, "-c", SPAWNER], stdin=PIPE, stdout=PIPE, text=True, cwd=ROOT, env=environment
    )

    def ended(output, seconds=300):
        options = [f"--checkpoints={runs[0]},{runs[1]}", f"--output={output}", f"--prepared_dir={prepared}"]
        print(json.dumps([str(log), seconds, options]), file=spawner.stdin, flush=True)
        return int(spawner.stdout.readline())

    with spawner:
        begun = time.monotonic()
        assert ended(tmp_path / "whole") == 0, log.read_text()
        whole, codes = time.monotonic() - begun, []
        for share in np.random.default_rng(0).uniform(0.05, 0.7, 5):  # later runs do not need to compile
            if 0 in codes[-1:]:
                shutil.rmtree(output)  # it finished before it was killed
            codes.append(ended(output, share * whole))
        assert ended(output) == 0, log.read_text()
        spawner.stdin.close()
    assert set(codes) <= {0, -signal.SIGKILL} and -signal.SIGKILL in codes
    assert files(output) == files(tmp_path / "whole")
    assert "Traceback" not in log.read_text()


def test_a_request_to_stop_saves_the_progress_and_says_so(command, runs, tmp_path, monkeypatch, capsys):
    output, call = tmp_path / "here", image_counts.ImageCounter.__call__

    def then_asked(self, *batch):
        os.kill(os.getpid(), signal.SIGTERM)
        return call(self, *batch)

    monkeypatch.setattr(image_counts.ImageCounter, "__call__", then_asked)
    assert command(runs[:1], output) == 75
    assert (
        f"one: stopped after {BATCH} of {VAL} images; run the same command again to resume" in capsys.readouterr().err
    )
    assert (output / "one" / "progress.npz").exists()
    assert document(output)["evaluations"] == []


def test_nothing_is_computed_twice(finished, command, runs, monkeypatch, tmp_path):
    output = tmp_path / "copy"
    shutil.copytree(finished[0], output)
    with monkeypatch.context() as patch:
        patch.setattr(image_counts.ImageCounter, "__call__", lambda *_: pytest.fail("computed again"))
        assert command(runs, output, "--ensemble") == 0
    assert {k: v for k, v in files(output).items()} == files(finished[0])
    (output / "one" / "per_image.csv").write_text("damaged")
    assert command(runs, output, "--ensemble") == 0
    kept = output / "one" / "per_image.csv.kept-1"  # it could be the user's
    assert kept.read_text() == "damaged"
    kept.unlink()
    assert files(output) == files(finished[0])


def test_results_of_other_settings_are_replaced_only_with_overwrite(finished, command, runs, tmp_path, capsys):
    output = tmp_path / "copy"
    shutil.copytree(finished[0], output)
    assert command(runs[:1], output, "--tta") == 2
    assert "tta: False -> True" in one_line(capsys)
    assert files(output) == files(finished[0])
    assert command(runs[:1], output, "--tta", "--overwrite") == 0
    assert document(output)["settings"]["tta"] and not (output / "two").exists()


def test_results_of_another_model_are_replaced_only_with_overwrite(finished, command, runs, new_run, tmp_path, capsys):
    output = tmp_path / "copy"
    shutil.copytree(finished[0], output)
    other = new_run(tmp_path / "one", seed=5)
    assert command([other], output) == 2
    assert "holds results of another model or other data" in one_line(capsys)
    assert files(output) == files(finished[0])
    assert command([other], output, "--overwrite") == 0
    assert document(output)["evaluations"][0]["checkpoint"]["folder"] == str(other / "checkpoints")


def test_results_of_another_format_are_replaced_only_with_overwrite(finished, command, runs, tmp_path, capsys):
    output = tmp_path / "copy"
    shutil.copytree(finished[0], output)
    for content in ('{"format": 2, "settings": {}, "evaluations": []}', "{", "[]"):
        (output / "evaluation.json").write_text(content)
        assert command(runs[:1], output) == 2
        assert "that this program cannot read" in capsys.readouterr().err


def test_files_that_no_evaluation_wrote_are_never_touched(finished, command, runs, tmp_path, capsys):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    assert command(runs[:1], tmp_path / "mine", "--overwrite") == 2
    assert "no evaluation.json" in one_line(capsys)
    output = tmp_path / "copy"
    shutil.copytree(finished[0], output)
    shutil.rmtree(output / "one")
    shutil.copytree(runs[0], output / "one")  # a run in place of its results
    assert command(runs[:1], output, "--overwrite") == 2
    assert "found something else (checkpoints)" in one_line(capsys)
    assert (output / "one" / "checkpoints" / "7").exists() and (tmp_path / "mine" / "thesis.tex").exists()


def test_models_with_different_label_schemes_get_separate_tables(command, runs, new_run, tmp_path, capsys):
    other = new_run(tmp_path / "five", scheme="five_classes")
    assert command([runs[0], other], tmp_path / "here") == 0
    content, table = document(tmp_path / "here"), (tmp_path / "here" / "table.md").read_text()
    assert content["differences"] == []
    assert table.index("## tumor\\_stroma" if "## tumor\\_stroma" in table else "## tumor_stroma") < table.index(
        "five_classes"
    )
    assert table.count("| model |") == 2 and "| inflammatory |" in table
    assert capsys.readouterr().out.count("Dice over all pixels") == 2
    assert command([runs[0], other], tmp_path / "there", "--ensemble") == 2
    assert "two or more checkpoints with the same label scheme" in one_line(capsys)


def test_runs_with_the_same_name_get_unique_names(command, runs, new_run, tmp_path, capsys):
    other = new_run(tmp_path / "again" / "one", seed=3)
    assert command([runs[0], other / "checkpoints"], tmp_path / "here") == 0
    names = [each["name"] for each in document(tmp_path / "here")["evaluations"]]
    assert names[1] == "again_one" and names[0].endswith("_one") and len(set(names)) == 2
    capsys.readouterr()
    assert command([runs[0], runs[0] / "checkpoints"], tmp_path / "there") == 2
    assert "twice" in one_line(capsys)


@pytest.fixture(scope="module")
def small224(tmp_path_factory):
    """Returns a function that writes a kaggle224 folder, where the test split has masks only on request."""

    def write(test_masks):
        root = tmp_path_factory.mktemp("kaggle224")
        for seed, part in enumerate(("train", "val", "test")):
            for number in range(2):
                stem = name(x=224 * number, y=224 * seed, size=224)
                save(root / part / f"{stem}.png", image(10 * seed + number))
                if part != "test" or test_masks:
                    save(root / f"{part}_mask" / f"{stem}.png", mask(10 * seed + number, codes=(0, 1, 2)))
        return root

    return write


def test_the_test_split_is_scored_with_the_temperature_of_val(command, runs, small224, tmp_path, capsys):
    options = ("--data.layout=kaggle224", "--split=test")
    assert command(runs[:1], tmp_path / "here", f"--data.dir={small224(test_masks=True)}", *options) == 0
    (found,) = document(tmp_path / "here")["evaluations"]
    assert found["part"] == "test" and found["data"]["layout"] == "kaggle224"
    assert found["trained_on"]["layout"] == "kaggle512" and found["scores"]["number"]["images"] == 2
    assert found["temperature"]["fitted_on"] == "val" and not found["temperature"]["in_sample"]
    capsys.readouterr()
    assert command(runs[:1], tmp_path / "there", f"--data.dir={small224(test_masks=False)}", *options) == 3
    assert "expected images with masks in the split test, found none (train 2, val 2)" in one_line(capsys)
    assert not (tmp_path / "there" / "evaluation.json").exists()


def one_line(capsys):
    """Returns the error message, which is one line."""
    (line,) = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("INFO")]
    assert line.startswith("error: ")
    return line


@pytest.mark.parametrize(
    ("options", "code", "text"),
    (
        ((), 3, "no such folder"),
        (("--split=everything",), 2, "invalid choice"),
        (("--data.layout=kaggle",), 2, "invalid choice"),
        (("--spilt=val",), 2, "unrecognized arguments"),
    ),
)
def test_wrong_arguments(command, tmp_path, capsys, options, code, text):
    try:
        found = command([tmp_path / "missing"], tmp_path / "here", *options)
    except SystemExit as ended:
        found = ended.code
    assert found == code and text in capsys.readouterr().err


def test_a_batch_that_does_not_divide_over_the_devices(command, runs, tmp_path, capsys):
    assert command(runs[:1], tmp_path / "here", "--batch_size=12") == 2
    assert "--batch_size=12 does not divide over 8 devices" in one_line(capsys)


def test_errors_name_the_flags_of_the_command(runs, tmp_path, capsys):
    (tmp_path / "file").write_text("x")
    paths = [f"--checkpoints={runs[0]}", f"--output={tmp_path / 'here'}", f"--prepared_dir={tmp_path / 'file'}"]
    assert evaluate.main(paths) == 2
    assert "file: expected a folder for what is written, found a file" in one_line(capsys)
    message = (
        "use --config.data.split=institute, or --config.data.allow_missing=True"  # only training has the second flag
    )
    changed = in_flags_of_command(message, evaluate.FLAGS)
    assert changed == "use --data.split=institute, or --config.data.allow_missing=True"


def test_a_folder_without_a_checkpoint_is_refused(command, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("x")
    for folder in ("empty", "other"):
        assert command([tmp_path / folder], tmp_path / "here") == 3
        assert "found no checkpoint in it" in one_line(capsys)
    (tmp_path / "half" / "checkpoints" / "3").mkdir(parents=True)
    assert command([tmp_path / "half"], tmp_path / "here") == 3
    assert "cannot be read" in one_line(capsys)


def changed(runs, tmp_path, change):
    """Returns a copy of a run with changed metadata in its checkpoint."""
    folder = tmp_path / "changed"
    shutil.copytree(runs[0], folder)
    path = folder / "checkpoints" / "7" / "about" / "metadata"
    metadata = json.loads(path.read_text())
    change(metadata)
    path.write_text(json.dumps(metadata))
    step_folder.write_digests(folder / "checkpoints" / "7")  # as if it had been saved so
    return folder


def of_scheme(**values):
    return lambda metadata: metadata["label_scheme"].update(values)


@pytest.mark.parametrize(
    ("change", "text"),
    (
        (
            lambda metadata: metadata.update(format_version=99),
            "checkpoint format 99, this program reads 2; update bcss_jax",
        ),
        (lambda metadata: metadata["config"]["model"].update(width=8), "expected float32["),
        (
            lambda metadata: metadata["config"]["model"].update(name="dense_unet"),
            "describes no network of this program",
        ),
        (
            lambda metadata: metadata["config"]["model"].update(width=1000),
            "the checkpoint describes (unet, 3 classes)",
        ),
        (
            lambda metadata: metadata.update(label_scheme=labels.SCHEMES["five_classes"].to_json()),
            "label scheme is five_classes",
        ),
        (
            lambda metadata: metadata.update(label_scheme=labels.SCHEMES["tumor_stroma_other"].to_json()),
            "label scheme is",
        ),
        (
            lambda metadata: metadata.update(
                label_scheme=labels.SCHEMES["five_classes"].to_json(),
                config=metadata["config"] | {"labels": "five_classes"},
            ),
            "expected float32[1, 1, 4, 6]",
        ),
        (of_scheme(class_names=["ignored", "stroma", "tumor"]), "its classes are not those of tumor_stroma"),
        (of_scheme(class_names=["ignored", "tumor", "tumor"]), "the class name 'tumor' occurs twice"),
        (of_scheme(evaluated=[1, 1]), "the evaluated class 'tumor' occurs twice"),
        (of_scheme(class_names=["ignored", "<script>alert(1)</script>", "stroma"]), "is not made of letters"),
        (of_scheme(class_names=["ignored", "two\nlines", "stroma"]), "'two\\nlines' is not made of letters"),
        (of_scheme(name="mine"), "its config says labels=tumor_stroma, its label scheme is mine"),
        (of_scheme(evaluated=[]), "lists that are not empty"),
        (lambda metadata: metadata.update(label_scheme=None), "has the fields"),
        (lambda metadata: metadata["config"].pop("image_mean"), "image_mean"),
        (lambda metadata: metadata["config"].update(image_std=[0, 0, 0]), "image_std"),
        (lambda metadata: metadata["config"].update(eval_batch_size="many"), "was changed"),
        (lambda metadata: metadata.update(config=None), "was changed"),
        (lambda metadata: metadata.update(data={}), "was changed"),
        (lambda metadata: metadata.update(versions=float("nan")), "was changed"),
    ),
)
def test_a_checkpoint_that_contradicts_itself_is_refused(command, runs, tmp_path, capsys, change, text):
    assert command([changed(runs, tmp_path, change)], tmp_path / "here") == 3
    line = one_line(capsys)
    assert text in line and line.count("expected float32") <= 20
    assert not (tmp_path / "here" / "evaluation.json").exists()


def test_twenty_differences_of_the_weights_are_listed(command, runs, tmp_path, capsys):
    folder = changed(runs, tmp_path, lambda metadata: metadata["config"].update(model={"name": "unet_resnet34"}))
    assert command([folder], tmp_path / "here") == 3
    line = one_line(capsys)
    assert line.count("; missing ") + line.count(": missing ") + line.count("unknown ") == 20 and "; and " in line


class Canary:
    """Creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_the_canary_creates_its_file(tmp_path):
    pickle.loads(pickle.dumps(Canary(tmp_path / "canary")))
    assert (tmp_path / "canary").exists()


def test_nothing_in_a_run_is_unpickled_or_executed(command, runs, tmp_path, capsys):
    canary = tmp_path / "canary"
    pickled = pickle.dumps(Canary(canary))
    for suffix in ("pth", "pkl", "npz"):
        (tmp_path / f"weights.{suffix}").write_bytes(pickled)
    np.save(tmp_path / "weights.npy", np.array([Canary(canary)], object), allow_pickle=True)
    with zipfile.ZipFile(tmp_path / "weights.zip", "w") as archive:
        archive.writestr("../../escaped", "x")
    for path in tmp_path.glob("weights.*"):
        assert command([path], tmp_path / "here") == 3
        assert "found a file" in one_line(capsys)
    assert not list(tmp_path.parent.parent.glob("**/escaped"))  # no archive is opened
    for item in ("about", "params", "rest", "metrics"):
        folder = tmp_path / item
        shutil.copytree(runs[0], folder)
        (folder / "config.py").write_text(f"open({str(canary)!r}, 'w')")
        for path in (path for path in (folder / "checkpoints" / "7" / item).rglob("*") if path.is_file()):
            path.write_bytes(pickled)
        assert command([folder], tmp_path / "here") == 3
        assert "cannot be read" in one_line(capsys)
    assert command([tmp_path / "about"], tmp_path / "here", "--which=latest") == 3
    assert not canary.exists()


def test_progress_of_a_stopped_evaluation_is_not_unpickled(command, runs, tmp_path, monkeypatch):
    output, canary = tmp_path / "here", tmp_path / "canary"
    assert command(runs[:1], output) == 0
    (output / "one" / "scores.json").unlink()
    write_bytes(output / "one" / "progress.npz", b"")  # a file of an evaluation, which is changed then
    np.savez(output / "one" / "progress.npz", identity=np.array([Canary(canary)], object))
    assert command(runs[:1], output) == 0
    assert (output / "one" / "scores.json").exists() and not canary.exists()


@pytest.mark.parametrize(
    ("factor", "said"),
    (
        (np.nan, "params/outc/bias holds numbers that are not finite"),
        (3.4e38, ": the output of the network is not finite"),
    ),
)
def test_weights_or_an_output_that_are_not_finite_are_reported(
    command, new_run, tmp_path, capsys, monkeypatch, factor, said
):
    create = models.create

    def broken(*args, **kwargs):
        model = create(*args, **kwargs)
        for values in (model.outc.kernel, model.outc.bias):
            values.set_value(values.get_value() * 0 + factor)
        return model

    with monkeypatch.context() as patch:
        patch.setattr(models, "create", broken)
        folder = new_run(tmp_path / "broken")
    assert command([folder], tmp_path / "here") == 4
    assert said in one_line(capsys)
    assert not list((tmp_path / "here").rglob("scores.json"))


FOLDS = 2


@pytest.fixture(scope="module")
def cross_validated(tiles, prepared, tmp_path_factory):
    """Returns the folder of a cross-validation with random weights, and its data set."""
    folder, scheme = tmp_path_factory.mktemp("runs") / "cv", labels.SCHEMES["tumor_stroma"]
    whole = tfrecords.prepare(DataSettings("kaggle512", tiles), prepared_dir=prepared, scheme=scheme)
    for fold in range(FOLDS):
        settings = config.default("unet", width=4, depth=1)
        settings.update(name="cv", eval_batch_size=BATCH)
        settings.data.update(layout="kaggle512", dir=str(tiles), folds=FOLDS, fold=str(fold))
        _, params, model_state = split_model(models.create(**settings.model, num_classes=3, seed=fold))
        data = hold_out(whole, FOLDS, fold, scheme).describe()
        metadata = {"config": settings.to_dict(), "label_scheme": scheme.to_json(), "data": data, "pretrained": None}
        save_checkpoint(folder / f"fold_{fold}" / "checkpoints", params, model_state, metadata)
        (folder / f"fold_{fold}" / "config.json").write_text(settings.to_json())
    return folder, whole


def counts_by_key(file):
    found = per_image_csv.read_per_image(file)
    return dict(zip(found.key, np.stack([found.tp, found.fp, found.fn], 1).tolist(), strict=True))


def test_folds_are_scored_together_each_image_by_the_fold_that_held_it_out(cross_validated, command, tmp_path):
    folder, whole = cross_validated
    # One of the folds is given by itself too: it is scored on what it held out.
    assert command([folder, folder / "fold_1"], tmp_path / "out") == 0
    together = counts_by_key(tmp_path / "out" / "cv" / "per_image.csv")
    apart = counts_by_key(tmp_path / "out" / "fold_1" / "per_image.csv")
    rows = hold_out(whole, FOLDS, 1, labels.SCHEMES["tumor_stroma"]).table("val")
    assert sorted(apart) == sorted(row["key"] for row in rows)
    assert apart == {key: together[key] for key in apart}
    assert sorted(together) == sorted(row["key"] for split in ("train", "val") for row in whole.table(split))
    evaluation, _ = json.loads((tmp_path / "out" / "evaluation.json").read_text())["evaluations"]
    assert evaluation["scores"]["number"]["patients"] == 5
    content = whole.report.content_sha256
    assert evaluation["data"]["folds"] == {"count": FOLDS, "held_out": [0, 1], "content_sha256": content}
    low, high = evaluation["scores"]["intervals"]["dice_global"]["macro"]
    assert low <= evaluation["scores"]["scores"]["dice_global"]["macro"] <= high
    assert "not trained on it" in (tmp_path / "out" / "cv" / "MODEL_CARD.md").read_text()


@pytest.mark.slow
def test_a_stopped_evaluation_of_folds_resumes_within_a_fold(cross_validated, command, tmp_path, monkeypatch):
    folder, _ = cross_validated
    assert command([folder], tmp_path / "whole") == 0
    monkeypatch.setattr(accumulate, "SAVE_EVERY", 0.0)
    calls, count = [], accumulate._count_batches

    def stops(counter, batches, *rest):
        for each in count(counter, batches, *rest):
            calls.append(each)
            if len(calls) == 4:
                raise DataError("stopped by the test")
            yield each

    monkeypatch.setattr(accumulate, "_count_batches", stops)
    assert command([folder], tmp_path / "stopped") == 3
    monkeypatch.setattr(accumulate, "_count_batches", count)
    assert command([folder], tmp_path / "stopped") == 0
    files = [(tmp_path / name / "cv" / "per_image.csv").read_text() for name in ("whole", "stopped")]
    assert files[0] == files[1]


def test_folds_of_other_data_or_found_twice_are_refused(cross_validated, command, tmp_path, capsys):
    folder, _ = cross_validated
    other = kaggle512(tmp_path / "tiles")
    assert command([folder], tmp_path / "out", f"--data.dir={other}") == 2
    assert "its folds hold out images of another data set" in capsys.readouterr().err
    assert command([folder], tmp_path / "out", "--split=train") == 2
    assert "were trained on it" in capsys.readouterr().err
    copy = tmp_path / "cv"
    shutil.copytree(folder, copy)
    shutil.copytree(copy / "fold_1", copy / "fold_7")
    assert command([copy], tmp_path / "out") == 3
    assert "expected each fold once, found fold 1 twice" in capsys.readouterr().err
