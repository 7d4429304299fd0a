"""The command that segments a slide from strokes: results as of any segmentation, and errors for bad input."""

import json
import re

import numpy as np
import pytest
import tifffile
from helpers import slide_files
from helpers.segment_command import one_line, summary_of
from helpers.slides_small import write_run
from helpers.small_encoders import encoder_file
from PIL import Image

from bcss_jax.api import scribbling
from bcss_jax.commands import scribble, segment
from bcss_jax.slides.scribbles import texture

OPTIONS = ("--readers=1", "--tissue=all", "--labels=tumor_stroma_other", "--batch_size=8", "--min_area_um2=0")
SIDE = 96  # pixels of each of the three fields of the slide


@pytest.fixture(scope="module")
def slide(tmp_path_factory):
    """A slide of three fields, of which two differ by the size of their grains alone, and its truth."""
    rng = np.random.default_rng(0)
    fine, coarse = (np.kron(rng.integers(0, 2, (SIDE // n, SIDE // n)), np.ones((n, n))) for n in (2, 12))
    fields = [np.stack([150 - 90 * each, 60 - 40 * each, 140 - 60 * each], -1) for each in (fine, coarse)]
    fields.append(np.full((SIDE, SIDE, 3), (235, 150, 190)) + rng.integers(-9, 9, (SIDE, SIDE, 1)))
    folder = tmp_path_factory.mktemp("slides")
    truth = np.repeat(np.repeat([[1, 2, 3]], SIDE, 0), SIDE, 1).astype(np.uint8)
    Image.fromarray(truth).save(folder / "truth.png")
    pixels = np.concatenate(fields, 1).clip(0, 255).astype(np.uint8)
    return slide_files.tiled(folder / "case.tif", pixels, mpp=0.5)


@pytest.fixture(autouse=True)
def small_windows(monkeypatch):
    """The real ones take long without optimized code."""
    monkeypatch.setattr(texture, "WINDOW", 64)
    monkeypatch.setattr(scribbling, "TILE", 64)


def line(name, *points):
    geometry = {"type": "LineString", "coordinates": points}
    return {"type": "Feature", "geometry": geometry, "properties": {"classification": {"name": name}}}


def three_lines():
    places = zip(("Tumor", "Stroma", "Other"), (0, SIDE, 2 * SIDE), strict=True)
    return [line(name, [x + 10, 20], [x + 80, 80]) for name, x in places]


def write(path, features):
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    return path


def call(*options):
    return scribble.main([*map(str, options), *OPTIONS])


def test_strokes_segment_the_slide(slide, tmp_path, capsys):
    strokes = write(tmp_path / "strokes.geojson", three_lines())
    options = (f"--slide={slide}", f"--strokes={strokes}", f"--output={tmp_path / 'out'}")
    truth = (f"--truth={slide.parent / 'truth.png'}", "--truth_codes=bcss22", "--probabilities")
    assert call(*options, *truth) == 0
    folder = tmp_path / "out" / "case"
    names = {path.name for path in folder.iterdir()}
    assert {"labels.ome.tif", "regions.geojson", "overlay.png", "summary.json", "probabilities.zarr"} <= names
    labels = tifffile.imread(folder / "labels.ome.tif")
    expected = np.repeat(np.repeat([[2, 3, 1]], SIDE, 0), SIDE, 1)  # the order of the scheme: other, tumor, stroma
    assert labels.shape == expected.shape and (labels == expected).mean() > 0.9
    summary = summary_of(folder)
    assert summary["model"]["name"] == "scribbles" and min(summary["scores"]["dice"].values()) > 0.9
    assert call(*options, *truth) == 0
    assert "done before" in capsys.readouterr().out
    other = write(tmp_path / "strokes.geojson", three_lines()[::-1])
    assert call(*options, *truth) == 2 and other.exists()
    assert "results of other settings (model.strokes" in one_line(capsys)
    assert call(*options, *truth, "--overwrite") == 0


def test_strokes_classify_the_tokens_of_an_encoder(slide, tmp_path):
    strokes = write(tmp_path / "strokes.geojson", three_lines())
    encoder_file(tmp_path / "encoder.safetensors", mpp=0.5)
    options = (f"--slide={slide}", f"--strokes={strokes}", f"--weights={tmp_path / 'encoder.safetensors'}")
    assert call(*options, f"--output={tmp_path / 'out'}") == 0
    labels = tifffile.imread(tmp_path / "out" / "case" / "labels.ome.tif")
    expected = np.repeat(np.repeat([[2, 3, 1]], SIDE, 0), SIDE, 1)
    assert (labels == expected).mean() > 0.6  # its weights are random
    assert summary_of(tmp_path / "out" / "case")["model"]["network"] == "tiny, linear classifier"


def test_results_of_other_commands_are_not_replaced(slide, tmp_path, capsys):
    run = write_run(tmp_path / "run")
    options = (f"--slide={slide}", f"--output={tmp_path / 'out'}", "--readers=1", "--tissue=all")
    assert segment.main([f"--checkpoint={run}", *map(str, options)]) == 0
    strokes = write(tmp_path / "strokes.geojson", three_lines())
    capsys.readouterr()
    assert call(*options, f"--strokes={strokes}") == 2
    assert "holds results of other settings" in one_line(capsys)


@pytest.mark.parametrize(
    ("features", "code", "said"),
    [
        (three_lines()[:1], 3, "expected strokes of two classes or more .*found only tumor"),
        ([line("Tumour", [1, 1], [9, 9])], 3, r"found 'Tumour'; correct it, .* did you mean 'tumor'"),
        ([*three_lines(), line("Tumor", [900, 10], [990, 10])], 3, "expected annotations on the slide"),
        ([line(None, [1, 1], [9, 9])], 3, "expected annotations with a class"),
        ([*three_lines()[1:], line("Tumor", [1, 1], [1.1, 1])], 3, "strokes of tumor cover no pixel"),
        ([line("Tumor", [1, "a"], [9, 9])], 3, "geometry 1: expected lines or points of pixels"),
        ([line("Tumor")], 3, "expected lines or points of pixels, found a line without points"),
        ([], 3, "no polygon or line"),
    ],
)
def test_strokes_that_cannot_be_used_are_named(slide, tmp_path, capsys, features, code, said):
    strokes = write(tmp_path / "strokes.geojson", features)
    options = (f"--slide={slide}", f"--strokes={strokes}", f"--output={tmp_path / 'out'}", "--stroke_um=0.1")
    assert call(*options) == code
    assert re.search(said, one_line(capsys)) and "config.data.region" not in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (("--strokes=none.geojson",), 3, "none.geojson: expected"),
        (("--labels=four_classes",), 2, "four_classes"),
        (("--encoder=uni",), 2, "--encoder is for an encoder; give its weights"),
        (("--mpp=40",), 2, "--mpp=40: expected um per pixel"),
        (("--stroke_um=0",), 2, "--stroke_um=0: must be above 0"),
    ],
)
def test_wrong_options_are_named(slide, tmp_path, capsys, options, code, said):
    strokes = write(tmp_path / "strokes.geojson", three_lines())
    given = (f"--slide={slide}", f"--strokes={strokes}", f"--output={tmp_path / 'out'}", *OPTIONS)
    assert scribble.main([*given, *options]) == code
    assert said in one_line(capsys)


def test_a_broken_file_and_a_slide_without_scale(slide, tmp_path, capsys):
    strokes = tmp_path / "strokes.geojson"
    strokes.write_text('{"type": "FeatureCollection", "features": [')
    assert call(f"--slide={slide}", f"--strokes={strokes}", f"--output={tmp_path / 'out'}") == 3
    assert "strokes.geojson: expected GeoJSON, found: no JSON" in one_line(capsys)
    write(strokes, three_lines())
    plain = slide_files.tiled(tmp_path / "plain.tif", tifffile.imread(slide), mpp=None)
    assert call(f"--slide={plain}", f"--strokes={strokes}", f"--output={tmp_path / 'out'}") == 3
    assert "--mpp" in one_line(capsys)
