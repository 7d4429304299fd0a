"""Tiles of folders: any sizes and formats, what is left out is said, and what cannot be used is refused in one line."""

import itertools

import numpy as np
import pytest
from PIL import Image

from bcss_jax.errors import ConfigError, DataError
from bcss_jax.pretraining.tiles.batches import batches
from bcss_jax.pretraining.tiles.folder_tiles import folder_tiles

SIZE = 32
RNG = np.random.default_rng(0)


def stained(height, width):
    return RNG.integers(60, 200, (height, width, 3), np.uint8)


def save(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return pixels


@pytest.fixture
def folder(tmp_path):
    save(tmp_path / "a" / "P1_one.png", stained(SIZE, SIZE))
    save(tmp_path / "a" / "P2_wide.tif", stained(SIZE, 80))
    save(tmp_path / "b" / "c" / "P3_tall.PNG", stained(70, SIZE))
    save(tmp_path / "b" / "small.png", stained(SIZE - 1, 100))
    save(tmp_path / "b" / "mask.png", np.ones((50, 50), np.uint8))
    save(tmp_path / "b" / "colors.png", RNG.choice(np.array([[200, 0, 0], [0, 0, 200]], np.uint8), (50, 50)))
    save(tmp_path / "b" / ".hidden.png", stained(50, 50))
    half = stained(SIZE, 2 * SIZE)
    half[:, SIZE:] = 240
    save(tmp_path / "glass.png", half)
    (tmp_path / "notes.txt").write_text("no image")
    return tmp_path


def test_every_image_is_covered_by_a_grid_and_what_is_left_out_is_said(folder):
    tiles = folder_tiles([folder], SIZE)
    assert list(tiles.names) == [
        "glass.png at 0,0",
        "a/P1_one.png",
        *(f"a/P2_wide.tif at {x},0" for x in (0, 24, 48)),
        *(f"b/c/P3_tall.PNG at 0,{y}" for y in (0, 19, 38)),
    ]
    wide = np.asarray(Image.open(folder / "a" / "P2_wide.tif"))
    assert np.array_equal(tiles.read(np.array([3, 2])), np.stack([wide[:, 24:56], wide[:, :32]]))
    notes = "\n".join(tiles.notes)
    assert "8 tiles of 32 pixels from 4 images" in notes
    assert "left out: 1 images that are smaller than 32 pixels (b/small.png)" in notes
    assert "left out: 1 images that are not 8-bit RGB, such as masks (b/mask.png)" in notes
    assert "left out: 1 images with few colors, such as masks (b/colors.png)" in notes
    assert "left out: 1 tiles that show glass" in notes
    assert "held in memory: 0.00 GB, at most" in notes


def test_tiles_that_do_not_fit_into_memory_are_decoded_when_they_are_read(folder):
    held, decoded = folder_tiles([folder], SIZE), folder_tiles([folder], SIZE, memory_share=0.0)
    assert any("decoded whenever they are read: config.data.memory_share is 0" in note for note in decoded.notes)
    assert list(decoded.names) == list(held.names)
    indices = np.array([5, 0, 4, 2])
    assert np.array_equal(held.read(indices), decoded.read(indices))
    for one, other in itertools.islice(zip(batches(held, 3, 0), batches(decoded, 3, 0), strict=True), 3):
        assert np.array_equal(one.images, other.images)


def test_excluded_patients_are_left_out(folder):
    tiles = folder_tiles([folder], SIZE, exclude=("P2_", "b/c/"))
    assert list(tiles.names) == ["glass.png at 0,0", "a/P1_one.png"]
    assert "left out: 2 images that are excluded" in tiles.notes
    with pytest.raises(ConfigError, match="'P9', which is in none; correct it"):
        folder_tiles([folder], SIZE, exclude=("P2_", "P9"))
    with pytest.raises(DataError, match="all excluded; exclude less"):
        folder_tiles([folder], SIZE, exclude=("*",))


def test_transparent_pixels_become_white(tmp_path):
    pixels = np.concatenate([stained(SIZE, SIZE), np.full((SIZE, SIZE, 1), 255, np.uint8)], -1)
    pixels[0, 0, 3] = 0
    save(tmp_path / "rgba.png", pixels)
    tile = folder_tiles([tmp_path], SIZE).read(np.array([0]))[0]
    assert tile[0, 0].tolist() == [255] * 3 and np.array_equal(tile[1], pixels[1, :, :3])


def test_links_in_a_circle_end(folder):
    (folder / "a" / "again").symlink_to(folder)
    assert len(folder_tiles([folder], SIZE)) == 8


def test_folders_without_usable_images_are_refused(tmp_path):
    with pytest.raises(DataError, match="none: expected a readable folder of images, found: no such folder; correct"):
        folder_tiles([tmp_path / "none"], SIZE)
    with pytest.raises(DataError, match="in this folder or below it, found none; correct the path"):
        folder_tiles([tmp_path], SIZE)
    save(tmp_path / "small.png", stained(20, 24))
    save(tmp_path / "mask.png", np.ones((50, 50), np.uint8))
    with pytest.raises(
        DataError,
        match="found 1 smaller ones and 1 that .*; lower --config.data.tile_size to at most 20",
    ):
        folder_tiles([tmp_path], SIZE)
    save(tmp_path / "glass.png", np.full((40, 40, 3), 240, np.uint8))
    with pytest.raises(
        DataError, match="images of tissue, found none .*left out: 4 tiles that show glass.*; add images"
    ):
        folder_tiles([tmp_path], SIZE)


def test_damaged_images_are_named(folder):
    whole = (folder / "a" / "P1_one.png").read_bytes()
    (folder / "a" / "P1_one.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(
        DataError, match=r"P1_one\.png: expected a readable PNG.*out with --config.data.exclude=NAME"
    ) as error:
        folder_tiles([folder], SIZE)
    assert "\n" not in str(error.value)
    (folder / "b" / "empty.jpg").write_bytes(b"")
    with pytest.raises(DataError, match=r"empty\.jpg: expected a readable PNG.*found an empty file"):
        folder_tiles([folder], SIZE)
    assert len(folder_tiles([folder], SIZE, exclude=("P1_one", "empty"))) == 7
