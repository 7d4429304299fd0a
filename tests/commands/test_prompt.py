"""The command that outlines what prompts on a slide mean: results at their place, and one line for bad input."""

import json
import re

import numpy as np
import pytest
import shapely
from helpers import slide_files
from helpers.prompted_slide import (
    DISCS,
    ColorPredictor,
    disc,
    point,
    points,
    polygon,
    prompted_slide,
    rectangle,
    sam_file,
    write_prompts,
)
from helpers.segment_command import one_line, summary_of
from helpers.slides_small import tissue_picture
from PIL import Image

from bcss_jax.api import prompting
from bcss_jax.commands import prompt
from bcss_jax.slides.reading.reader_pool import ReaderPool

OPTIONS = ("--readers=1", "--labels=tumor_stroma")


@pytest.fixture(scope="module")
def slide(tmp_path_factory):
    return prompted_slide(tmp_path_factory.mktemp("slides") / "case.tif")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return sam_file(tmp_path_factory.mktemp("models") / "tiny.safetensors")


@pytest.fixture
def by_color(monkeypatch):
    """Answers by color; returns the predictors that were made."""
    made = []

    def make(model):
        made.append(ColorPredictor(model))
        return made[-1]

    monkeypatch.setattr(prompting, "Predictor", make)
    return made


def call(slide, model, prompts, output, *options):
    given = (f"--slide={slide}", f"--model={model}", f"--prompts={prompts}", f"--output={output}")
    return prompt.main([*given, *OPTIONS, *map(str, options)])


def regions(folder):
    """Returns the outlines by class, each valid."""
    found = {}
    for each in json.loads((folder / "regions.geojson").read_text())["features"]:
        area = shapely.geometry.shape(each["geometry"])
        assert area.is_valid and each["properties"]["objectType"] == "annotation"
        found.setdefault(each["properties"]["classification"]["name"], []).append(area)
    return found


def overlap(one, other):
    return one.intersection(other).area / one.union(other).area


def test_points_boxes_and_polygons_become_outlines_of_their_classes(slide, model, by_color, tmp_path, capsys):
    rough = shapely.Point(250, 430).buffer(80)
    prompts = write_prompts(
        tmp_path / "prompts.geojson",
        points("Tumor", (140, 150), (160, 150)),
        rectangle("Stroma", 320, 80, 520, 280),
        polygon("Tumor", rough),
        point("Stroma", 640, 480),
    )
    assert call(slide, model, prompts, tmp_path / "out") == 0
    folder = tmp_path / "out" / "case"
    found = regions(folder)
    tumor = sorted(found["Tumor"], key=lambda area: area.bounds)
    stroma = sorted(found["Stroma"], key=lambda area: area.bounds)
    for area, name in zip((*tumor, *stroma), ("left", "low", "right", "tiny"), strict=True):
        assert overlap(area, disc(name)) > (0.85 if name == "tiny" else 0.96), name  # 9 view pixels wide
    assert Image.open(folder / "overlay.png").size[0] > 500
    summary = summary_of(folder)
    assert [each["class"] for each in summary["objects"]] == ["stroma", "tumor", "tumor", "stroma"]
    assert [(each["box"], each["mask"], each["points_inside"]) for each in summary["objects"]] == [
        (True, False, 0),
        (True, True, 0),
        (False, False, 2),
        (False, False, 1),
    ]
    assert summary["regions"] == 4 and summary["model"]["image_size"] == 128
    assert "4 regions (tumor 2, stroma 2)" in capsys.readouterr().out


@pytest.mark.parametrize("origin", [(0, 0), (37, 21)])
def test_coordinates_count_from_the_bounds_of_the_slide(slide, model, by_color, tmp_path, monkeypatch, origin):
    class Bounded(ReaderPool):
        def __init__(self, *given):
            super().__init__(*given)
            self.info = self.info._replace(bounds=(*origin, 700, 500))

    monkeypatch.setattr(prompting, "ReaderPool", Bounded)
    prompts = write_prompts(tmp_path / "p.geojson", point("Tumor", 150 - origin[0], 150 - origin[1]))
    assert call(slide, model, prompts, tmp_path / "out") == 0
    ((found,),) = regions(tmp_path / "out" / "case").values()
    assert overlap(shapely.affinity.translate(found, *origin), disc("left")) > 0.96
    assert json.loads((tmp_path / "out" / "case" / "regions.geojson").read_text())["bcss_jax"]["origin"] == [*origin]


