"""Tests custom label schemes from a TOML file in training, evaluation, slide segmentation and export."""

import json
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import tifffile
from helpers import slide_files
from helpers.paths import ROOT
from helpers.segment_command import call, command, one_line, summary_of
from helpers.slides_small import tissue_picture, write_run
from helpers.tile_files import image, kaggle512, mask, name, save
from PIL import Image

from bcss_jax import labels
from bcss_jax.commands import evaluate, export
from bcss_jax.data import __main__ as data_command

FOUR = """
class_names = ["ignored", "epithelium", "connective tissue", "immune", "remainder"]
evaluated = ["connective tissue", "epithelium", "immune", "remainder"]

[colors]
ignored = "#808080"
epithelium = "#AA1122"
"connective tissue" = "#11AA33"
immune = "#2244EE"
remainder = "#DDCC00"

[bcss22]
epithelium = ["tumor", "dcis", 19]
"connective tissue" = ["stroma"]
immune = ["lymphocytic_infiltrate", 10, 11]
ignored = ["outside_roi", "exclude", "undetermined"]
remainder = "rest"
"""
NAMES = ["connective tissue", "epithelium", "immune", "remainder"]  # in the order of `evaluated`
COLORS = {"epithelium": "#aa1122", "connective tissue": "#11aa33", "immune": "#2244ee", "remainder": "#ddcc00"}
# The classes of `tumor_stroma` in another order. If they were matched by position, tumor would become stroma.
SWAPPED = """
class_names = ["ignored", "stroma", "tumor"]

[colors]
ignored = "#808080"
stroma = "#0072B2"
tumor = "#E69F00"

[kaggle3]
tumor = ["tumor"]
stroma = ["stroma"]
ignored = "rest"
"""


def train(workdir, scheme, tiles, *options):
    """Runs the training command in a separate process, in the parent folder of `workdir`."""
    arguments = [
        "--config=" + str(ROOT / "configs" / "unet.py") + ":kaggle512",
        f"--workdir={workdir}",
        f"--config.labels={scheme}",
        f"--config.data.dir={tiles}",
        f"--config.data.prepared_dir={workdir.parent / 'prepared'}",
        *("--config.model.width=4", "--config.model.depth=2", "--config.batch_size=4", "--config.eval_batch_size=4"),
        *("--config.epochs=2", "--config.optimizer.learning_rate=0.01", "--config.data.threads=1", *options),
    ]
    one_device = {"XLA_FLAGS": "--xla_force_host_platform_device_count=1"}
    environment = os.environ | one_device | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-m", "bcss_jax.main", *arguments],
        cwd=workdir.parent,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Returns a run with four classes, its training data, and the renamed label scheme file."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "my_labels.toml").write_text(FOUR)
    tiles = kaggle512(folder / "tiles")
    result = train(folder / "run", "my_labels.toml", tiles)
    assert result.returncode == 0, result.stderr
    (folder / "my_labels.toml").rename(folder / "kept.txt")  # from here on, the checkpoint alone must be enough
    return folder / "run", tiles, folder / "kept.txt"


def hex_of(color):
    return "#" + bytes(color).hex()


def test_run_stores_the_complete_scheme(trained):
    workdir, _, file = trained
    summary = json.loads((workdir / "summary.json").read_text())
    scheme = labels.scheme_from_json(summary["label_scheme"])
    shutil.copyfile(file, workdir.parent / "copy.toml")
    read = labels.find_scheme(str(workdir.parent / "copy.toml"))
    assert scheme.name == "my_labels" and scheme.class_names == read.class_names
    assert (scheme.colors, scheme.code_labels, scheme.evaluated) == (read.colors, read.code_labels, (2, 1, 3, 4))
    assert dict(scheme.code_labels)["bcss22"][:12] == (0, 1, 2, 3, 4, 4, 4, 0, 4, 4, 3, 3)
    assert list(summary["dice_global"]) == [*NAMES, "macro"]
    assert summary["config"]["labels"] == "my_labels.toml"
    for path in [workdir / "config.json", *(workdir / "checkpoints").glob("*/about/metadata")]:
        assert json.loads(path.read_text())["label_scheme"] == summary["label_scheme"]


