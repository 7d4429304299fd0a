import numpy as np
import pytest
import tifffile
from helpers.slide_files import overwrite, whole

from bcss_jax.slides.reading.open_slide import open_slide

TAGS = {"photometric": "rgb", "metadata": None, "resolution": (40_000, 40_000), "resolutionunit": "CENTIMETER"}


def stained(width=1024, height=768):
    """Returns an image that is glass on the right and noisy stain on the left."""
    noise = np.random.default_rng(0).integers(-20, 21, (height, width, 3))
    colors = np.where(np.arange(width)[None, :, None] < width // 2, (180, 100, 160), (240, 240, 240))
    return np.clip(colors + noise, 0, 255).astype(np.uint8)


SLIDE = stained()
LEVELS = [np.ascontiguousarray(SLIDE[::step, ::step]) for step in (2, 4, 8)]


def write(path, levels, **options):
    with tifffile.TiffWriter(path) as tiff:
        for number, pixels in enumerate([SLIDE, *levels]):
            tiff.write(pixels, tile=(64, 64), subfiletype=int(number > 0), **TAGS, **options)
    return path


@pytest.mark.parametrize("options", [{}, {"compression": "jpeg"}, {"extratags": [(274, 3, 1, 3, True)]}])
def test_sound_levels_are_used(tmp_path, options):
    slide = open_slide(write(tmp_path / "a.tif", LEVELS, **options))
    assert len(slide.levels) == 4
    assert not any("not used" in note for note in slide.notes)


@pytest.mark.parametrize("kind", ["black", "white", "mirrored"])
def test_levels_that_show_something_else_are_not_used(tmp_path, kind):
    change = {"black": lambda x: x * 0, "white": lambda x: x * 0 + 255, "mirrored": lambda x: x[:, ::-1]}[kind]
    slide = open_slide(write(tmp_path / "a.tif", [LEVELS[0], *(change(level).copy() for level in LEVELS[1:])]))
    assert [level[:2] for level in slide.levels] == [(1024, 768), (512, 384)]
    assert "256x192 pixels shows something else than the finest level; 2 of its 4 levels are not used" in slide.notes[0]
    np.testing.assert_array_equal(whole(slide), SLIDE)


@pytest.mark.parametrize("kind", ["sound", "mirrored", "another slide"])
def test_levels_of_the_same_mean_color_are_compared_in_detail(tmp_path, kind):
    """Tissue everywhere, in patches of 32 pixels whose colors are spread by 40 gray levels around one mean."""
    one, other = (
        np.random.default_rng(seed).integers(-40, 41, (24, 32, 1)).repeat(32, 0).repeat(32, 1) + (190, 110, 170)
        for seed in range(2)
    )
    level = {"sound": one, "mirrored": one[:, ::-1], "another slide": other}[kind][::2, ::2]
    with tifffile.TiffWriter(tmp_path / "a.tif") as tiff:
        for pixels in (one, level):
            pixels = np.ascontiguousarray(pixels.astype(np.uint8))
            tiff.write(pixels, tile=(64, 64), subfiletype=int(pixels.shape[0] < 768), **TAGS)
    slide = open_slide(tmp_path / "a.tif")
    assert len(slide.levels) == (2 if kind == "sound" else 1)
    assert any("shows something else than the finest level" in note for note in slide.notes) is (kind != "sound")


def test_a_level_with_tiles_that_are_not_in_the_file_is_not_used(tmp_path):
    path = write(tmp_path / "a.tif", LEVELS)
    with tifffile.TiffFile(path) as tiff:
        counts = list(tiff.pages[1].databytecounts)
    counts[20] = 0  # between the spots that are compared
    overwrite(path, page=1, TileByteCounts=counts)
    slide = open_slide(path)
    assert [level[:2] for level in slide.levels] == [(1024, 768)]
    assert "512x384 pixels lacks tiles that the finest level has; 3 of its 4 levels are not used" in slide.notes[0]
