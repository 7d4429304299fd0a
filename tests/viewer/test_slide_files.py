"""The file that is used for a slide that is not where it was segmented."""

import os
import shutil
from pathlib import Path

import pytest
from helpers.viewer_small import blobs, write_result

from bcss_jax.errors import DataError
from bcss_jax.slides.slide_summary import read_summary
from bcss_jax.viewer import slide_files
from bcss_jax.viewer.slide_files import SlideFiles


@pytest.fixture
def elsewhere(tmp_path):
    """A folder for slides."""
    (tmp_path / "elsewhere/1").mkdir(parents=True)
    (tmp_path / "elsewhere/2/deep").mkdir(parents=True)
    return tmp_path / "elsewhere"


@pytest.fixture
def summary(tmp_path, elsewhere):
    write_result(tmp_path / "out", tmp_path / "HE.png", 80, 60, blobs(60, 80))
    return read_summary(tmp_path / "out/summary.json")


def test_a_slide_that_was_not_moved_is_used(summary, elsewhere, tmp_path):
    shutil.copy(tmp_path / "HE.png", elsewhere / "1/HE.png")
    assert SlideFiles(elsewhere).path_of(summary) == tmp_path / "HE.png"
    assert SlideFiles(None).path_of(summary) == tmp_path / "HE.png"


def test_among_files_of_the_same_name_the_one_with_the_same_content_is_used(summary, elsewhere, tmp_path):
    content = (tmp_path / "HE.png").read_bytes()
    (elsewhere / "1/HE.png").write_bytes(bytes([content[0] ^ 1]) + content[1:])  # of the same size
    (elsewhere / "HE.png").write_bytes(content[:-1])
    (elsewhere / "2/other.png").write_bytes(content)
    (tmp_path / "HE.png").unlink()
    files = SlideFiles(elsewhere)
    with pytest.raises(
        DataError, match=r"HE\.png: the slide is not there any more, and .* is a different file \(its size or"
    ):
        files.path_of(summary)
    (elsewhere / "2/deep/HE.png").write_bytes(content)
    with pytest.raises(DataError):
        files.path_of(summary)
    files.update()
    assert files.path_of(summary) == elsewhere / "2/deep/HE.png"


def test_no_file_has_the_name_of_the_slide(summary, elsewhere, tmp_path):
    (tmp_path / "HE.png").rename(elsewhere / "1/renamed.png")
    with pytest.raises(DataError, match=r"HE\.png: .* and no file of its name is in .*elsewhere or its subfolders$"):
        SlideFiles(elsewhere).path_of(summary)
    with pytest.raises(DataError, match=r"HE\.png: .*\(if it was moved, start the viewer with --slides=FOLDER\)"):
        SlideFiles(None).path_of(summary)


def test_a_folder_that_cannot_be_read_is_named(summary, elsewhere, tmp_path, monkeypatch):
    (tmp_path / "HE.png").unlink()
    scan = os.scandir

    def refused(path):
        if str(path).endswith("elsewhere/2"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refused)
    with pytest.raises(DataError, match=r"or its subfolders, but .*elsewhere/2 cannot be read \(Permission denied\)"):
        SlideFiles(elsewhere).path_of(summary)


def test_links_out_of_the_folder_are_not_followed(summary, elsewhere, tmp_path):
    (tmp_path / "outside").mkdir()
    (tmp_path / "HE.png").rename(tmp_path / "outside/HE.png")
    os.symlink(tmp_path / "outside/HE.png", elsewhere / "1/HE.png")
    os.symlink(tmp_path / "outside", elsewhere / "3")
    os.symlink(elsewhere, elsewhere / "circle")
    files = SlideFiles(elsewhere)
    with pytest.raises(DataError, match="no file of its name"):
        files.path_of(summary)
    (tmp_path / "outside/HE.png").rename(elsewhere / "2/deep/x")
    os.symlink(elsewhere / "2/deep/x", elsewhere / "HE.png")  # a link within the folder is followed
    files.update()
    assert files.path_of(summary) == elsewhere / "HE.png"


def test_the_folder_itself_may_be_a_link(summary, elsewhere, tmp_path):
    os.symlink(elsewhere, tmp_path / "link")
    (tmp_path / "HE.png").rename(elsewhere / "1/HE.png")
    assert SlideFiles(tmp_path / "link").path_of(summary) == elsewhere / "1/HE.png"


def test_a_slide_that_was_segmented_through_a_link_is_found_by_both_names(elsewhere, tmp_path):
    write_result(tmp_path / "out", tmp_path / "store-17.png", 80, 60, blobs(60, 80))
    text = (tmp_path / "out/summary.json").read_text()
    (tmp_path / "out/summary.json").write_text(text.replace('"name": "store-17.png"', '"name": "HE.png"'))
    found = read_summary(tmp_path / "out/summary.json")
    assert (found.slide.name, Path(found.slide.path).name) == ("HE.png", "store-17.png")
    (tmp_path / "store-17.png").rename(elsewhere / "1/store-17.png")
    assert SlideFiles(elsewhere).path_of(found) == elsewhere / "1/store-17.png"
    (elsewhere / "1/store-17.png").rename(elsewhere / "HE.png")
    assert SlideFiles(elsewhere).path_of(found) == elsewhere / "HE.png"


def test_a_file_is_hashed_again_only_if_it_has_changed(summary, elsewhere, tmp_path, monkeypatch):
    (tmp_path / "HE.png").rename(elsewhere / "1/HE.png")
    hashed, fingerprints = [], slide_files.fingerprints
    monkeypatch.setattr(slide_files, "fingerprints", lambda path: hashed.append(path) or fingerprints(path))
    files = SlideFiles(elsewhere)
    for _ in range(3):
        files.path_of(summary)
    assert len(hashed) == 1
    content = (elsewhere / "1/HE.png").read_bytes()
    (elsewhere / "1/HE.png").write_bytes(content[:-1] + b"x")
    os.utime(elsewhere / "1/HE.png", (1, 1))
    with pytest.raises(DataError, match="is a different file"):
        files.path_of(summary)
    assert len(hashed) == 2
