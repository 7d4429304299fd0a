"""The results that a folder holds, and how damaged ones are shown."""

import json
import os

import pytest
from helpers.viewer_small import blobs, summary, write_result

from bcss_jax.errors import DataError
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


def test_slides_and_models_are_found_in_a_folder(out):
    found = results.find(out)
    assert list(found) == ["out/a/transunet", "out/a/unet", "out/b"]
    assert [each.title for each in found.values()] == ["a.png", "a.png", "b.png"]
    assert all(each.key == key and each.problem is None for key, each in found.items())
    assert list(results.find(out / "a")) == ["a/transunet", "a/unet"]
    assert list(results.find(out / "b")) == ["b"]
    assert results.find(out / ".hidden") == {}


def test_a_missing_folder_is_an_error_of_one_line(tmp_path):
    with pytest.raises(DataError, match="nothing: expected a folder"):
        results.find(tmp_path / "nothing")
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="file: expected a folder"):
        results.find(tmp_path / "file")


def test_a_damaged_summary_is_one_line_and_does_not_affect_other_results(out):
    path = out / "b/summary.json"
    values = json.loads(path.read_text())
    path.write_text(json.dumps(values | {"classes": []}))
    found = results.find(out)
    assert len(found) == 3 and found["out/b"].summary is None and found["out/b"].title == "out/b"
    line = found["out/b"].problem
    assert line.startswith(f"{path}: expected the summary of a segmented slide, found: ") and "\n" not in line
    assert line.endswith("; segment the slide again")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 100_000])
def test_a_summary_that_is_not_an_object_is_one_line(out, content):
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
    assert found.title == "'x\\ny.png'" and found.model == "'m\\u202e'"
