"""Raw data folders of nnU-Net: what is found, left out, and refused."""

import json
import os
import re
import unicodedata

import pytest

from bcss_jax.errors import DataError
from bcss_jax.nnunet.raw_folder import read_raw_folder

DATASET = {
    "channel_names": {"0": "R", "1": "G", "2": "B"},
    "labels": {"background": 0, "tumor": 1},
    "numTraining": 3,
    "file_ending": ".png",
}


@pytest.fixture
def raw(tmp_path):
    """Writes a folder of three cases; their files hold their names, because no pixel is read."""
    for name in ("imagesTr/case_0_0000.png", "imagesTr/case_1_0000.png", "imagesTr/case_2_0000.png"):
        touch(tmp_path, name, name.replace("images", "labels").replace("_0000", ""))
    write(tmp_path)
    return tmp_path


def touch(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)


def write(root, **changes):
    content = {key: value for key, value in (DATASET | changes).items() if value is not None}
    (root / "dataset.json").write_text(json.dumps(content))


def move(root, old, new):
    (root / old).rename(root / new)


def refused(root, **options):
    with pytest.raises(DataError) as error:
        read_raw_folder(root, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_the_case_of_an_ending_does_not_matter(raw):
    move(raw, "imagesTr/case_0_0000.png", "imagesTr/case_0_0000.PNG")
    move(raw, "labelsTr/case_1.png", "labelsTr/case_1.Png")
    write(raw, file_ending=".PNG")
    found = read_raw_folder(raw)
    assert [case.name for case in found.cases] == ["case_0", "case_1", "case_2"]
    assert found.cases[0].image.name == "case_0_0000.PNG" and found.counts()["left_out"] == {}


def test_tif_and_tiff_are_one_ending(raw):
    for path in [*raw.glob("*/*.png")]:
        path.rename(path.with_suffix(".tiff" if "case_1" in path.name else ".TIF"))
    write(raw, file_ending=".tif")
    assert len(read_raw_folder(raw).cases) == 3


def test_what_is_no_image_is_left_out_and_counted(raw):
    hidden = ("imagesTr/._case_0_0000.png", "labelsTr/._case_0.png", "imagesTr/.DS_Store", "imagesTr/Thumbs.db")
    touch(raw, *hidden, "imagesTr/__MACOSX/case_9_0000.png", "imagesTr/notes.txt", "labelsTr/old/case_7.png")
    touch(raw, "imagesTr/overview.jpg", "labelsTr/colors.jpg", "imagesTs/case_8_0000.png")
    found = read_raw_folder(raw)
    assert found.counts() == {
        "promised": {"numTraining": 3},
        "cases": {"train": 3, "test": 0},
        "left_out": {"hidden": 5, "folders": 1, "others": 3, "unlabeled": 1},
    }
    line = found.line()
    assert "3 training cases (dataset.json says 3)" in line and "5 hidden (first imagesTr/" in line
    assert "1 folder that is not looked into (first labelsTr/old)" in line and "first imagesTs/case_8_0000.png" in line


@pytest.mark.parametrize(
    "files, said",
    (
        (["imagesTr/case_3_0000.png"], "1 image.s. without a mask, first case_3_0000.png"),
        (["labelsTr/case_3.PNG"], "1 mask.s. without an image, first case_3.PNG"),
        (["imagesTr/case_0_0001.png"], "case_0_0001.png: expected one RGB file per case .*one file per channel"),
        (["imagesTr/case_0_0002.PNG"], "case_0_0002.PNG: expected one RGB file per case"),
        (["imagesTr/case_3.png"], "case_3.png: .*without _0000"),
        (["imagesTr/case_0_0000.tif"], "case_0_0000.tif: .*found another ending"),
        (["labelsTr/case_0.TIF"], "case_0.TIF: expected masks NAME.png.*found another ending"),
        (["imagesTr/case_0_0000.PNG"], "case_0_0000.png: expected one file of that name, found case_0_0000.PNG"),
        (["imagesTr/Case_0_0000.png"], "expected one file of that name, found Case_0_0000.png"),
        (["imagesTr/x_0000.png", "labelsTr/x.png"], "expected 3 training cases .numTraining., found 4"),
        (["imagesTs/case_0_0000.png", "labelsTs/case_0.png"], "expected a name that no training case has"),
        (["LabelsTs/case_8.png", "imagesTs/case_8_0000.png"], "LabelsTs: expected the name labelsTs"),
    ),
)
def test_files_that_would_be_ignored_or_mistaken_are_refused(raw, files, said):
    touch(raw, *files)
    line = refused(raw)
    assert re.search(said, line), line


def test_a_dataset_json_in_another_case_is_named(raw):
    move(raw, "dataset.json", "Dataset.json")
    assert "Dataset.json: expected the name dataset.json" in refused(raw)


def test_too_few_cases_name_what_was_left_out(raw):
    move(raw, "imagesTr/case_2_0000.png", "imagesTr/.case_2_0000.png")
    (raw / "labelsTr/case_2.png").unlink()
    assert "found 2 in imagesTr and labelsTr (left out: 1 hidden (first imagesTr/.case_2_0000.png))" in refused(raw)


def test_missing_halves_are_left_out_if_allowed(raw):
    (raw / "labelsTr/case_2.png").unlink()
    assert "--config.data.allow_missing" in refused(raw)
    found = read_raw_folder(raw, allow_missing=True)
    assert len(found.cases) == 2 and found.counts()["left_out"] == {"unpaired": 1}
    assert "2 training cases (dataset.json says 3)" in found.line()


@pytest.mark.parametrize(
    "changes, said",
    (
        ({"file_ending": ".nii.gz"}, "expected file_ending .png"),
        ({"file_ending": "png"}, "expected file_ending .png"),
        ({"file_ending": 3}, "expected file_ending .png"),
        ({"numTraining": "3"}, "expected numTraining as a number of cases, found '3'"),
        ({"numTraining": 4}, "expected 4 training cases"),
        ({"overwrite_image_reader_writer": "SimpleITKIO"}, "found 'SimpleITKIO'"),
        ({"labels": {"0": "background", "1": "tumor"}}, "label '0' is 'background'"),
        ({"labels": {"background": 0, "tumor": [1, 2]}}, "region"),
        ({"training": ["imagesTr/case_0.png"]}, "expected training to list the image and the label"),
        ({"training": [{"image": "./imagesTr/case_0.png", "label": "./labelsTr/case_0.png"}]}, "1 entries for 3 cases"),
        ({"dataset": {"case_0": {"images": ["/other/0.png"], "label": "/other/0_mask.png"}}}, "1 entries for 3 cases"),
    ),
)
def test_a_promise_that_is_not_kept_is_refused(raw, changes, said):
    write(raw, **changes)
    assert said in refused(raw)


def test_lists_of_files_that_agree_are_accepted(raw):
    pairs = [(f"imagesTr/case_{i}", f"labelsTr/case_{i}.png") for i in range(3)]
    write(
        raw,
        training=[{"image": f"./{image}.png", "label": f"./{label}"} for image, label in pairs],
        dataset={image[-6:]: {"images": [f"{image}_0000.png"], "label": label} for image, label in pairs},
        numTest=2,
        numTraining=None,
        overwrite_image_reader_writer="NaturalImage2DIO",
    )
    line = read_raw_folder(raw).line()
    assert "dataset.json gives no number" in line and "dataset.json says 2 test images, imagesTs holds 0" in line
    one = {"image": "imagesTr/case_0.png", "label": "labelsTr/case_0.png"}
    write(raw, training=[{"image": f"{image}.png", "label": label} for image, label in pairs] + [one])
    assert "4 entries for 3 cases" in refused(raw)


def test_names_composed_in_other_ways_are_one_case(raw):
    name = "caf\u00e9 1"
    touch(raw, f"imagesTr/{unicodedata.normalize('NFD', name)}_0000.png", f"labelsTr/{name}.png")
    write(raw, numTraining=4)
    assert read_raw_folder(raw).cases[0].name == name
    touch(raw, f"imagesTr/{name}_0000.png")
    assert "expected one file of that name" in refused(raw)


@pytest.mark.parametrize("kind", ("fifo", "folder", "broken link"))
def test_special_files_are_refused_before_they_are_opened(raw, kind):
    path = raw / "imagesTr" / "case_0_0000.png"
    path.unlink()
    {"fifo": os.mkfifo, "folder": os.mkdir, "broken link": lambda to: os.symlink("/none", to)}[kind](path)
    assert "case_0_0000.png: expected an image file, found" in refused(raw)


def test_links_to_images_are_followed(raw, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "image.png"
    move(raw, "imagesTr/case_0_0000.png", elsewhere)
    (raw / "imagesTr/case_0_0000.png").symlink_to(elsewhere)
    assert len(read_raw_folder(raw).cases) == 3


def test_empty_folders_of_test_cases_are_no_test_cases(raw):
    (raw / "imagesTs").mkdir()
    (raw / "labelsTs").mkdir()
    assert len(read_raw_folder(raw).cases) == 3


def test_images_that_are_equal_are_said(raw):
    assert "repeat the image" not in read_raw_folder(raw).line()
    touch(raw, "imagesTs/test_0000.png", "labelsTs/test.png")
    for name in ("imagesTr/case_2_0000.png", "imagesTs/test_0000.png"):
        (raw / name).write_bytes((raw / "imagesTr/case_0_0000.png").read_bytes())
    said = "3 cases repeat the image of another case (first case_0 and case_2); where one is trained on"
    assert said in read_raw_folder(raw).line()
    (raw / "imagesTs/test_0000.png").write_bytes(b"x" * 5000)
    (raw / "imagesTr/case_2_0000.png").write_bytes(b"x" * 4999 + b"y")
    assert "repeat the image" not in read_raw_folder(raw).line()
