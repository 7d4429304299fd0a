"""Tiles of slides: from tissue alone, the same for the same seed; slides without tissue are named."""

import numpy as np
import pytest
from helpers.slide_files import spoil, tiled

from bcss_jax.errors import ConfigError, DataError
from bcss_jax.pretraining.tiles.slide_search import find_slides
from bcss_jax.pretraining.tiles.slide_tiles import slide_tiles

GLASS = 240


def tissue(height=256, width=512):
    """Glass with a rectangle of tissue in its right half."""
    pixels = np.full((height, width, 3), GLASS, np.uint8)
    pixels[:, width // 2 :] = np.random.default_rng(0).integers(
        (120, 40, 120), (200, 120, 200), (height, width // 2, 3)
    )
    return pixels


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("slides")
    (path / "more").mkdir()
    tiled(path / "a.tif", tissue(), levels=2, mpp=1)
    tiled(path / "more" / "empty.tif", np.full((256, 256, 3), GLASS, np.uint8), mpp=1)
    tiled(path / "a_mask.tif", np.zeros((64, 64), np.uint8), mpp=1)
    return path


def test_tiles_are_drawn_from_tissue_and_what_is_left_out_is_said(folder):
    slides, notes = find_slides([folder], None)
    assert [entry.slide.name for entry in slides] == ["a.tif", "empty.tif"]
    tiles = slide_tiles(slides, 64, mpp=1, per_slide=100, notes=notes)
    assert len(tiles) == 16 and all(int(name.split(" at ")[1].split(",")[0]) >= 256 for name in tiles.names)
    x, y = map(int, tiles.names[5].split(" at ")[1].split(","))
    assert np.array_equal(tiles.images[5], tissue()[y : y + 64, x : x + 64])
    said = "\n".join(tiles.notes)
    assert "16 tiles of 64 pixels at 1 um per pixel from 1 slides" in said
    assert "left out: 1 slides without tissue (empty.tif)" in said
    assert "left out: 1 files that are masks by their name (first a_mask.tif)" in said


def test_the_seed_draws_the_tiles(folder):
    slides, _ = find_slides([folder], None, exclude=["empty"])
    one, same, other = (slide_tiles(slides, 32, mpp=1, per_slide=10, seed=seed).names for seed in (0, 0, 1))
    assert list(one) == list(same) != list(other) and len(one) == 10


def test_slides_without_tissue_are_refused(folder):
    slides, _ = find_slides([folder / "more"], None)
    with pytest.raises(DataError, match=r"found none on any of 1 slides \(empty\.tif\); look at them"):
        slide_tiles(slides, 64, mpp=1)
    slides, _ = find_slides([folder], None, exclude=["empty"])
    with pytest.raises(DataError, match="tiles .* to be held in memory, found config.data.memory_share is 0"):
        slide_tiles(slides, 64, mpp=1, memory_share=0.0)


def test_tiles_that_cannot_be_decoded_are_left_out_and_unusable_slides_are_named(tmp_path):
    spoil(tiled(tmp_path / "a.tif", tissue(), mpp=1), [7])
    slides, _ = find_slides([tmp_path], None)
    tiles = slide_tiles(slides, 64, mpp=1, per_slide=100)
    assert len(tiles) == 15 and "left out: 1 tiles that cannot be decoded" in tiles.notes
    (tmp_path / "b.svs").write_bytes(b"no slide")
    tiled(tmp_path / "c.tif", tissue(), mpp=None)
    slides, _ = find_slides([tmp_path], None)
    with pytest.raises(
        DataError,
        match=r"b\.svs: expected a slide.*exclude=NAME \(2 of 3 slides are unusable\)",
    ):
        slide_tiles(slides, 64, mpp=1)


def test_slides_of_a_list(folder, tmp_path):
    (tmp_path / "slides.csv").write_text(f"slide,mpp\n{folder}/a.tif,2\n{folder}/more/empty.tif,\n")
    slides, notes = find_slides([], tmp_path / "slides.csv", exclude=["empty"])
    assert [entry.mpp for entry in slides] == [2.0] and notes == ("left out: 1 slides that are excluded",)
    for folders, slide_list, found in (([], None, "none"), ([folder], tmp_path / "slides.csv", "both")):
        with pytest.raises(ConfigError, match=f"a folder or a list, found {found}"):
            find_slides(folders, slide_list)
