"""Which results a folder holds, and what becomes of damaged ones."""

import json
import os

import pytest
from helpers.viewer_small import blobs, summary, write_result

from bcss_jax.errors import DataError
from bcss_jax.slides.batch.slide_folder import fingerprints
from bcss_jax.viewer import results


@pytest.fixture
def out(tmp_path):
    """Two slides, one of them segmented by two models."""
    labels = blobs(60, 80)
    write_result(tmp_path / "out/b", tmp_path / "b.png", 80, 60, labels)
    for model in ("unet", "transunet"):
        write_result(tmp_path / "out/a" / model, tmp_path / "a.png", 80, 60, labels, model=model)
    (tmp_path / "out/.hidden").mkdir()
    (tmp_path / "out/summary.csv").write_text("slide\n")
    return tmp_path / "out"


def test_slides_and_models_of_a_folder(out):
    found = results.find(out)
    assert list(found) == ["out/a/transunet", "out/a/unet", "out/b"]
    assert [each.title for each in found.values()] == ["a.png", "a.png", "b.png"]
    assert all(each.key == key and each.problem is None for key, each in found.items())
    assert list(results.find(out / "a")) == ["a/transunet", "a/unet"]
    assert list(results.find(out / "b")) == ["b"]
    assert results.find(out / ".hidden") == {}


def test_what_is_read(out):
    found = results.read(out / "b/summary.json")
    assert found.slide_path == out.parent / "b.png" and (found.width, found.height) == (80, 60)
    assert found.grid.scale == (1, 1) and found.grid.mpp == 0.25 and found.model == "unet"
    assert [(each.value, each.name) for each in found.classes] == [(1, "tumor"), (2, "stroma")]
    assert found.tumor_stroma_ratio == 0.5 and found.labels == "labels.ome.tif" and found.overlay is None
    assert (
        found.fingerprint == fingerprints(out.parent / "b.png")["slide"] and found.dice is found.dice_of_region is None
    )
    dice = {"tumor": 0.875, "stroma": None, "macro": 0.875}
    values = json.loads((out / "b/summary.json").read_text())
    (out / "b/summary.json").write_text(json.dumps(values | {"scores": {"dice": dice}}))
    assert results.read(out / "b/summary.json").dice == dice


def test_no_folder_is_one_line(tmp_path):
    with pytest.raises(DataError, match="nothing: expected a folder"):
        results.find(tmp_path / "nothing")
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="file: expected a folder"):
        results.find(tmp_path / "file")


DAMAGES = [
    lambda values: values.pop("grid"),
    lambda values: values.update(format=2),
    lambda values: values.update(classes=[]),
    lambda values: values.update(slide=None),
    lambda values: values.update(tissue_area_mm2=float("nan")),
    lambda values: values.update(tissue_area_mm2="<script>"),
    lambda values: values.update(tumor_stroma_ratio=-1),
    lambda values: values["grid"].update(scale=[0, 1]),
    lambda values: values["grid"].update(scale=[1]),
    lambda values: values["grid"].update(width=True),
    lambda values: values["grid"].update(width=10**9),
    lambda values: values["slide"].update(height=-1),
    lambda values: values["slide"].update(path="a\0b"),
    lambda values: values["slide"].update(bounds=[1, 2, 3]),
    lambda values: values["classes"][0].update(color=[1, 2]),
    lambda values: values["classes"][0].update(color=[1, 2, 256]),
    lambda values: values["classes"][0].update(value=2),
    lambda values: values["classes"][0].update(value=255),
    lambda values: values["files"].update(labels=None),
    lambda values: values.pop("identity"),
    lambda values: values["identity"]["files"]["slide"].update(bytes=-1),
    lambda values: values.update(scores={}),
    lambda values: values.update(scores={"dice": {"tumor": "<script>"}}),
    lambda values: values.update(scores_of_region={"dice": [0.5]}),
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_summary_is_a_line_and_leaves_the_others_alone(out, damage):
    path = out / "b/summary.json"
    values = json.loads(path.read_text())
    damage(values)
    path.write_text(json.dumps(values))
    found = results.find(out)
    assert len(found) == 3 and found["out/b"].summary is None and found["out/b"].title == "out/b"
    line = found["out/b"].problem
    assert line.startswith(f"{path}: expected the summary of a segmented slide, found: ") and "\n" not in line
    assert line.endswith("; segment the slide again")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 100_000])
def test_a_summary_that_is_no_object_is_a_line(out, content):
    (out / "b/summary.json").write_bytes(content)
    assert "\n" not in results.find(out)["out/b"].problem


def test_links_out_of_the_folder_are_not_followed(out, tmp_path):
    write_result(tmp_path / "elsewhere/c", tmp_path / "c.png", 80, 60, blobs(60, 80))
    os.symlink(tmp_path / "elsewhere/c", out / "c")
    (out / "d").mkdir()
    os.symlink(tmp_path / "elsewhere/c/summary.json", out / "d/summary.json")
    os.symlink(out / "circle", out / "circle")
    os.symlink(out / "b", out / "again")
    found = results.find(out)
    assert "out/c" not in found and "out/d" not in found and "out/again" in found


def test_the_folder_itself_may_be_a_link(out, tmp_path):
    os.symlink(out, tmp_path / "link")
    assert list(results.find(tmp_path / "link")) == list(results.find(out))


def test_names_with_line_breaks_are_escaped(out, tmp_path):
    values = summary(tmp_path / "x\ny.png", 80, 60, (60, 80), model="m\u202e")
    (out / "b/summary.json").write_text(json.dumps(values))
    found = results.find(out)["out/b"]
    assert found.title == "'x\\ny.png'" and found.summary.model == "'m\\u202e'"
