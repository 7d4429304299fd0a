"""The command that segments slides: from a checkpoint and slides to folders of results, and errors for bad input."""

# ruff: noqa: F811 (fixtures are imported, and named by the tests that use them)

import csv
import json
import re

import numpy as np
import pytest
import shapely
import tifffile
from helpers import slide_files
from helpers.segment_command import (
    EVERYTHING,
    SESSION_FIELDS,
    Killed,
    call,
    command,
    contents,
    one_line,
    statuses_in,
    summary_of,
)
from helpers.segmented_slide import finished, runs, slide  # noqa: F401 (fixtures)
from helpers.slides_small import tissue_picture, write_run
from PIL import Image

from bcss_jax.common import files
from bcss_jax.slides.batch import segment_slide, slide_folder
from bcss_jax.slides.grid import Grid
from bcss_jax.slides.tissue.tissue_file import read_tissue

OUTPUTS = {"labels.ome.tif", "regions.geojson", "overlay.png", "summary.json"}


def test_a_slide_gets_labels_regions_overlay_and_summary(finished, slide):
    assert {path.name for path in finished.iterdir()} == OUTPUTS | {"probabilities.zarr", ".lock"}
    summary = summary_of(finished)
    labels = tifffile.imread(finished / "labels.ome.tif")
    assert labels.shape == (150, 200) and set(np.unique(labels)) == {1, 2}
    assert summary["slide"]["width"] == 200 and summary["slide"]["mpp"] == [0.25, 0.25]
    assert summary["grid"] == {"width": 200, "height": 150, "mpp": 0.25, "scale": [1.0, 1.0]}
    for each in summary["classes"]:
        assert each["pixels"] == (labels == each["value"]).sum()
        assert each["area_mm2"] == pytest.approx(each["pixels"] * 0.25**2 / 1e6)
    assert summary["tissue_area_mm2"] == pytest.approx(labels.size * 0.25**2 / 1e6)
    assert summary["tumor_stroma_ratio"] == pytest.approx((labels == 1).sum() / (labels == 2).sum())
    assert summary["windows"]["computed"] == summary["windows"]["of"] == 9 * 7
    regions = json.loads((finished / "regions.geojson").read_text())["features"]
    area = {}
    for region in regions:
        name = region["properties"]["classification"]["name"]
        area[name] = area.get(name, 0) + shapely.geometry.shape(region["geometry"]).area
    assert area == {"Tumor": (labels == 1).sum(), "Stroma": (labels == 2).sum()}
    assert Image.open(finished / "overlay.png").width > 200
    assert summary["files"]["probabilities"] == "probabilities.zarr"


@pytest.mark.parametrize("name, said", [("a_MPP-0.5000", True), ("a_MPP-0.2500", False), ("a_MPP-0", False)])
def test_a_name_that_says_another_resolution_is_noted(runs, slide, tmp_path, name, said):
    path = tmp_path / f"{name}.png"
    Image.fromarray(tifffile.imread(slide)).save(path)
    assert command(runs[0], path, tmp_path / "out", "--mpp=0.25") == 0
    notes = summary_of(tmp_path / "out" / name).get("notes", [])
    assert any("its name says 0.5000 um per pixel, but 0.25 is used" in note for note in notes) == said


def test_the_same_command_does_not_compute_again(finished, runs, slide, capsys, monkeypatch):
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*") if path.name != ".lock"}
    monkeypatch.setattr(segment_slide, "ReaderPool", None)  # the slide is not even opened
    assert command(runs[0], slide, finished.parent, "--probabilities") == 0
    assert "done before" in capsys.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in finished.rglob("*") if path.name != ".lock"}


def test_other_settings_are_refused_unless_results_may_be_overwritten(runs, slide, tmp_path, capsys):
    assert command(runs[0], slide, tmp_path) == 0
    for options, said in (((runs[1],), "model.params"), ((runs[0], "--overlap=0.5"), "settings.overlap")):
        run, *options = options
        assert command(run, slide, tmp_path, *options) == 2
        assert re.search(f"results of other settings .*{said}.*--overwrite", one_line(capsys))
        assert command(run, slide, tmp_path, *options, "--overwrite") == 0
        capsys.readouterr()
    assert summary_of(tmp_path / "case")["identity"]["settings"]["overlap"] == 0.5


def test_a_window_that_the_network_does_not_accept_leaves_no_files(runs, slide, tmp_path, capsys):
    (tmp_path / "list.csv").write_text(f"slide\n{slide}\n")
    for slides in (f"--slide={slide}", f"--slides={tmp_path / 'list.csv'}"):
        assert call(f"--checkpoint={runs[0]}", slides, f"--output={tmp_path / 'out'}", "--window=1", *EVERYTHING) == 2
        assert re.search("--window=1: one cannot be applied to such windows .*too few.* leave it out", one_line(capsys))
        assert not (tmp_path / "out").exists()