@pytest.mark.parametrize("resolution", ["0.25", "0.37", "1.5"])
def test_the_resolution_can_be_given(slide, model, by_color, tmp_path, caplog, resolution):
    prompts = write_prompts(tmp_path / "p.geojson", rectangle("Tumor", 80, 80, 220, 220))
    assert call(slide, model, prompts, tmp_path / "out", f"--target_mpp={resolution}") == 0
    ((found,),) = regions(tmp_path / "out" / "case").values()
    assert overlap(found, disc("left")) > (0.97 if float(resolution) < 1 else 0.9)
    seen = summary_of(tmp_path / "out" / "case")["objects"][0]["um_per_pixel"]
    if resolution == "0.25":  # the network sees 128 pixels of it, and the box has 140
        assert seen > 0.25 and "too large for --target_mpp=0.25" in caplog.text
    else:
        assert seen == float(resolution)


def test_points_of_a_class_belong_to_its_box_and_lie_outside_of_other_objects(slide, model, by_color, tmp_path):
    prompts = write_prompts(
        tmp_path / "p.geojson",
        rectangle("Tumor", 80, 80, 220, 220),
        point("Tumor", 150, 140),
        point("Stroma", 90, 90),
        points("Ignore*", (210, 210), (700, 20)),
    )
    assert call(slide, model, prompts, tmp_path / "out") == 0
    with_box = next(each for each in by_color[0].calls if each["box"] is not None)
    assert with_box["labels"].tolist() == [[1, 0, 0]] and with_box["multimask"] is False
    summary = summary_of(tmp_path / "out" / "case")
    assert [each["class"] for each in summary["objects"]] == ["tumor", "stroma"]
    assert [each["points_outside"] for each in summary["objects"]] == [2, 2]


def test_objects_do_not_overlap(slide, model, by_color, tmp_path):
    """The same disc is tumor and stroma: at equal logits the first one counts; an ignored area is in neither."""
    prompts = write_prompts(
        tmp_path / "p.geojson",
        rectangle("Stroma", 80, 80, 220, 220),
        rectangle("Tumor", 85, 85, 215, 215),
        rectangle("Tumor", 84, 84, 216, 216),
        polygon("Tumor", shapely.Point(250, 430).buffer(80)),
        rectangle("Ignore*", 240, 420, 260, 440),
    )
    assert call(slide, model, prompts, tmp_path / "out") == 0
    found = regions(tmp_path / "out" / "case")
    everything = [area for areas in found.values() for area in areas]
    pairs = [(a, b) for n, a in enumerate(everything) for b in everything[:n]]
    assert all(one.intersection(other).area < 0.01 for one, other in pairs)
    (stroma,), (low,) = found["Stroma"], found["Tumor"]
    assert overlap(stroma, disc("left")) > 0.96
    assert len(low.interiors) == 1 and low.intersection(shapely.box(240, 420, 260, 440)).area < 0.01


def test_near_objects_share_a_view_and_each_view_is_encoded_once(slide, model, by_color, tmp_path):
    near = [rectangle("Tumor", 100 + 30 * n, 100, 120 + 30 * n, 120) for n in range(5)]
    far = rectangle("Tumor", 640, 480, 660, 500)
    prompts = write_prompts(tmp_path / "p.geojson", *near, far)
    assert call(slide, model, prompts, tmp_path / "out", "--target_mpp=0.5") == 0
    assert len(by_color[0].images) == 2 and summary_of(tmp_path / "out" / "case")["views"] == 2


def test_answers_are_kept_and_results_of_others_are_not_replaced(slide, model, by_color, tmp_path, capsys):
    prompts = write_prompts(tmp_path / "p.geojson", point("Tumor", 150, 150))
    assert call(slide, model, prompts, tmp_path / "out") == 0
    folder = tmp_path / "out" / "case"
    before = (folder / "regions.geojson").read_bytes()
    assert call(slide, model, prompts, tmp_path / "out") == 0 and len(by_color) == 1
    assert "done before" in capsys.readouterr().out
    write_prompts(tmp_path / "p.geojson", point("Tumor", 150, 150), point("Stroma", 420, 180))
    assert call(slide, model, prompts, tmp_path / "out") == 2
    assert "results of other settings (files.prompts" in one_line(capsys)
    assert (folder / "regions.geojson").read_bytes() == before
    assert call(slide, model, prompts, tmp_path / "out", "--overwrite") == 0
    assert len(regions(folder)) == 2
    (tmp_path / "own" / "case").mkdir(parents=True)
    (tmp_path / "own" / "case" / "regions.geojson").write_text("mine")
    assert call(slide, model, prompts, tmp_path / "own") == 2
    assert "expected a file that this program wrote" in one_line(capsys)
    assert (tmp_path / "own" / "case" / "regions.geojson").read_text() == "mine"


