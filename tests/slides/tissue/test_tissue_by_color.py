"""Tissue found by the color of a thumbnail."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bcss_jax.slides.batch.slide_list import Entry
from bcss_jax.slides.batch.slide_overview import find_tissue
from bcss_jax.slides.grid import Grid
from bcss_jax.slides.reading.reader_pool import Block
from bcss_jax.slides.tissue.tissue_by_color import glass_of, looks_like_glass, tissue_by_color

EOSIN, NUCLEI, PEN = (230, 150, 190), (110, 60, 140), (60, 150, 110)
MPP = (8.0, 8.0)


def glass(height=200, width=300, level=240):
    noise = np.random.default_rng(0).normal(0, 2, (height, width, 1))
    return np.clip(level + noise, 0, 255).astype(np.uint8).repeat(3, axis=2)


def test_glass_has_no_tissue():
    for level in (255, 245, 228):
        assert not tissue_by_color(glass(level=level), MPP).any()
    assert not tissue_by_color(np.full((1, 1, 3), 255, np.uint8), MPP).any()


def test_a_slide_full_of_tissue_is_all_tissue_including_pale_areas():
    image = np.full((200, 300, 3), EOSIN, np.uint8)
    image[:, 150:] = NUCLEI
    assert tissue_by_color(image, MPP).all()


def test_tissue_on_glass_without_dust_and_with_small_holes():
    image = glass()
    image[50:150, 60:200] = EOSIN
    image[90:96, 100:106] = 240  # a vessel
    image[10:14, 250:254] = NUCLEI  # dust
    image[160:190, 220:290] = PEN
    expected = np.zeros((200, 300), bool)
    expected[50:150, 60:200] = True
    found = tissue_by_color(image, MPP)
    # The blur moves outlines by about its own width, which is one pixel here.
    assert (found != expected).sum() < 2 * 2 * (100 + 140)
    assert found[92, 102] and not found[:40].any() and not found[155:].any()


def test_tissue_is_found_in_real_tiles_with_tissue_and_not_in_others(shared):
    folder = shared / "data/edge_tiles"

    def share(name):
        pixels = np.asarray(Image.open(folder / f"{name}.png").convert("RGBA")).astype(float)
        opaque = pixels[..., 3:] / 255
        return tissue_by_color((pixels[..., :3] * opaque + 255 * (1 - opaque)).astype(np.uint8), (1.0, 1.0)).mean()

    for name in ("almost-white-1", "no-tissue", "no-tissue2", "no-tissue-green-pen"):
        assert share(name) < 0.005, name
    assert 0.4 < share("medium-nuclei-score-level1") < 0.8
    assert 0.75 < share("tcga-green-pen") < 0.95


def patch_on(color, tissue=(200, 110, 160)):
    """Returns an image of glass of a color with noise and a quarter of tissue, and the mask of the tissue."""
    image, expected = np.full((200, 300, 3), color, np.int16), np.zeros((200, 300), bool)
    expected[50:150, 75:225] = True
    image[expected] = tissue
    image += np.random.default_rng(0).integers(-2, 3, image.shape)
    return np.clip(image, 0, 255).astype(np.uint8), expected


@pytest.mark.parametrize(
    "color", [(255, 255, 255), (240, 240, 240), (205, 200, 188), (190, 185, 180), (215, 205, 175), (195, 200, 215)]
)
@pytest.mark.parametrize("filling", [None, 0, 255])
def test_tissue_is_found_on_dim_and_tinted_glass_and_not_in_padding(color, filling):
    image, expected = patch_on(color)
    if filling is not None:
        image[:, 260:] = image[180:] = filling
        image[:180, 259] = image[:180, 259] // 2 + filling // 2  # as a thumbnail mixes them
    found = tissue_by_color(image, MPP)
    assert (found != expected).sum() < 2 * 2 * (100 + 150)
    assert not found[:, 230:].any() and not found[160:].any()


def test_padding_next_to_tissue_keeps_the_tissue():
    image = np.zeros((200, 300, 3), np.uint8)
    image[:, :150], image[100:, :150] = EOSIN, NUCLEI
    found = tissue_by_color(image, MPP)
    assert found[:, :140].all() and not found[:, 150:].any()
    assert not tissue_by_color(np.zeros((50, 50, 3), np.uint8), MPP).any()


def test_unreadable_black_counts_as_tissue():
    image = np.zeros((40, 40, 3), np.uint8)
    assert tissue_by_color(image, MPP, np.ones((40, 40), bool)).all()


def test_glass_is_not_measured_on_a_slide_without_glass():
    everywhere = np.ones((200, 300), bool)
    assert glass_of(np.full((200, 300, 3), EOSIN, np.uint8), everywhere) is None
    image, tissue = patch_on((205, 200, 188))
    np.testing.assert_allclose(glass_of(image, everywhere), (205, 200, 188), atol=1)
    image[:192] = EOSIN
    assert glass_of(image, everywhere) is None  # 4 % of the slide is glass


def test_glass_that_was_taken_for_tissue_is_recognized(shared):
    image, _ = patch_on((160, 140, 90))
    found = tissue_by_color(image, MPP)
    assert found.mean() > 0.99 and looks_like_glass(image, found)
    real = Image.open(shared / "data/slides/TCGA-A2-A0D2_pyramid.tif")
    real.seek(3)
    real = np.asarray(real.convert("RGB"))
    found = tissue_by_color(real, (2.0, 2.0))
    assert found.all() and not looks_like_glass(real, found)
    assert not looks_like_glass(real, np.zeros_like(found))


def test_a_slide_that_is_all_of_one_color_is_said():
    grid, entry = Grid(1500, 1000, 1.6, (1.0, 1.0)), Entry(Path("case.tif"))
    for color, lines in (((160, 140, 90), 1), ((205, 200, 188), 0), ((255, 255, 255), 0)):
        said = []
        image, expected = patch_on(color)
        tissue = find_tissue(entry, Block(image, None), grid, None, said.append)
        assert len(said) == lines
        assert all("case.tif: nearly the whole slide is taken for tissue" in line for line in said)
        assert tissue.mask.all() == bool(lines) and tissue.mask[expected].mean() > 0.98