def test_sample_pictures_have_the_colors_of_the_scheme(trained):
    picture = np.asarray(Image.open(trained[0] / "samples.png").convert("RGB"))
    for color in COLORS.values():  # at least in the legend
        assert (picture == list(bytes.fromhex(color[1:]))).all(-1).sum() > 50, color


@pytest.mark.slow
def test_training_resumes_with_the_same_file_and_refuses_a_changed_one(trained, tmp_path):
    workdir, tiles, file = trained
    shutil.copytree(workdir, tmp_path / "run")
    (tmp_path / "my_labels.toml").write_text(FOUR.replace('"stroma"]', '"stroma", "fat"]'))
    result = train(tmp_path / "run", "my_labels.toml", tiles)
    assert result.returncode == 2 and "Traceback" not in result.stderr
    assert "config.labels: my_labels.toml has changed (code_labels) since the run was started" in result.stderr
    shutil.copyfile(file, tmp_path / "my_labels.toml")
    result = train(tmp_path / "run", tmp_path / "my_labels.toml", tiles)
    assert result.returncode == 0 and "resuming after epoch 2" in result.stdout, result.stderr


def test_evaluation_has_the_names_and_colors_of_the_scheme(trained, tmp_path):
    workdir, tiles, _ = trained
    arguments = [f"--checkpoints={workdir}", f"--output={tmp_path / 'results'}", "--batch_size=8"]
    arguments += [f"--data.dir={tiles}", f"--prepared_dir={workdir.parent / 'prepared'}"]
    assert evaluate.main(arguments) == 0
    (found,) = json.loads((tmp_path / "results" / "evaluation.json").read_text())["evaluations"]
    assert list(found["scores"]["scores"]["dice_global"]) == [*NAMES, "macro"]
    assert labels.scheme_from_json(found["label_scheme"]).name == "my_labels"
    header = (tmp_path / "results" / "table.md").read_text().splitlines()[0]
    assert header.startswith(f"| model | data | {' | '.join(NAMES)} | macro |")
    report = (tmp_path / "results" / "report.html").read_text()
    assert all(each in report for each in (*NAMES, *COLORS.values(), "label scheme my_labels"))
    assert "no class for other tissue" not in report
    card = (tmp_path / "results" / "run" / "MODEL_CARD.md").read_text()
    assert ", ".join(NAMES) in card and "label scheme my" in card
    assert evaluate.main(arguments) == 0  # nothing is computed again


@pytest.mark.slow
def test_runs_of_different_schemes_do_not_share_a_table(trained, tmp_path):
    """Both schemes have the same name and classes, but map different codes to them."""
    workdir, tiles, _ = trained
    (tmp_path / "my_labels.toml").write_text(FOUR.replace('"stroma"]', '"stroma", "fat"]'))
    other = train(tmp_path / "other", "my_labels.toml", tiles)
    assert other.returncode == 0, other.stderr
    arguments = [f"--checkpoints={workdir},{tmp_path / 'other'}", f"--output={tmp_path / 'results'}", "--batch_size=8"]
    arguments += [f"--data.dir={tiles}", f"--prepared_dir={workdir.parent / 'prepared'}"]
    assert evaluate.main([*arguments, "--ensemble"]) == 2
    assert evaluate.main(arguments) == 0
    table = (tmp_path / "results" / "table.md").read_text()
    assert table.count("| model |") == 2 and table.count("\n## ") + table.startswith("## ") == 2
    assert "number 1" in table and "number 2" in table
    content = json.loads((tmp_path / "results" / "evaluation.json").read_text())
    assert content["differences"] == [] and len(content["evaluations"]) == 2
    report = (tmp_path / "results" / "report.html").read_text()
    assert (
        len(re.findall("<h3>[^<]*; label scheme my_labels</h3>", report)) == 4
    )  # tables of scores and of precision and recall