def test_other_settings_may_replace_results_without_labels(runs, slide, tmp_path, capsys, monkeypatch):
    def killed(*_, **__):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(segment_slide.labeling, "label_slide", killed)
        with pytest.raises(Killed):
            command(runs[0], slide, tmp_path, "--overlap=0.5")
    labels = tmp_path / "case" / ".work" / "labels"
    assert labels.is_dir()
    (labels / "row-000000").write_bytes(b"hours of work")
    assert command(runs[0], slide, tmp_path) == 2
    assert "results of other settings" in one_line(capsys)
    (labels / "row-000000").unlink()
    assert command(runs[0], slide, tmp_path) == 0


def test_results_of_one_model_and_of_several_are_not_mixed(runs, slide, tmp_path, capsys):
    both = ",".join(map(str, runs))
    assert command(both, slide, tmp_path / "two") == command(runs[0], slide, tmp_path / "one") == 0
    capsys.readouterr()
    for overwrite in ((), ("--overwrite",)):
        assert command(runs[0], slide, tmp_path / "two", *overwrite) == 2
        assert re.search(
            r"two/case holds the results of several models \(one, two\).*another --output", one_line(capsys)
        )
        assert command(both, slide, tmp_path / "one", *overwrite) == 2
        assert re.search("one/case holds the results of one model; name another --output", one_line(capsys))
    assert not (tmp_path / "one" / "case" / "one").exists()
    assert not (tmp_path / "two" / "case" / "summary.json").exists()


def test_files_of_something_else_are_never_touched(runs, slide, tmp_path, capsys):
    (tmp_path / "case").mkdir()
    (tmp_path / "case" / "thesis.docx").write_text("years of work")
    assert command(runs[0], slide, tmp_path, "--overwrite") == 2
    assert "thesis.docx" in one_line(capsys)
    assert [path.name for path in (tmp_path / "case").iterdir() if path.name != ".lock"] == ["thesis.docx"]


def test_a_slide_of_another_resolution_is_resampled(runs, tmp_path):
    pixels, _ = tissue_picture(75, 100)
    slide = slide_files.tiled(tmp_path / "half.tif", pixels, mpp=0.5)
    assert command(runs[0], slide, tmp_path / "out") == 0
    folder = tmp_path / "out" / "half"
    assert tifffile.imread(folder / "labels.ome.tif").shape == (150, 200)
    assert summary_of(folder)["grid"]["scale"] == [0.5, 0.5]
    ends = [
        shapely.geometry.shape(each["geometry"]).bounds
        for each in json.loads((folder / "regions.geojson").read_text())["features"]
    ]
    assert max(x for _, _, x, _ in ends) == 100 and max(y for *_, y in ends) == 75  # level-0 pixels