def test_a_stopped_command_resumes_with_the_same_result(slide, model, by_color, tmp_path, monkeypatch, capsys):
    places = [(150, 150), (420, 180), (250, 430), (640, 480)]
    prompts = write_prompts(tmp_path / "p.geojson", *(point("Tumor", x, y) for x, y in places))
    options = (slide, model, prompts)
    assert call(*options, tmp_path / "whole", "--target_mpp=0.4") == 0

    def failing(self, image):
        if len(self.images) == 2:
            raise KeyboardInterrupt
        self.images.append(image)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(ColorPredictor, "set_image", failing)
        call(*options, tmp_path / "out", "--target_mpp=0.4")
    folder = tmp_path / "out" / "case"
    assert len(list((folder / ".work").glob("answers-*.npz"))) == 2 and not (folder / "summary.json").exists()
    assert call(*options, tmp_path / "out", "--target_mpp=0.4") == 0
    assert len(by_color[-1].images) == len(by_color[0].images) - 2 and summary_of(folder)["resumed"]
    whole = tmp_path / "whole" / "case" / "regions.geojson"
    assert (folder / "regions.geojson").read_bytes() == whole.read_bytes()
    assert not (folder / ".work").exists()


def test_the_network_itself_answers(slide, model, tmp_path, caplog):
    """Its weights are random, so only the form of the results is known."""
    prompts = write_prompts(
        tmp_path / "p.geojson",
        *(rectangle("Tumor", 100 + 40 * n, 100, 130 + 40 * n, 130) for n in range(3)),
        polygon("Stroma", disc("right")),
        points("Stroma", (240, 400), (260, 440)),
        point("Tumor", 640, 480),
    )
    assert call(slide, model, prompts, tmp_path / "out") == 0
    regions(tmp_path / "out" / "case")
    assert len(summary_of(tmp_path / "out" / "case")["objects"]) == 6


def test_prompts_in_micrometers_are_refused(model, by_color, tmp_path, capsys):
    """On a slide with tissue in one corner, which is where they lie as micrometers."""
    pixels, _ = tissue_picture(800, 1200)
    pixels[:, :700], pixels[:420] = 240, 240
    wide = slide_files.tiled(tmp_path / "wide.tif", pixels, mpp=0.25)
    boxes = [rectangle("Tumor", x, y, x + 40, y + 40) for x, y in ((800, 500), (1100, 700))]
    assert call(wide, model, write_prompts(tmp_path / "pixels.geojson", *boxes), tmp_path / "out") == 0
    scaled = [rectangle("Tumor", x / 4, y / 4, x / 4 + 10, y / 4 + 10) for x, y in ((800, 500), (1100, 700))]
    assert call(wide, model, write_prompts(tmp_path / "um.geojson", *scaled), tmp_path / "um") == 3
    assert "expected annotations in pixels of level 0" in one_line(capsys)


BOX = rectangle("Tumor", 80, 80, 220, 220)


@pytest.mark.parametrize(
    ("features", "said"),
    [
        ([], "no polygon or line"),
        ([point(None, 5, 5)], "expected prompts of a class to segment .*found only annotations without a class"),
        ([point("Ignore*", 5, 5)], r"expected prompts of a class .*found only Ignore\*"),
        ([point("Tumour", 5, 5)], r"geometry 1 \(Tumour\): expected a class .*did you mean 'tumor'"),
        ([BOX, point("Tumor", 5000, 5)], "expected annotations on the slide .800x600 pixels., found 1 of 2 outside"),
        ([BOX, rectangle("Stroma", -50, -50, -10, -10)], "expected annotations on the slide"),
        ([point("Tumor", float("nan"), 5)], "expected lines or points of pixels, found the coordinate nan"),
        ([point("Tumor", "a", 5)], "expected lines or points of pixels, found the coordinate 'a'"),
        ([rectangle("Tumor", 5, 5, 5, 9)], "expected (an area|outlines)"),
        ([points("Tumor")], "expected lines or points of pixels"),
    ],
)
def test_prompts_that_cannot_be_used_are_named(slide, model, tmp_path, capsys, features, said):
    prompts = write_prompts(tmp_path / "p.geojson", *features)
    assert call(slide, model, prompts, tmp_path / "out") == 3
    line = one_line(capsys)
    assert re.search(said, line) and "p.geojson" in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (("--prompts=none.geojson",), 3, "none.geojson: expected"),
        (("--model=none.pth",), 3, "none.pth: expected"),
        (("--labels=four",), 2, "four"),
        (("--mpp=40",), 2, "--mpp=40: expected um per pixel"),
        (("--target_mpp=0",), 2, "--target_mpp=0: must be"),
        (("--image_size=100",), 2, "image_size must be a multiple of 16"),
        (("--min_area_um2=-1",), 2, "--min_area_um2=-1"),
    ],
)
def test_wrong_options_are_named(slide, model, tmp_path, capsys, options, code, said):
    prompts = write_prompts(tmp_path / "p.geojson", BOX)
    assert call(slide, model, prompts, tmp_path / "out", *options) == code
    assert said in one_line(capsys)
    assert not (tmp_path / "out").exists()