def test_slide_outputs_have_the_names_and_colors_of_the_scheme(trained, tmp_path, capsys):
    pixels, _ = tissue_picture(96, 160)
    slide = slide_files.tiled(tmp_path / "case.tif", pixels)
    assert command(trained[0], slide, tmp_path / "out", "--window=32") == 0
    folder = tmp_path / "out" / "case"
    summary = summary_of(folder)
    assert [each["name"] for each in summary["classes"]] == NAMES
    assert {each["name"]: hex_of(each["colour"]) for each in summary["classes"]} == COLORS
    assert summary["tumor_stroma_ratio"] is None
    assert labels.scheme_from_json(summary["model"]["label_scheme"]).name == "my_labels"
    with tifffile.TiffFile(folder / "labels.ome.tif") as file:
        values, text, palette = file.asarray(), file.ome_metadata, file.pages[0].colormap
    assert all(each in text for each in (*NAMES, *(color.upper() for color in COLORS.values())))
    shown = [each for each in summary["classes"] if each["pixels"]]
    for each in shown:
        assert (palette[:, each["value"]] >> 8).tolist() == each["colour"]
        assert (values == each["value"]).sum() == each["pixels"]
    regions = json.loads((folder / "regions.geojson").read_text())["features"]
    classifications = [region["properties"]["classification"] for region in regions]
    assert {each["name"] for each in classifications} == {each["name"] for each in shown}
    assert all(hex_of(each["color"]) == COLORS[each["name"]] for each in classifications)
    picture = np.asarray(Image.open(folder / "overlay.png").convert("RGB"))
    for each in shown:  # in the outlines and the edges of the legend
        assert (np.abs(picture.astype(int) - each["colour"]).max(-1) < 3).any()
    capsys.readouterr()
    mixed = write_run(tmp_path / "mixed")
    options = (f"--slide={slide}", f"--output={tmp_path / 'both'}", "--window=32")
    assert call(f"--checkpoint={trained[0]},{mixed}", *options) == 2
    line = one_line(capsys)
    assert f"my_labels ({', '.join(NAMES)})" in line and "tumor_stroma (tumor, stroma)" in line


def test_exported_network_contains_its_scheme(trained, tmp_path):
    assert export.main([f"--checkpoint={trained[0]}", f"--output={tmp_path / 'own.jaxexport'}"]) == 0
    from bcss_jax.inference.exported_model import model_of_artifact
    from bcss_jax.training.sharding import make_mesh

    model = model_of_artifact(tmp_path / "own.jaxexport", make_mesh(), False)
    assert list(model.scheme.evaluated_names) == NAMES and hex_of(model.scheme.colors[1]) == COLORS["epithelium"]


@pytest.fixture
def tiles224(tmp_path):
    for seed, split in enumerate(("train", "val")):
        for number in range(2):
            stem = name(x=224 * number, y=224 * seed, size=224)
            save(tmp_path / "tiles" / split / f"{stem}.png", image(10 * seed + number))
            codes = mask(10 * seed + number, codes=(0, 1, 1, 1, 2))
            save(tmp_path / "tiles" / f"{split}_mask" / f"{stem}.png", codes)
    return tmp_path / "tiles"


def test_classes_are_matched_by_name_in_any_order(tiles224, tmp_path):
    (tmp_path / "swapped.toml").write_text(SWAPPED)
    scheme = labels.find_scheme(str(tmp_path / "swapped.toml"))
    assert labels.lookup_table(scheme, "kaggle3")[:3].tolist() == [0, 2, 1]
    options = [f"--data.dir={tiles224}", "--data.layout=kaggle224", f"--labels={tmp_path / 'swapped.toml'}"]
    assert data_command.main(["inspect", *options, f"--output={tmp_path / 'out'}"]) == 0
    found = json.loads((tmp_path / "out" / "inspect.json").read_text())
    for split, counts in found["classes"]["labels"]["per_part"].items():
        codes = found["classes"]["codes"]["per_part"][split]
        assert (counts["tumor"], counts["stroma"]) == (codes["tumor"], codes["stroma"]) and counts["tumor"] > 200
    assert found["settings"]["label_scheme"]["class_names"] == ["ignored", "stroma", "tumor"]


def test_masks_that_cannot_express_a_scheme_are_refused_before_reading_data(tmp_path):
    (tmp_path / "my_labels.toml").write_text(FOUR)
    arguments = ["--config.data.layout=kaggle224", "--config.data.prepared_dir=/nowhere"]
    result = train(tmp_path / "run", "my_labels.toml", "/nowhere", *arguments)
    assert result.returncode == 2 and not (tmp_path / "run").exists()
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("error:")]
    assert "config.labels=my_labels.toml with config.data.layout=kaggle224: masks with the codes of kaggle3" in line
    assert "cannot express the label scheme my_labels; use kaggle512 or roi data" in line
