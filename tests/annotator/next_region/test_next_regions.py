"""`annotate --next`: which region is shown, when it counts as annotated, and what is refused."""

import dataclasses
import json

import numpy as np
import pytest
import shapely
from helpers.annotator_small import STROMA as PINK
from helpers.annotator_small import ServedAnnotator, slide_of_discs
from helpers.disagreeing_models import TUMOR, boxes, write_models
from PIL import Image

from bcss_jax.annotator.next_region.disagreement import Disagreement
from bcss_jax.annotator.next_region.next_regions import NextRegions
from bcss_jax.errors import ConfigError, DataError
from bcss_jax.slides.slide_summary import read_summary

WIDTH, HEIGHT = 800, 600  # pixels of 0.5 um; labels have 0.125 um, so a region is 256 pixels wide
SHAPE = (4 * HEIGHT, 4 * WIDTH)
FIRST, SECOND = (2400, 100, 512, 512), (200, 1800, 480, 480)  # boxes of the labels


@pytest.fixture
def slide(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return slide_of_discs(tmp_path / "case.png", WIDTH, HEIGHT, [(400, 300, 250, PINK)])


@pytest.fixture
def results(slide, tmp_path):
    labels = {"a": boxes(SHAPE), "b": boxes(SHAPE, (*FIRST, TUMOR), (*SECOND, TUMOR))}
    return write_models(tmp_path / "out/case", slide, labels, mpp=0.125)


def served(slide, start, **settings):
    return ServedAnnotator(slide, mpp=0.5, start_from=start, next_region=True, **settings)


def drawn(x, y, width, height):
    """Returns a stroke of the brush along a box of the labels."""
    box = shapely.box(x / 4, y / 4, (x + width) / 4, (y + height) / 4)
    left, top, right, bottom = box.bounds
    rows = np.arange(top + 8, bottom, 14).tolist()
    points = [[x, row] for row in rows for x in (left + 8, right - 8)]
    return {"points": points, "radius": 8, "class_name": "Tumor", "to": None}


def holds(region, box):
    x, y, width, height = (each / 4 for each in box)
    return shapely.box(*region["box"]).contains(shapely.box(x, y, x + width, y + height))


def test_the_place_of_most_dispute_is_first_and_after_it_is_annotated_the_second(slide, results):
    with served(slide, results) as found:
        (line,) = [line for line in found.lines if line.startswith("--next")]
        assert "2 of 2 regions where the models a and b disagree are left" in line and "25% of its area" in line
        assert any("no regions are suggested" in line and "out/case/a" in line for line in found.lines)
        answer = found.post("next_region", {"after": -1})
        assert answer["left"] == 2 and answer["region"]["rank"] == 0 and holds(answer["region"], FIRST)
        assert answer["region"]["share"] == 0.25
        x0, y0, x1, y1 = answer["region"]["box"]
        assert (x1 - x0, y1 - y0) == (256, 256)
        assert holds(found.post("next_region", {"after": 0})["region"], SECOND)
        assert found.post("next_region", {"after": 1})["region"]["rank"] == 0  # from the first again
        found.edit("brush", drawn(*FIRST))
        answer = found.post("next_region", {"after": -1})
        assert answer["left"] == 1 and answer["region"]["rank"] == 1 and holds(answer["region"], SECOND)
    with served(slide, results) as again:  # another day
        assert any("1 of 2 regions" in line and "shows number 2" in line for line in again.lines)
        again.edit("brush", drawn(*SECOND))
        assert again.post("next_region", {"after": 1}) == {"region": None, "left": 0}
    with served(slide, results) as done:
        assert any("all 2 regions" in line and "are annotated" in line for line in done.lines)


def test_a_part_of_a_region_is_not_enough(slide, results):
    with served(slide, results) as found:
        x, y, width, height = FIRST
        found.edit("brush", drawn(x, y, width, height * 0.4))
        assert found.post("next_region", {"after": -1})["region"]["rank"] == 0
        elsewhere = drawn(x - 300, y, 200, 1000)
        found.edit("brush", elsewhere)
        assert found.post("next_region", {"after": -1})["region"]["rank"] == 0


def test_suggestions_and_outlines_of_no_class_do_not_count_until_they_are_accepted(slide, results):
    area = shapely.box(*(each / 4 for each in (FIRST[0], FIRST[1], FIRST[0] + FIRST[2], FIRST[1] + FIRST[3])))
    region = {"type": "Feature", "geometry": json.loads(shapely.to_geojson(area))}
    region["properties"] = {"objectType": "annotation", "classification": {"name": "Stroma"}}
    content = {"type": "FeatureCollection", "features": [region], "bcss_jax": {"um_per_pixel_of_labels": 0.125}}
    (results / "a/regions.geojson").write_text(json.dumps(content))
    with served(slide, results / "a") as found:  # one of the models: its regions, and where all models disagree
        assert any("1 of 1 regions are left to accept" in line for line in found.lines)
        assert found.post("next_region", {"after": -1})["region"]["rank"] == 0
        (suggestion,) = found.state()["changed"]
        found.edit("accept", {"targets": [{"id": suggestion["id"], "revision": found.state()["revision"]}]})
        assert found.post("next_region", {"after": -1})["region"]["rank"] == 1
    saved = json.loads((slide.parent / "case.geojson").read_bytes())
    saved["features"][0]["properties"]["classification"]["name"] = "Region"
    (slide.parent / "case.geojson").write_text(json.dumps(saved))
    with served(slide, results / "a") as found:
        assert found.post("next_region", {"after": -1})["region"]["rank"] == 0


def test_models_that_agree_have_no_region(slide, tmp_path):
    same = boxes(SHAPE, (*FIRST, TUMOR))
    results = write_models(tmp_path / "out/case", slide, {"a": same, "b": same}, mpp=0.125)
    with served(slide, results) as found:
        assert any("the models a and b agree: in no region" in line for line in found.lines)
        assert found.post("next_region", {"after": -1}) == {"region": None, "left": 0}


def test_glass_of_one_model_is_not_in_dispute(slide, tmp_path):
    labels = {"a": boxes(SHAPE, (*FIRST, 0)), "b": boxes(SHAPE, (*SECOND, TUMOR))}
    with served(slide, write_models(tmp_path / "out/case", slide, labels, mpp=0.125)) as found:
        answer = found.post("next_region", {"after": -1})
        assert answer["left"] == 1 and holds(answer["region"], SECOND)


def test_boxes_are_level_0_pixels_that_are_not_square():
    cells = np.zeros((60, 100), np.float32)
    cells[40:44, 80:84] = 1
    (region,) = NextRegions(Disagreement(cells, (10.0, 20.5), "the models a and b"), (995, 1225)).open_ones([])
    x0, y0, x1, y1 = region.box
    assert (x0, x1) == (660, 980) and (y0, y1) == (26 * 20.5, 58 * 20.5)
    cells = np.roll(cells, (16, 16), (0, 1))  # at the corner of the slide, where cells end outside
    (region,) = NextRegions(Disagreement(cells, (10.0, 20.5), "the models a and b"), (995, 1225)).open_ones([])
    assert region.box[2:] == (995, 1225)


def test_without_next_the_page_has_none(slide, results):
    with ServedAnnotator(slide, mpp=0.5, start_from=None) as found:
        assert "--next" in found.post("next_region", {"after": -1}, 400)["error"]
        assert b'"regions": null' in found.request("GET", "/")[2]
    with served(slide, results) as found:
        assert "after" in str(found.post("next_region", {}, 400))
        found.post("next_region", {"after": -1}, 403, **{"x-annotate-token": "another"})


def change_summary(folder, **fields):
    summary = dataclasses.replace(read_summary(folder / "summary.json"), **fields)
    (folder / "summary.json").write_text(json.dumps(summary.to_json()))


def test_what_cannot_work_is_refused(slide, results, tmp_path):
    with pytest.raises(ConfigError, match=r"expected --start-from=FOLDER .* found none"):
        served(slide, None).__enter__()
    (tmp_path / "drawn.geojson").write_text('{"type": "FeatureCollection", "features": []}')
    with pytest.raises(ConfigError, match=r"found --start-from=.*drawn.geojson, a file"):
        served(slide, tmp_path / "drawn.geojson").__enter__()
    with pytest.raises(DataError, match=r"expected the results of one model .* found those of 2.*add --next"):
        ServedAnnotator(slide, mpp=0.5, start_from=results).__enter__()
    one = write_models(tmp_path / "out/one", slide, {"a": boxes(SHAPE)}, mpp=0.125)
    for start in (one, one / "a"):
        with pytest.raises(DataError, match=r"found those of a, one model without --tta; segment"):
            served(slide, start).__enter__()
    change_summary(one / "a", model=read_summary(one / "a/summary.json").model | {"tta": True})
    with pytest.raises(DataError, match=r"found those of a, one model with --tta but without a map.*--overwrite"):
        served(slide, one).__enter__()
    with pytest.raises(DataError, match=r"expected the results of a slide \(summary.json\), found none"):
        served(slide, tmp_path).__enter__()


def test_flips_of_one_model(slide, tmp_path):
    alone = write_models(tmp_path / "out", slide, {"case": boxes(SHAPE)}, mpp=0.125) / "case"
    summary = read_summary(alone / "summary.json")
    shares = np.zeros((75, 100), np.uint8)
    shares[60:70, 10:20] = 51  # a fifth
    Image.fromarray(shares).save(alone / "disagreement.png")
    change_summary(alone, files=summary.files | {"disagreement": "disagreement.png"})
    (alone / "regions.geojson").write_text('{"type": "FeatureCollection", "features": []}')
    with served(slide, alone) as found:
        assert any("1 of 1 regions where the flips of case disagree" in line for line in found.lines)
        region = found.post("next_region", {"after": -1})["region"]
        assert region["share"] == pytest.approx(0.2 * 100 / 1024, rel=1e-3) and holds(region, (320, 1920, 320, 320))
    Image.fromarray(shares[1:]).save(alone / "disagreement.png")
    with pytest.raises(DataError, match=r"disagreement.png: expected 100 x 75 pixels of 8-bit gray, found 100 x 74"):
        served(slide, alone).__enter__()
    (alone / "disagreement.png").unlink()
    with pytest.raises(DataError, match=r"disagreement.png"):
        served(slide, alone).__enter__()


def test_results_of_another_slide_or_of_other_classes_are_refused(slide, results, tmp_path):
    other = slide_of_discs(tmp_path / "other.png", WIDTH, HEIGHT, [(300, 300, 200, PINK)])
    write_models(tmp_path / "out/case", other, {"c": boxes(SHAPE)}, mpp=0.125)
    with pytest.raises(DataError, match="c/summary.json: expected the results of case.png, found those of other.png"):
        served(slide, results).__enter__()
    write_models(tmp_path / "out/case", slide, {"c": boxes(SHAPE)}, mpp=0.125)
    classes = read_summary(results / "c/summary.json").classes
    change_summary(results / "c", classes=(dataclasses.replace(classes[0], name="necrosis"), classes[1]))
    with pytest.raises(DataError, match=r"expected the classes of .*/a \(tumor, stroma\), found necrosis, stroma"):
        served(slide, results).__enter__()
    assert not (tmp_path / "case.geojson").exists()


def test_a_model_that_is_not_finished_is_left_out_and_said(slide, results):
    (results / "c/.work").mkdir(parents=True)
    with served(slide, results) as found:
        assert any("case/c: not finished" in line for line in found.lines)
        assert found.post("next_region", {"after": -1})["left"] == 2
