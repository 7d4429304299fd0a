"""DICOM slides that OpenSlide refuses are read with wsidicom, from a file or a folder of instances."""

import sys

import numpy as np
import pytest
from helpers.dicom_files import write_instance
from helpers.paths import DATA
from helpers.slide_files import difference, picture, whole

from bcss_jax.errors import DataError
from bcss_jax.slides.reading.backend import Level, TileError
from bcss_jax.slides.reading.open_slide import open_slide


@pytest.fixture
def folder(tmp_path):
    """A folder of two levels and a label, without endings, as exports have them."""
    pixels = picture(300, 200)
    write_instance(tmp_path / "IM1", pixels, number=1)
    write_instance(tmp_path / "IM2", pixels[::2, ::2], mpp=0.5, number=2)
    write_instance(tmp_path / "IM3", pixels[:50, :60], image_type="LABEL", number=3)
    (tmp_path / "notes.txt").write_text("no DICOM")
    return tmp_path


@pytest.mark.parametrize("name", ("", "IM1", "IM2", "IM3"))
def test_a_folder_and_each_file_of_it_open_the_whole_slide(folder, name):
    slide, pixels = open_slide(folder / name), picture(300, 200)
    assert (slide.format, slide.mpp, slide.notes) == ("dicom", (0.25, 0.25), ())
    assert slide.levels == (Level(300, 200, 1.0), Level(150, 100, 2.0)) and slide.tile_size(1) == (64, 64)
    for level in range(2):
        assert difference(whole(slide, level), pixels[:: 2**level, :: 2**level]).mean() < 8
        np.testing.assert_array_equal(slide.read(level, 33, 21, 70, 50), whole(slide, level)[21:71, 33:103])
    slide.close()


def test_a_real_slide_has_the_pixels_of_the_scanners_file():
    folder, svs = DATA / "formats/wsic/CMU-1-Small-Region_dicom", DATA / "slides/CMU-1-Small-Region.svs"
    if not (folder.is_dir() and svs.is_file()):
        pytest.skip(f"needs {folder}")
    slide, original = open_slide(folder), open_slide(svs)
    assert slide.levels == original.levels and slide.mpp == pytest.approx(original.mpp)
    np.testing.assert_array_equal(slide.read(0, 700, 900, 600, 500), original.read(0, 700, 900, 600, 500))


def test_what_is_no_single_slide_is_named(folder, tmp_path):
    def reason(path):
        with pytest.raises(DataError) as caught:
            open_slide(path)
        return str(caught.value)

    pixels, other = picture(100, 80), tmp_path / "other"
    other.mkdir()
    assert "found a folder; name the file itself" in reason(other)
    write_instance(other / "label.dcm", pixels, image_type="LABEL")
    assert "found a folder with LABEL" in reason(other)
    assert "found only LABEL of its series" in reason(other / "label.dcm")
    write_instance(other / "ct.dcm", pixels, series="1.2.9", whole_slide=False)
    assert "found DICOM of another kind (CT Image Storage)" in reason(other / "ct.dcm")
    write_instance(folder / "second", pixels, series="1.2.10")
    assert "found a folder with 2 DICOM slides" in reason(folder)
    assert open_slide(folder / "second").levels == (Level(100, 80, 1.0),)


def test_a_finest_level_that_is_damaged_is_not_replaced_by_a_coarser_one(folder):
    path = folder / "IM1"
    content = path.read_bytes()
    path.write_bytes(content.replace(b"YBR_FULL", b"YBR_ODD "))
    with pytest.raises(DataError, match="finest level .300x200. is damaged or of a kind"):
        open_slide(folder)


def test_tiles_that_cannot_be_decoded_are_errors_and_the_others_are_read(folder):
    path, content = folder / "IM1", (folder / "IM1").read_bytes()
    first = content.index(b"\xff\xd8\xff")
    path.write_bytes(content[:first] + bytes(300) + content[first + 300 :])
    slide = open_slide(path)
    with pytest.raises(TileError):
        slide.read(0, 0, 0, 64, 64)
    assert difference(slide.read(0, 64, 64, 64, 64), picture(300, 200)[64:128, 64:128]).mean() < 8
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(TileError):
        open_slide(path).read(0, 0, 0, 64, 64)


def test_without_the_optional_reader_the_command_that_installs_it_is_named(folder, monkeypatch):
    for name in ("wsidicom", "pydicom"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, "bcss_jax.slides.reading.dicom.wsidicom_backend", raising=False)
    for path in (folder, folder / "IM1"):
        with pytest.raises(DataError, match=r'pip install "bcss_jax\[dicom\]"'):
            open_slide(path)