def test_a_list_continues_after_slides_that_fail(runs, slide, tmp_path, capsys):
    pixels, _ = tissue_picture(60, 60)
    slide_files.tiled(tmp_path / "good.tif", pixels)
    slide_files.tiled(tmp_path / "no_mpp.tif", pixels, mpp=None)
    (tmp_path / "broken.svs").write_bytes(slide.read_bytes()[: slide.stat().st_size // 2])
    (tmp_path / "list.csv").write_text("slide,mpp\nbroken.svs,\ngood.tif,\ngone.tif,\nno_mpp.tif,\n")
    options = ("--readers=1", *EVERYTHING, f"--checkpoint={runs[0]}", f"--output={tmp_path / 'out'}")
    assert call(f"--slides={tmp_path / 'list.csv'}", *options) == 6
    assert "3 of 4 slides failed (broken.svs, gone.tif, no_mpp.tif)" in one_line(capsys)

    def rows():
        with open(tmp_path / "out" / "summary.csv", newline="") as file:
            return list(csv.DictReader(file))

    assert [row["status"] for row in rows()] == ["failed", "done", "failed", "failed"]
    assert "broken.svs" in rows()[0]["reason"] and "--mpp" in rows()[3]["reason"] and "gone.tif" in rows()[2]["reason"]
    assert float(rows()[1]["tumor_mm2"]) + float(rows()[1]["stroma_mm2"]) == pytest.approx(
        float(rows()[1]["tissue_mm2"]), rel=1e-4
    )
    # After repair the same command segments the remaining slides only.
    pixels, _ = tissue_picture(60, 60, seed=1)
    slide_files.tiled(tmp_path / "broken.svs", pixels)
    slide_files.tiled(tmp_path / "gone.tif", pixels)
    (tmp_path / "list.csv").write_text("slide,mpp\nbroken.svs,\ngood.tif,\ngone.tif,\nno_mpp.tif,0.25\n")
    assert call(f"--slides={tmp_path / 'list.csv'}", *options) == 0
    assert capsys.readouterr().out.count("done before") == 1
    assert [row["status"] for row in rows()] == ["done"] * 4
    assert not list((tmp_path / "out").rglob("failure.json"))


def test_shards_segment_each_slide_once(runs, tmp_path, capsys):
    for number in range(3):
        slide_files.tiled(tmp_path / f"{number}.tif", tissue_picture(40, 40, seed=number)[0])
    (tmp_path / "list.csv").write_text("slide\n0.tif\n1.tif\n2.tif\n")
    options = ("--readers=1", *EVERYTHING, f"--checkpoint={runs[0]}", f"--output={tmp_path / 'out'}")
    assert call(f"--slides={tmp_path / 'list.csv'}", "--shard=1/2", *options) == 0
    with open(tmp_path / "out" / "summary.csv", newline="") as file:
        assert [row["status"] for row in csv.DictReader(file)] == ["pending", "done", "pending"]
    assert call(f"--slides={tmp_path / 'list.csv'}", "--shard=0/2", *options) == 0
    with open(tmp_path / "out" / "summary.csv", newline="") as file:
        assert [row["status"] for row in csv.DictReader(file)] == ["done"] * 3
    assert "done before" not in capsys.readouterr().out


def test_slides_of_the_same_file_name_get_folders_by_their_given_names(runs, tmp_path, capsys):
    for number in range(2):
        (tmp_path / f"case{number}").mkdir()
        slide_files.tiled(tmp_path / f"case{number}" / "HE.tif", tissue_picture(40, 40, seed=number)[0])
    (tmp_path / "list.csv").write_text("slide,name\ncase0/HE.tif,first\ncase1/HE.tif,second\n")
    options = ("--readers=1", *EVERYTHING, f"--checkpoint={runs[0]}", f"--output={tmp_path / 'out'}")
    assert call(f"--slides={tmp_path / 'list.csv'}", *options) == 0
    paths = [summary_of(tmp_path / "out" / name)["slide"]["path"] for name in ("first", "second")]
    assert paths == [str(tmp_path / f"case{number}" / "HE.tif") for number in range(2)]
    assert statuses_in(tmp_path / "out") == ["done"] * 2
    capsys.readouterr()
    assert call(f"--slide={tmp_path / 'case1' / 'HE.tif'}", "--name=second", *options) == 0
    assert "done before" in capsys.readouterr().out
    assert call(f"--slide={tmp_path / 'case1' / 'HE.tif'}", "--name=../second", *options) == 2
    assert "--name: expected the name of a folder" in one_line(capsys)


def test_a_slide_without_tissue_gives_an_empty_result(runs, tmp_path):
    slide = slide_files.tiled(tmp_path / "glass.tif", np.full((300, 300, 3), 245, np.uint8))
    assert call(f"--checkpoint={runs[0]}", f"--slide={slide}", f"--output={tmp_path / 'out'}", "--readers=1") == 0
    folder = tmp_path / "out" / "glass"
    assert json.loads((folder / "regions.geojson").read_text())["features"] == []
    summary = summary_of(folder)
    assert summary["tissue_area_mm2"] == 0 and summary["tumor_stroma_ratio"] is None
    assert not tifffile.imread(folder / "labels.ome.tif").any()


def test_a_slide_that_is_white_everywhere_is_said_to_be(runs, tmp_path, caplog):
    pixels = np.dstack([tissue_picture(150, 200)[0], np.zeros((150, 200), np.uint8)])
    options = {"photometric": "rgb", "resolution": (40_000, 40_000), "resolutionunit": "CENTIMETER"}
    tifffile.imwrite(tmp_path / "clear.tif", pixels, tile=(64, 64), extrasamples=["unassalpha"], **options)
    assert command(runs[0], tmp_path / "clear.tif", tmp_path / "out") == 0
    (said,) = [record.getMessage() for record in caplog.records if "clear.tif" in record.getMessage()]
    assert said.startswith("clear.tif: it is white everywhere: empty glass, or its pixels are transparent or missing")
    assert summary_of(tmp_path / "out" / "clear")["notes"] == [said]


def test_how_a_tiff_was_read_is_said_and_in_the_summary(runs, tmp_path, caplog):
    pixels, _ = tissue_picture(150, 200)
    with tifffile.TiffWriter(tmp_path / "a.tif") as tiff:
        for step in (4, 1):
            options = {"photometric": "rgb", "resolution": (40_000, 40_000), "resolutionunit": "CENTIMETER"}
            tiff.write(pixels[::step, ::step].copy(), tile=(64, 64), metadata=None, **options)
    assert command(runs[0], tmp_path / "a.tif", tmp_path / "out") == 0
    assert any("a.tif: the slide is page 1, 200x150 pixels" in record.getMessage() for record in caplog.records)
    summary = summary_of(tmp_path / "out" / "a")
    assert summary["slide"]["width"] == 200 and "the slide is page 1" in summary["notes"][0]


def test_a_gray_image_is_segmented_with_a_warning_that_it_is_not_h_and_e(runs, tmp_path, caplog):
    Image.fromarray(tissue_picture(150, 200)[0]).convert("L").save(tmp_path / "gray.png")
    assert command(runs[0], tmp_path / "gray.png", tmp_path / "out", "--mpp=0.25") == 0
    assert {path.name for path in (tmp_path / "out" / "gray").iterdir()} >= OUTPUTS
    (said,) = [record.getMessage() for record in caplog.records if "H&E" in record.getMessage()]
    assert said.startswith("gray.png: has shades of gray only; the model was trained on H&E in bright field")


def test_truth_is_scored_and_two_models_are_compared(runs, slide, finished, tmp_path, capsys):
    labels = tifffile.imread(finished / "labels.ome.tif")
    truth = np.where(labels == 1, 1, 2).astype(np.uint8)
    truth[:, :20] = 0  # not annotated
    truth[100:, 150:] = 3 - truth[100:, 150:]
    Image.fromarray(truth).save(tmp_path / "truth.png")
    both = ",".join(map(str, runs))
    assert command(both, slide, tmp_path / "out", f"--truth={tmp_path / 'truth.png'}") == 0
    out = capsys.readouterr().out
    assert out.count("Dice") == 2 and "comparison.png" in out
    found = summary_of(tmp_path / "out" / "case" / "one")["scores"]
    known = truth > 0
    for value, name in ((1, "tumor"), (2, "stroma")):
        a, b = (truth == value) & known, (labels == value) & known
        assert found["dice"][name] == pytest.approx(2 * (a & b).sum() / (a.sum() + b.sum()))
    assert np.sum(found["confusion"]["pixels"]) == known.sum()
    assert Image.open(tmp_path / "out" / "case" / "comparison.png").width > 500
    assert (
        command(runs[0], slide, tmp_path / "part", f"--truth={tmp_path / 'truth.png'}", "--truth_region=20,0,130,100")
        == 0
    )
    part = summary_of(tmp_path / "part" / "case")
    assert part["scores_of_region"]["dice"]["macro"] == 1 and part["scores"] == found


@pytest.fixture
def masks(finished, tmp_path):
    """Two ground truth masks that differ, a PNG and a TIFF."""
    labels = tifffile.imread(finished / "labels.ome.tif")
    truth = np.where(labels == 1, 1, 2).astype(np.uint8)
    truth[:, :20] = 0
    Image.fromarray(truth).save(tmp_path / "right.png")
    truth[100:, 20:] = 3 - truth[100:, 20:]
    tifffile.imwrite(tmp_path / "wrong.tif", truth, tile=(64, 64), compression="deflate", photometric="minisblack")
    return tmp_path / "right.png", tmp_path / "wrong.tif"


def without_time(folder):
    found = summary_of(folder)
    return {name: value for name, value in found.items() if name not in SESSION_FIELDS}


def test_a_ground_truth_given_later_is_scored_without_computing_again(
    runs, slide, masks, tmp_path, capsys, monkeypatch
):
    right, wrong = (f"--truth={path}" for path in masks)
    assert command(runs[0], slide, tmp_path / "once", wrong) == 0
    assert "Dice" in capsys.readouterr().out
    assert command(runs[0], slide, tmp_path / "later") == 0
    folder = tmp_path / "later" / "case"
    others = {path: path.stat().st_mtime_ns for path in folder.iterdir() if path.name in OUTPUTS - {"summary.json"}}
    monkeypatch.setattr(segment_slide, "ReaderPool", None)  # the slide is not even opened
    plain = without_time(folder)
    assert "scores" not in plain
    assert command(runs[0], slide, tmp_path / "later", right, "--truth_region=20,0,130,100") == 0
    out = capsys.readouterr().out
    assert "scored now" in out and "not computed again" in out and "Dice in the region" in out
    assert without_time(folder)["scores"]["dice"]["macro"] == 1
    assert command(runs[0], slide, tmp_path / "later", wrong) == 0
    assert "scored now" in capsys.readouterr().out
    assert without_time(folder) == without_time(tmp_path / "once" / "case")  # and the region is gone
    written = (folder / "summary.json").read_bytes()
    for options in ((wrong,), (), ("--truth_codes=kaggle3",)):
        assert command(runs[0], slide, tmp_path / "later", *options) == 0
        assert "done before" in capsys.readouterr().out and (folder / "summary.json").read_bytes() == written
    assert others == {path: path.stat().st_mtime_ns for path in others}
    assert (
        command(runs[0], slide, tmp_path / "later", wrong, "--truth_codes=kaggle3") == 0
    )  # the codes may mean something else
    assert "scored now" in capsys.readouterr().out
    assert command(runs[0], slide, tmp_path / "later", wrong, "--overlap=0.5") == 2
    assert re.search(r"results of other settings \(settings.overlap: .* -> .*\)", one_line(capsys))


def test_a_correction_in_the_middle_of_a_mask_is_detected(runs, slide, tmp_path, capsys, monkeypatch):
    """The size and the ends of an uncompressed TIFF do not change."""
    monkeypatch.setattr(slide_folder, "HASHED_BYTES", 1 << 12)
    mask = np.ones((150, 200), np.uint8)
    mask[:, :50] = 2
    options = [f"--{name}={tmp_path / name}.tif" for name in ("truth", "tissue")]
    for name in ("truth", "tissue"):
        tifffile.imwrite(tmp_path / f"{name}.tif", mask, photometric="minisblack")
    assert command(runs[0], slide, tmp_path / "out", *options) == 0
    before = summary_of(tmp_path / "out" / "case")
    mask[75, 40:60] = 0
    tifffile.imwrite(tmp_path / "truth.tif", mask, photometric="minisblack")
    capsys.readouterr()
    assert command(runs[0], slide, tmp_path / "out", *options) == 0
    assert "scored now" in capsys.readouterr().out
    pixels = [np.sum(each["scores"]["confusion"]["pixels"]) for each in (before, summary_of(tmp_path / "out" / "case"))]
    assert pixels == [150 * 200, 150 * 200 - 20]
    tifffile.imwrite(tmp_path / "tissue.tif", mask, photometric="minisblack")
    assert command(runs[0], slide, tmp_path / "out", *options) == 2
    assert "results of other settings (files.tissue.sha256)" in one_line(capsys)


def test_results_whose_settings_include_the_ground_truth_are_read(runs, slide, masks, tmp_path, capsys):
    """Earlier versions wrote them, with a ground truth and without one."""
    options = (f"--truth={masks[1]}",)
    assert command(runs[0], slide, tmp_path, *options) == 0
    assert summary_of(tmp_path / "case")["identity"]["settings"]["truth_codes"] == "bcss22"
    for again in (options, ()):
        assert command(runs[0], slide, tmp_path, *again) == 0
        assert "done before" in capsys.readouterr().out
    summary = summary_of(tmp_path / "case")
    del summary["identity"]["files"]["truth"], summary["scores"]
    (tmp_path / "case" / "summary.json").write_text(json.dumps(summary))
    assert command(runs[0], slide, tmp_path) == 0
    assert "done before" in capsys.readouterr().out
    assert command(runs[0], slide, tmp_path, *options) == 0
    assert "scored now" in capsys.readouterr().out


def test_a_ground_truth_given_later_is_in_the_comparison(runs, slide, masks, tmp_path, capsys):
    both = ",".join(map(str, runs))
    assert command(both, slide, tmp_path / "out") == 0
    picture = tmp_path / "out" / "case" / "comparison.png"
    narrow = Image.open(picture).width
    assert command(both, slide, tmp_path / "out", f"--truth={masks[1]}") == 0
    assert capsys.readouterr().out.count("scored now") == 2
    assert Image.open(picture).width > narrow  # has a panel for the ground truth
    drawn = picture.stat().st_mtime_ns
    assert command(both, slide, tmp_path / "out", f"--truth={masks[1]}") == 0
    assert picture.stat().st_mtime_ns == drawn


def test_labels_that_were_damaged_or_replaced_are_not_scored(runs, slide, masks, tmp_path, capsys):
    truth, folder = f"--truth={masks[0]}", tmp_path / "case"
    assert command(runs[0], slide, tmp_path) == 0
    (folder / ".lock").unlink()  # results of before there was a record of what was written
    summary, labels = (folder / "summary.json").read_bytes(), (folder / "labels.ome.tif").read_bytes()
    with tifffile.TiffFile(folder / "labels.ome.tif") as tiff:
        offset = tiff.pages[0].dataoffsets[0]
    (folder / "labels.ome.tif").write_bytes(labels[: offset + 20] + bytes(20) + labels[offset + 40 :])
    assert command(runs[0], slide, tmp_path, truth) == 3
    assert re.search("labels.ome.tif: expected the labels .* found .*--overwrite", one_line(capsys))
    other = np.full((150, 200), 2, np.uint8)
    tifffile.imwrite(folder / "labels.ome.tif", other, compression="deflate")
    (folder / ".lock").unlink()
    assert command(runs[0], slide, tmp_path, truth) == 3
    assert re.search("labels.ome.tif: .* 30000 pixels of the value 2 in place of", one_line(capsys))
    assert (folder / "summary.json").read_bytes() == summary  # the slide is still done, but not scored
    assert command(runs[0], slide, tmp_path, truth, "--overwrite") == 0
    assert (folder / "labels.ome.tif").read_bytes() == labels and "scores" in summary_of(folder)
    assert not (folder / "failure.json").exists()


def test_a_slide_in_progress_is_resumed_with_another_ground_truth(
    runs, slide, masks, finished, tmp_path, capsys, monkeypatch
):
    def killed(*_):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(segment_slide.SlideFolder, "finish", killed)
        with pytest.raises(Killed):
            command(runs[0], slide, tmp_path, f"--truth={masks[0]}")
    rows = {path: path.stat().st_mtime_ns for path in (tmp_path / "case" / ".work" / "labels").iterdir()}
    assert rows
    (tmp_path / "bad.tif").write_bytes(masks[1].read_bytes()[:500])
    for options, code in (
        ((f"--truth={tmp_path / 'bad.tif'}",), 3),  # a mask that cannot be read does not delete labels
        ((f"--truth={masks[0]}", "--truth_region=0,0,900,900"), 2),
        (("--overlap=0.5",), 2),  # other settings may not replace them either
    ):
        assert command(runs[0], slide, tmp_path, *options) == code
        one_line(capsys)
        assert rows == {path: path.stat().st_mtime_ns for path in rows}
    monkeypatch.setattr("bcss_jax.inference.slide_model.WindowPredictor.__call__", None)  # all labels are there
    assert command(runs[0], slide, tmp_path, f"--truth={masks[1]}") == 0
    assert "scored now" not in capsys.readouterr().out
    assert (tmp_path / "case" / "labels.ome.tif").read_bytes() == (finished / "labels.ome.tif").read_bytes()
    assert summary_of(tmp_path / "case")["scores"]["dice"]["macro"] < 1


@pytest.mark.parametrize("place", ("_score", "write_scores"))
def test_after_a_kill_around_the_scores_the_same_command_gives_the_same_results(
    runs, slide, masks, tmp_path, monkeypatch, capsys, place
):
    def killed(*_):
        raise Killed

    truth = f"--truth={masks[1]}"
    with monkeypatch.context() as patch:
        owner = segment_slide.SlideSegmenter if place == "_score" else segment_slide.SlideFolder
        patch.setattr(owner, place, killed)
        with pytest.raises(Killed):
            command(runs[0], slide, tmp_path, truth)
    assert "scores" not in summary_of(tmp_path / "case")
    assert command(runs[0], slide, tmp_path, truth) == 0
    assert "scored now" in capsys.readouterr().out
    assert command(runs[0], slide, tmp_path / "whole", truth) == 0
    assert contents(tmp_path / "case") == contents(tmp_path / "whole" / "case")


def test_a_list_scores_finished_slides_and_names_the_mask_that_fails(runs, masks, tmp_path, capsys):
    for name in ("a", "b"):
        slide_files.tiled(tmp_path / f"{name}.tif", tissue_picture(150, 200)[0])
    options = ("--readers=1", *EVERYTHING, f"--checkpoint={runs[0]}", f"--output={tmp_path / 'out'}")
    (tmp_path / "list.csv").write_text("slide\na.tif\nb.tif\n")
    assert call(f"--slides={tmp_path / 'list.csv'}", *options) == 0
    Image.fromarray(np.full((150, 200), 77, np.uint8)).save(tmp_path / "bad.png")
    (tmp_path / "list.csv").write_text(f"slide,truth\na.tif,bad.png\nb.tif,{masks[0].name}\n")
    assert call(f"--slides={tmp_path / 'list.csv'}", *options) == 6
    captured = capsys.readouterr()
    assert captured.out.count("scored now") == 1 and "bad.png: expected the codes" in captured.err
    with open(tmp_path / "out" / "summary.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["status"] for row in rows] == ["done", "done"]
    assert "bad.png" in rows[0]["reason"] and not rows[1]["reason"]


def test_masks_whose_palettes_contradict_one_another_are_refused_before_anything_is_computed(runs, tmp_path, capsys):
    codes = np.indices((150, 200)).sum(0).astype(np.uint8) % 3
    for name, order in (("a", (0, 1, 2)), ("b", (0, 2, 1))):
        slide_files.tiled(tmp_path / f"{name}.tif", tissue_picture(150, 200)[0])
        mask = Image.fromarray(np.array(order, np.uint8)[codes], "P")
        mask.putpalette([value for code in order for value in ((0, 0, 255), (255, 0, 0), (0, 255, 0))[code]])
        mask.save(tmp_path / f"{name}.png")
    (tmp_path / "list.csv").write_text("slide,truth\na.tif,a.png\nb.tif,b.png\n")
    options = ("--readers=1", *EVERYTHING, f"--checkpoint={runs[0]}", f"--output={tmp_path / 'out'}")
    assert call(f"--slides={tmp_path / 'list.csv'}", *options) == 3
    assert "b.png: expected a color that stands for the same code in all masks" in one_line(capsys)
    assert not list((tmp_path / "out").rglob("labels.ome.tif"))


def test_tissue_from_a_mask_or_from_regions(runs, slide, tmp_path):
    mask = np.zeros((15, 20), np.uint8)
    mask[3:9, 5:12] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    square = {"type": "Polygon", "coordinates": [[[50, 30], [120, 30], [120, 90], [50, 90], [50, 30]]]}
    (tmp_path / "tissue.geojson").write_text(json.dumps({"type": "Feature", "geometry": square, "properties": {}}))
    expected = np.zeros((150, 200), bool)
    expected[30:90, 50:120] = True
    for file in ("mask.png", "tissue.geojson"):
        output = tmp_path / file.partition(".")[0]
        assert command(runs[0], slide, output, f"--tissue={tmp_path / file}") == 0
        found = tifffile.imread(output / "case" / "labels.ome.tif") > 0
        assert (found == expected).all() or (found & ~expected).sum() < 200  # the border of a region counts as inside
        assert found[expected].all()


def unfit(tmp_path, name):
    """Writes a file that does not fit the slide."""
    path = tmp_path / name
    if name.endswith(".png"):
        Image.fromarray(np.ones((100, 200), np.uint8)).save(path)
    elif name == "far.geojson":
        far = [[1000, 1000], [1100, 1000], [1100, 1100], [1000, 1000]]
        path.write_text(json.dumps({"type": "Polygon", "coordinates": [far]}))
    elif name == "above.geojson":  # y is counted upward, so that the region only touches the slide
        above = [[0, 0], [100, 0], [100, -100], [0, -100], [0, 0]]
        path.write_text(json.dumps({"type": "Polygon", "coordinates": [above]}))
    return path


@pytest.mark.parametrize(
    "option, code, said",
    (
        ("--tissue={wrong.png}", 3, "wrong.png: expected a tissue mask with the proportions of the slide"),
        ("--tissue={far.geojson}", 3, "far.geojson: expected regions on the slide .* all of them outside"),
        ("--tissue={above.geojson}", 3, "above.geojson: expected regions on the slide .* all of them outside"),
        ("--tissue={none.png}", 3, "none.png"),
        ("--truth={wrong.png}", 3, "wrong.png: expected 200x150 pixels .* found 200x100"),
        ("--truth_region=1,2,3", 2, "--truth_region=1,2,3"),
        ("--truth_region=1,2,3,4", 2, "give the mask with --truth"),
        ("--overlap=0.9", 2, "--overlap=0.9"),
        ("--mpp=0", 2, "--mpp=0"),
        ("--mpp=nan", 2, "--mpp=nan"),
        ("--mpp=250", 2, "--mpp=250.*nanometers"),
        ("--window=0", 2, "--window=0"),
        ("--batch_size=-1", 2, "--batch_size=-1"),
        ("--readers=0", 2, "--readers=0"),
        ("--min_area_um2=-5", 2, "--min_area_um2=-5"),
        ("--shard=0/2", 2, "--shard"),
    ),
)
def test_options_that_do_not_fit_are_an_error_of_one_line(runs, slide, tmp_path, capsys, option, code, said):
    option = re.sub(r"\{(.*)\}", lambda name: str(unfit(tmp_path, name[1])), option)
    assert command(runs[0], slide, tmp_path / "out", option) == code
    assert re.search(said, one_line(capsys))


def test_files_that_are_not_runs_or_slides_are_refused(runs, slide, tmp_path, capsys):
    assert command(tmp_path, slide, tmp_path / "out") == 3
    assert "found no checkpoint" in one_line(capsys)
    assert command(runs[0], tmp_path / "none.svs", tmp_path / "out") == 3
    assert "none.svs" in one_line(capsys)
    assert command(runs[0], tmp_path, tmp_path / "out") == 3
    assert "found a folder; name the file itself (for a DICOM slide, one of its .dcm files)" in one_line(capsys)
    (tmp_path / "text.svs").write_text("no slide")
    assert command(runs[0], tmp_path / "text.svs", tmp_path / "out") == 3
    assert "text.svs" in one_line(capsys)


def test_models_of_different_label_schemes_are_not_compared(runs, slide, tmp_path, capsys):
    other = write_run(tmp_path / "other", scheme="tumor_stroma_other")
    assert command(f"{runs[0]},{other}", slide, tmp_path / "out") == 2
    assert "tumor_stroma_other" in one_line(capsys) and not (tmp_path / "out").exists()


def test_files_added_to_a_finished_folder_are_kept(runs, slide, tmp_path, capsys):
    assert command(runs[0], slide, tmp_path) == 0
    (tmp_path / "case" / "notes.txt").write_text("mine")
    assert command(runs[0], slide, tmp_path) == 0
    assert "done before" in capsys.readouterr().out
    assert command(runs[0], slide, tmp_path, "--overwrite") == 0
    assert (tmp_path / "case" / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("share, code", ((0.005, 0), pytest.param(0.2, 3, marks=pytest.mark.slow)))
def test_tiles_that_cannot_be_decoded_count_as_tissue_without_a_pyramid_too(runs, tmp_path, capsys, share, code):
    pixels = np.full((1024, 1024, 3), (200, 120, 170), np.uint8)
    pixels += np.random.default_rng(0).integers(0, 40, pixels.shape, np.uint8)
    slide = slide_files.tiled(tmp_path / "case.tif", pixels, tile=64)
    whole = slide.read_bytes()
    slide_files.spoil(slide, np.random.default_rng(0).permutation(256)[: round(256 * share)])
    options = (f"--checkpoint={runs[0]}", f"--slide={slide}", f"--output={tmp_path / 'out'}", "--readers=1")
    for _ in range(2):  # a second try has the same outcome
        assert call(*options, "--overwrite") == code
        assert call(*options) == code
    if code:
        assert "over 1% of the tissue cannot be decoded" in capsys.readouterr().err
        slide.write_bytes(whole)  # the slide is fetched again: nothing of the damaged one is left
        assert call(*options) == 0
    summary = summary_of(tmp_path / "out" / "case")
    assert summary["tissue_area_mm2"] == pytest.approx(1024**2 * 0.25**2 / 1e6)
    assert summary["unreadable_area_mm2"] == pytest.approx(0 if code else 64**2 * 0.25**2 / 1e6)


def test_a_slide_in_use_is_retried_at_the_end(runs, tmp_path, capsys):
    for name in ("a", "b"):
        slide_files.tiled(tmp_path / f"{name}.tif", tissue_picture(40, 40)[0])
    (tmp_path / "list.csv").write_text("slide\na.tif\nb.tif\n")
    options = ("--readers=1", *EVERYTHING, f"--checkpoint={runs[0]}", f"--output={tmp_path / 'out'}")
    with files.locked(tmp_path / "out" / "a"):
        assert call(f"--slides={tmp_path / 'list.csv'}", *options) == 75
        assert "other processes are working on 1 of 2 slides (a.tif)" in one_line(capsys)
        assert (tmp_path / "out" / "b" / "summary.json").exists()
    assert call(f"--slides={tmp_path / 'list.csv'}", *options) == 0


def test_regions_on_a_slide_with_bounds_are_read_at_their_place(tmp_path):
    grid = Grid(100, 80, 0.25, (1.0, 1.0))
    square = [[10, 20], [40, 20], [40, 50], [10, 50], [10, 20]]
    (tmp_path / "tissue.geojson").write_text(json.dumps({"type": "Polygon", "coordinates": [square]}))
    at_zero = read_tissue(tmp_path / "tissue.geojson", grid).mask
    shifted = read_tissue(tmp_path / "tissue.geojson", grid, (30, 5)).mask
    assert shifted[30:50, 45:65].all() and (shifted[5:, 30:] == at_zero[:-5, :-30]).all()
