"""Patches of annotated slides, written as TFRecords."""

import json

import cv2
import numpy as np
import pytest
from helpers.annotated_slides import BOXES, box, listed_slides, write_list, write_slide

from bcss_jax.data import tfrecords
from bcss_jax.data.discovery import DataSettings
from bcss_jax.data.slides.patches import SlidePatches
from bcss_jax.errors import DataError
from bcss_jax.labels import SCHEMES

SCHEME = SCHEMES["tumor_stroma"]
TUMOR, STROMA = (SCHEME.class_names.index(name) for name in ("tumor", "stroma"))
SIZE = 64


def prepare(tmp_path, path, **settings):
    settings = {"patch_size": SIZE, "stride": SIZE, "mpp": 0.25, "slide_list": path} | settings
    return tfrecords.prepare(DataSettings("slides", **settings), prepared_dir=tmp_path / "prepared", scheme=SCHEME)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("slides")
    return folder, prepare(folder, listed_slides(folder, ("a", "b"), splits=("train", "val")))


def test_patches_have_slide_patient_position_and_the_labels_of_their_annotations(prepared):
    _, data = prepared
    rows = data.table("train")
    # On a slide of 160 pixels, patches start at 0, 64 and, ending at the edge, at 96. The boxes reach to 128 and 128.
    with_truth = {(0, 0), (64, 0), (96, 0), (64, 64), (96, 64), (64, 96), (96, 96)}
    assert {(row["x"], row["y"]) for row in rows} == with_truth
    assert data.splits == {"train": 7, "val": 7} and data.split_by == "list"
    assert data.report.left_out == {"patches_without_truth": 4}
    assert {(row["barcode"], row["patient"], row["codes"], row["mpp"]) for row in rows} == {
        ("slide0", "a", "labels", 0.25)
    }
    expected = np.full((160, 160), SCHEME.ignore_index, np.uint8)
    expected[:64, :64], expected[:128, 64:128] = TUMOR, STROMA
    slide = cv2.imread(str(prepared[0] / "slide0.png"))
    for example in data.load("train").as_numpy_iterator():
        mask, image = (cv2.imdecode(np.frombuffer(example[name], np.uint8), -1) for name in ("mask", "image"))
        x, y = int(example["x"]), int(example["y"])
        here = np.s_[y : y + SIZE, x : x + SIZE]
        np.testing.assert_array_equal(mask, expected[here])
        np.testing.assert_array_equal(image, slide[here])
        assert rows[int(example["index"])]["key"] == f"slide0_{x}_{y}_size64" == example["key"].decode()
    assert data.report.code_pixels["train"]["tumor"] == 64 * 64


def test_prepared_slides_are_found_again_and_made_anew_if_annotations_or_the_list_change(prepared):
    folder, data = prepared
    again = prepare(folder, folder / "list.csv")
    assert again.folder == data.folder
    settings = DataSettings("slides", slide_list=folder / "list.csv", patch_size=SIZE, stride=SIZE, mpp=0.25)
    scheme = SCHEMES["five_classes"]
    assert tfrecords.prepare(settings, prepared_dir=folder / "prepared", scheme=scheme).folder != data.folder
    write_slide(folder, "slide1", [box(0, 0, 64, 64, "Stroma")], seed=1)
    changed = prepare(folder, folder / "list.csv")
    assert changed.folder != data.folder and changed.splits == {"train": 7, "val": 1}
    write_slide(folder, "slide1", BOXES, seed=1)


