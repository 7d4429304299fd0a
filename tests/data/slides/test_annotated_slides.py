"""Which slides a folder or a list has, their patients and their splits."""

import os

import pytest
from helpers.annotated_slides import listed_slides, write_list, write_slide

from bcss_jax.data.image_folder import LeftOut
from bcss_jax.data.slides.annotated_slides import find_slides
from bcss_jax.errors import DataError


def touch(folder, *names):
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / name).write_bytes(b"x")
    return folder


@pytest.mark.parametrize(
    ("names", "slide", "annotations"),
    [
        (("a.svs", "a.geojson"), "a.svs", "a.geojson"),
        (("a.svs", "a.svs.geojson"), "a.svs", "a.svs.geojson"),  # the name of the image in a QuPath project
        (("a.ome.tif", "a.geojson"), "a.ome.tif", "a.geojson"),
        (("a.tif", "a.xml"), "a.tif", "a.xml"),
        (("a.SVS", "a.png"), "a.SVS", "a.png"),
        (("a.tif", "a.png"), "a.tif", "a.png"),
        (("a.jpg", "a.png"), "a.jpg", "a.png"),
        (("a.tif", "a_mask.tif"), "a.tif", "a_mask.tif"),
        (("A.svs", "a.json"), "A.svs", "a.json"),
    ],
)
def test_files_of_one_stem_are_paired(tmp_path, names, slide, annotations):
    touch(tmp_path / "d", *names, ".a.svs", "notes.txt")
    touch(tmp_path / "d", "TCGA-A2-A0D2-DX1.svs", "TCGA-A2-A0D2-DX1.json")
    left_out = LeftOut()
    found = find_slides(tmp_path / "d", None, left_out=left_out)
    pairs = {(each.slide.name, each.annotations.name) for each in found.slides}
    assert pairs == {(slide, annotations), ("TCGA-A2-A0D2-DX1.svs", "TCGA-A2-A0D2-DX1.json")}
    assert left_out.counts() == {"hidden": 1, "others": 1}


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("a.svs", "a.geojson", "b.svs"), "b.svs: expected annotations of the same stem"),
        (("a.svs", "a.geojson", "b.xml"), "b.xml: expected a slide of the same stem, found none"),
        (("a.svs", "a.geojson", "a.xml"), "a.xml: expected one file of annotations of that stem"),
        (("a.svs", "a.ndpi", "a.xml"), "expected one slide of that stem"),
        (("notes.txt",), "expected slides with annotations, found none"),
        (("a.svs", "a.geojson"), "expected slides of two or more patients"),
    ],
)
def test_files_without_a_partner_are_refused(tmp_path, names, message):
    with pytest.raises(DataError, match=message):
        find_slides(touch(tmp_path / "d", *names), None)


def test_files_without_a_partner_can_be_left_out(tmp_path):
    folder = touch(tmp_path / "d", *(f"p{i}.{end}" for i in range(2) for end in ("svs", "xml")), "c.svs", "d.geojson")
    found = find_slides(folder, None, allow_missing=True)
    assert [slide.name for slide in found.slides] == ["p0", "p1"] and len(found.missing) == 2


def test_patients_come_from_the_list_or_the_name_and_are_not_divided(tmp_path, caplog):
    names = [f"TCGA-A2-A0D{i}-DX{j}.svs" for i in range(6) for j in (1, 2)]
    rows = [[name, name + ".json", "", "own" if name.startswith("TCGA-A2-A0D0") else ""] for name in names]
    touch(tmp_path, *(file for row in rows for file in row[:2]))
    found = find_slides(None, write_list(tmp_path / "l.csv", rows))
    assert found.split_by == "patient" and not caplog.records
    assert {slide.patient for slide in found.slides} == {"own", *(f"TCGA-A2-A0D{i}" for i in range(1, 6))}
    splits = {}
    for slide in found.slides:
        assert splits.setdefault(slide.patient, slide.split) == slide.split
    assert 1 <= list(splits.values()).count("val") <= 2


def test_slides_of_unknown_patients_are_split_by_slide_with_a_warning(tmp_path, caplog):
    found = find_slides(touch(tmp_path / "d", *(f"{c}.{end}" for c in "abc" for end in ("svs", "xml"))), None)
    assert found.split_by == "slide" and [slide.patient for slide in found.slides] == ["a", "b", "c"]
    assert "the patient of 3 of 3 slides is not known (first a.svs)" in caplog.text
    caplog.clear()
    find_slides(None, listed_slides(tmp_path / "l", ("", "b"), splits=("train", "val")))
    assert "the patient of 1 of 2 slides is not known (first slide0.png)" in caplog.text
    assert "several of them in different splits" in caplog.text