def test_other_weights_a_slide_without_scale_and_inputs_as_outputs(slide, model, tmp_path, capsys):
    from safetensors.numpy import save_file

    prompts = write_prompts(tmp_path / "p.geojson", BOX)
    save_file({"encoder.weight": np.zeros((3, 3), np.float32)}, tmp_path / "unet.safetensors")
    assert call(slide, tmp_path / "unet.safetensors", prompts, tmp_path / "out") == 3
    assert "unet.safetensors: expected" in one_line(capsys)
    plain = slide_files.tiled(tmp_path / "plain.tif", np.asarray(Image.open(slide)), mpp=None)
    assert call(plain, model, prompts, tmp_path / "out") == 3
    assert "--mpp" in one_line(capsys)
    inner = tmp_path / "case"
    inner.mkdir()
    own = write_prompts(inner / "regions.geojson", BOX)
    assert call(slide, model, own, tmp_path) == 2
    assert "would replace" in one_line(capsys)
    assert len(json.loads(own.read_text())["features"]) == 1
    assert len(DISCS) == 4


def test_a_disk_that_fills_loses_no_answers(slide, model, by_color, tmp_path, monkeypatch, capsys):
    from bcss_jax.common import files

    places = [(150, 150), (420, 180), (640, 480)]
    prompts = write_prompts(tmp_path / "p.geojson", *(point("Tumor", x, y) for x, y in places))
    written = []

    def full(path):
        written.append(path)
        if "answers-" in path.name and sum("answers-" in each.name for each in written) > 1:
            raise OSError(28, "No space left on device", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(files, "sync", full)
        assert call(slide, model, prompts, tmp_path / "out", "--target_mpp=0.4") == 5
    assert "No space left on device" in one_line(capsys)
    folder = tmp_path / "out" / "case"
    assert len(list((folder / ".work").glob("answers-*.npz"))) == 1 and not (folder / "regions.geojson").exists()
    assert call(slide, model, prompts, tmp_path / "out", "--target_mpp=0.4") == 0
    assert summary_of(folder)["resumed"] and len(regions(folder)["Tumor"]) == 3


def test_an_output_that_cannot_be_written(slide, model, by_color, tmp_path, capsys):
    prompts = write_prompts(tmp_path / "p.geojson", BOX)
    (tmp_path / "file").write_text("mine")
    assert call(slide, model, prompts, tmp_path / "file") in (2, 5)
    assert "file" in one_line(capsys) and (tmp_path / "file").read_text() == "mine"


def test_from_python(slide, model, by_color, tmp_path):
    import bcss_jax

    prompts = write_prompts(tmp_path / "p.geojson", BOX)
    folder = bcss_jax.prompt_slide(model, slide, prompts, output=tmp_path / "out", labels="tumor_stroma")
    assert folder == tmp_path / "out" / "case" and len(regions(folder)["Tumor"]) == 1


def test_outlines_that_contradict_their_points_are_named(slide, model, by_color, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(ColorPredictor, "_one", lambda self, points, labels, box: _upper_left(self.images[-1]))
    prompts = write_prompts(tmp_path / "p.geojson", point("Tumor", 420, 180))
    assert call(slide, model, prompts, tmp_path / "out") == 0
    assert "geometry 1 (Tumor): the outline has none of the points" in caplog.text
    assert "cut off at the edge of what the network saw" in caplog.text


def _upper_left(image):
    logits = np.full(image.shape[:2], -1, np.float32)
    logits[:20, :20] = 1
    return logits