def test_slides_of_another_resolution_are_resampled(tmp_path):
    slide, annotations = write_slide(tmp_path, "s", [box(0, 0, 128, 128, "Tumor")], side=512)
    rows = [
        [slide.name, annotations.name, 0.125, "a"],
        [*(p.name for p in write_slide(tmp_path, "t", seed=1)), 0.25, "b"],
    ]
    data = prepare(tmp_path, write_list(tmp_path / "l.csv", rows))
    split = next(split for split in data.splits if data.table(split)[0]["barcode"] == "s")
    assert [(row["x"], row["y"]) for row in data.table(split)] == [(0, 0)]
    assert data.report.code_pixels[split] == {"tumor": SIZE**2}


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("slide", "slide1.png: expected a slide"),
        ("annotations", "slide1.geojson: expected"),
        ("outside", "slide1.geojson: expected annotations on the slide"),
        ("small", "slide1.png: expected at least 64x64 pixels at 0.25 um per pixel, found 40x40"),
    ],
)
def test_a_slide_that_cannot_be_used_is_named_or_left_out(tmp_path, damage, message, caplog):
    path = listed_slides(tmp_path, ("a", "b", "c"), splits=("train", "val", "val"))
    if damage == "small":
        write_slide(tmp_path, "slide1", [box(0, 0, 20, 20, "Tumor")], side=40)
    elif damage == "outside":
        write_slide(tmp_path, "slide1", [box(5000, 5000, 64, 64, "Tumor")], seed=1)
    else:
        (tmp_path / ("slide1.png" if damage == "slide" else "slide1.geojson")).write_bytes(b"nothing of use")
    with pytest.raises(DataError, match=message) as error:
        prepare(tmp_path, path)
    assert "\n" not in str(error.value)
    assert not list((tmp_path / "prepared").glob("slides-????????????????"))
    data = prepare(tmp_path, path, max_bad=0.34)
    assert data.splits == {"train": 7, "val": 7} and len(data.report.bad) == 1
    assert "left out: " in caplog.text


def test_a_slide_without_evaluated_annotations_is_named_and_a_split_without_any_is_refused(tmp_path):
    path = listed_slides(tmp_path, ("a", "b", "c"), splits=("train", "val", "val"))
    write_slide(tmp_path, "slide1", [box(0, 0, 64, 64, "Necrosis")], seed=1)
    data = prepare(tmp_path, path)
    assert data.report.left_out["slides_without_patches"] == 1 and "slide1.png: no patch" in data.report.warnings[0]
    write_slide(tmp_path, "slide2", [box(0, 0, 64, 64, "Necrosis")], seed=2)
    with pytest.raises(DataError, match="expected annotations of evaluated classes .tumor, stroma. in the 2 slides"):
        prepare(tmp_path, path)


def test_patches_that_cannot_be_decoded_are_refused_or_left_out(tmp_path, monkeypatch):
    read = SlidePatches._read

    def damaged(self, position, future):
        patch = read(self, position, future)
        return patch._replace(image=None) if (position.x, position.y) == (64, 64) else patch

    monkeypatch.setattr(SlidePatches, "_read", damaged)
    path = listed_slides(tmp_path, ("a", "b"), splits=("train", "val"))
    with pytest.raises(DataError, match="that can be decoded where it is annotated, found 1 damaged patch"):
        prepare(tmp_path, path)
    with pytest.raises(DataError, match="of 14 patches, 2 cannot be decoded"):
        prepare(tmp_path, path, max_bad=0.1)
    data = prepare(tmp_path, path, max_bad=0.2)
    assert data.splits == {"train": 6, "val": 6} and data.report.left_out["unreadable_patches"] == 2
    assert [row["x"] for row in data.table("val")].count(64) == 2


def test_the_same_slide_under_two_patients_in_two_splits_is_refused(tmp_path):
    path = listed_slides(tmp_path, ("a", "b"), splits=("train", "val"))
    write_slide(tmp_path, "slide1", seed=0)
    with pytest.raises(DataError, match="expected an image that only val has, found the same pixels as in slide0_0_0"):
        prepare(tmp_path, path)


def test_weights_of_slides_are_stored(tmp_path):
    files = [[path.name for path in write_slide(tmp_path, f"s{i}", seed=i)] for i in range(2)]
    rows = [[*files[0], 0.25, "a", 2], [*files[1], 0.25, "b", 1]]
    path = write_list(tmp_path / "l.csv", rows, ("slide", "annotations", "mpp", "patient", "weight"))
    assert prepare(tmp_path, path).slide_weights == {"s0": 2.0, "s1": 1.0}
    assert json.loads((prepare(tmp_path, path).folder / "weights.json").read_text()) == {"s0": 2.0, "s1": 1.0}


def test_a_slide_without_a_resolution_is_told_to_use_the_list(tmp_path):
    for number in range(2):
        write_slide(tmp_path / "d", f"s{number}", seed=number)
    with pytest.raises(DataError, match="give it with the column mpp of --config.data.list") as error:
        prepare(tmp_path, None, dir=tmp_path / "d")
    assert "--mpp" not in str(error.value)
