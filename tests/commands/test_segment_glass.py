"""The command takes glass inside tissue out of all results of models without a class for it, and mixes no rules."""

import json
import shutil

import numpy as np
import pytest
import tifffile
import zarr
from helpers import slide_files
from helpers.segment_command import call, summary_of
from helpers.slides_small import tissue_picture, write_run
from PIL import Image

OPTIONS = ("--tissue=all", "--min_area_um2=0", "--readers=1")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("runs") / "one", seed=1)


@pytest.fixture(scope="module")
def slide(tmp_path_factory):
    """Tissue with a lumen of 25 um."""
    pixels, _ = tissue_picture(150, 200)
    pixels[(pixels == 250).all(2)] = (200, 90, 160)
    rows, columns = np.mgrid[:150, :200]
    pixels[(rows - 70) ** 2 + (columns - 90) ** 2 < 50**2] = 240
    return slide_files.tiled(tmp_path_factory.mktemp("slides") / "case.tif", pixels)


def segmented(run, slide, output, *options):
    assert call(f"--checkpoint={run}", f"--slide={slide}", f"--output={output}", *OPTIONS, *options) == 0
    return output / "case"


@pytest.fixture(scope="module")
def both(run, slide, tmp_path_factory):
    """The folders of the results with the default and with --glass=keep."""
    folder = tmp_path_factory.mktemp("both")
    truth = folder / "truth.png"
    Image.fromarray(np.ones((150, 200), np.uint8)).save(truth)
    return [
        segmented(run, slide, folder / name, "--probabilities", f"--truth={truth}", *options)
        for name, options in (("default", ()), ("keep", ("--glass=keep",)))
    ]


def test_glass_is_taken_out_of_every_result(both):
    taken, kept = (tifffile.imread(folder / "labels.ome.tif") for folder in both)
    rows, columns = np.mgrid[:150, :200]
    distance = np.hypot(rows - 70, columns - 90)
    assert kept.all() and not taken[distance < 46].any() and taken[distance > 54].all()
    np.testing.assert_array_equal(taken[taken > 0], kept[taken > 0])
    summary, of_kept = (summary_of(folder) for folder in both)
    glass, pixel = (taken == 0).sum(), 0.25**2 / 1e6
    assert summary["glass_area_mm2"] == pytest.approx(glass * pixel) and "glass_area_mm2" not in of_kept
    assert summary["tissue_area_mm2"] == pytest.approx((taken > 0).sum() * pixel)
    assert summary["tumor_stroma_ratio"] == pytest.approx((taken == 1).sum() / (taken == 2).sum())
    probabilities = zarr.open(both[0] / "probabilities.zarr", mode="r")["0"][:]
    assert not probabilities[:, taken == 0].any() and probabilities[:, taken > 0].any(0).all()
    assert [row[-1] for row in summary["scores"]["confusion"]["pixels"]] == [glass, 0]
    assert [row[-1] for row in of_kept["scores"]["confusion"]["pixels"]] == [0, 0]
    outlines = [json.loads((folder / "regions.geojson").read_text())["features"] for folder in both]
    assert outlines[0] != outlines[1]
    assert summary["identity"]["settings"]["glass"] == "background" and "glass" not in of_kept["identity"]["settings"]


def test_results_that_keep_glass_stay_unless_another_rule_is_named(run, slide, both, tmp_path, capsys, caplog):
    output = tmp_path / "out"
    shutil.copytree(both[1], output / "case")
    before = (output / "case" / "labels.ome.tif").read_bytes()
    segmented(run, slide, output, "--probabilities")
    assert "done before" in capsys.readouterr().out
    assert "holds results with glass inside tissue labeled as tissue" in caplog.text
    assert (output / "case" / "labels.ome.tif").read_bytes() == before
    options = (f"--checkpoint={run}", f"--slide={slide}", f"--output={output}", *OPTIONS, "--probabilities")
    assert call(*options, "--glass=background") == 2
    assert "holds results of other settings (settings.glass" in capsys.readouterr().err
    segmented(run, slide, output, "--probabilities", "--overwrite")
    assert summary_of(output / "case")["glass_area_mm2"] > 0
    assert call(*options, "--glass=keep") == 2


def test_a_model_with_a_class_for_other_tissue_keeps_glass(slide, tmp_path):
    run = write_run(tmp_path / "run", scheme="tumor_stroma_other")
    assert "glass_area_mm2" not in summary_of(segmented(run, slide, tmp_path / "out"))
    assert summary_of(segmented(run, slide, tmp_path / "taken", "--glass=background"))["glass_area_mm2"] > 0