def test_the_list_says_splits_resolution_and_weights(tmp_path):
    path = listed_slides(tmp_path, ("a", "b", "c"))
    rows = [[f"slide{i}.png", f"slide{i}.geojson", "0,5", "P", s, w] for i, s, w in ((0, "train", 2), (1, "train", ""))]
    rows.append(["slide2.png", "slide2.geojson", "", "Q", "VAL", 0.5])
    write_list(path, rows, ("slide", "annotations", "mpp", "patient", "split", "weight"))
    found = find_slides(None, path)
    assert found.split_by == "list"
    assert [(s.patient, s.split, s.mpp, s.weight) for s in found.slides] == [
        ("P", "train", 0.5, 2), ("P", "train", 0.5, 1), ("Q", "val", None, 0.5)
    ]  # fmt: skip


COLUMNS = ("slide", "annotations", "mpp", "patient", "split", "weight")


@pytest.mark.parametrize(
    ("columns", "rows", "message"),
    [
        (("slide", "mpp"), [["s0.png", 1]], "line 1: expected a header with the columns slide and annotations"),
        (("annotations",), [["s0.geojson"]], "line 1: expected a header with the columns slide and annotations"),
        (("slide", "annotations", "pateint"), [["s0.png", "s0.geojson", 1]], "did you mean patient"),
        (COLUMNS, [["s0.png", "s0.geojson", 0, "a", "train", 1]], "line 2, mpp: expected um per pixel such as 0.25"),
        (COLUMNS, [["s0.png", "s0.geojson", "x", "a", "train", 1]], "line 2, mpp: expected um per pixel, found 'x'"),
        (COLUMNS, [["s0.png", "s0.geojson", 1, "a", "valid", 1]], "line 2, split: expected train, val, test"),
        (COLUMNS, [["s0.png", "s0.geojson", 1, "a", "", 1]], "line 2, split: expected train, val, test, found ''"),
        (COLUMNS, [["s0.png", "s0.geojson", 1, "a", "train", 0]], "weight: expected a number above 0"),
        (COLUMNS, [["s0.png", "s0.geojson", 1, "a", "train", "nan"]], "weight: expected a number above 0"),
        (COLUMNS, [["s0.png", "", 1, "a", "train", 1]], "line 2: expected annotations, found an empty field"),
        (COLUMNS, [["no.svs", "s0.geojson", 1, "a", "train", 1]], "expected the slide .*no.svs, found no such file"),
        (COLUMNS, [["s0.png", "no.xml", 1, "a", "train", 1]], "expected the annotations .*no.xml, found no such file"),
        (
            COLUMNS,
            [["s0.png", "s0.geojson", 1, "P", "train", 1], ["s1.png", "s1.geojson", 1, "p", "val", 1]],
            "expected every patient in one split, found P? ?.*in train .s0.png. and in val .s1.png.",
        ),
        (
            COLUMNS,
            [["s0.png", "s0.geojson", 1, "a", "train", 1], ["./s0.png", "s1.geojson", 1, "a", "train", 1]],
            "line 3: expected each slide once, found s0.png in line 2 too",
        ),
        (
            COLUMNS,
            [["s0.png", "s0.geojson", 1, "a", "train", 1], ["s1.png", "./s0.geojson", 1, "b", "val", 1]],
            "line 3: expected each file of annotations once, found s0.geojson in line 2 too; give each slide its own",
        ),
        (COLUMNS, [["s0.png", "s0.geojson", 1, "a", "train", 1]], "expected slides for val, found none"),
        (COLUMNS[:4], [["s0.png", "s0.geojson", 1, "a"]], "expected slides of two or more patients"),
    ],
)
def test_a_wrong_list_is_one_line(tmp_path, columns, rows, message):
    for stem in ("s0", "s1"):
        write_slide(tmp_path, stem)
    with pytest.raises(DataError, match=message) as error:
        find_slides(None, write_list(tmp_path / "l.csv", rows, columns))
    assert "\n" not in str(error.value)


def test_slides_of_one_name_in_two_folders_get_different_names(tmp_path):
    rows = [[os.path.join(p, "s.png"), os.path.join(p, "s.geojson"), 1, p] for p in ("a", "b")]
    for p in ("a", "b"):
        write_slide(tmp_path / p, "s")
    assert [s.name for s in find_slides(None, write_list(tmp_path / "l.csv", rows)).slides] == ["a_s", "b_s"]
