"""Tissue found by colour, and where it asks for windows."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from bcss_jax.slides.grid import Grid
from bcss_jax.slides.tissue import Tissue, tissue_by_colour
from bcss_jax.slides.windows import windows_of

EOSIN, NUCLEI, PEN = (230, 150, 190), (110, 60, 140), (60, 150, 110)
MPP = (8.0, 8.0)


def glass(height=200, width=300, level=240):
    noise = np.random.default_rng(0).normal(0, 2, (height, width, 1))
    return np.clip(level + noise, 0, 255).astype(np.uint8).repeat(3, axis=2)


def test_glass_alone_has_no_tissue():
    for level in (255, 245, 228):
        assert not tissue_by_colour(glass(level=level), MPP).any()
    assert not tissue_by_colour(np.full((1, 1, 3), 255, np.uint8), MPP).any()


def test_a_slide_of_tissue_alone_is_tissue_pale_parts_too():
    image = np.full((200, 300, 3), EOSIN, np.uint8)
    image[:, 150:] = NUCLEI
    assert tissue_by_colour(image, MPP).all()


def test_tissue_on_glass_without_dust_and_with_small_holes():
    image = glass()
    image[50:150, 60:200] = EOSIN
    image[90:96, 100:106] = 240  # a vessel
    image[10:14, 250:254] = NUCLEI  # dust
    image[160:190, 220:290] = PEN
    expected = np.zeros((200, 300), bool)
    expected[50:150, 60:200] = True
    found = tissue_by_colour(image, MPP)
    # The blur moves outlines by about its own width, a pixel here.
    assert (found != expected).sum() < 2 * 2 * (100 + 140)
    assert found[92, 102] and not found[:40].any() and not found[155:].any()


def test_real_tiles_without_tissue_have_none_and_those_with_tissue_have_some(shared):
    folder = shared / "data/edge_tiles"

    def share(name):
        pixels = np.asarray(Image.open(folder / f"{name}.png").convert("RGBA")).astype(float)
        opaque = pixels[..., 3:] / 255
        return tissue_by_colour((pixels[..., :3] * opaque + 255 * (1 - opaque)).astype(np.uint8), (1.0, 1.0)).mean()

    for name in ("almost-white-1", "no-tissue", "no-tissue2", "no-tissue-green-pen"):
        assert share(name) < 0.005, name
    assert 0.4 < share("medium-nuclei-score-level1") < 0.8
    assert 0.75 < share("tcga-green-pen") < 0.95


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 50), st.integers(1, 50), st.integers(1, 20), st.integers(1, 20), st.integers(0, 2**32 - 1))
def test_windows_are_those_whose_cell_has_tissue(height, width, rows, columns, seed):
    mask = np.random.default_rng(seed).random((rows, columns)) < 0.1
    tissue = Tissue(mask, Grid(width, height, 0.25, (1.0, 1.0)))
    windows = windows_of(height, width, 8, 0.25)
    chosen = tissue.windows(windows)
    whole = tissue.pixels(0, height, 0, width)
    assert whole.shape == (height, width)
    for row in range(windows.rows):
        for column in range(windows.columns):
            top, left = row * windows.stride, column * windows.stride
            cell = whole[top : top + windows.stride, left : left + windows.stride]
            # A mask finer than the grid may have tissue between the pixels that stand for it.
            assert chosen[row, column] or not cell.any()
            if rows <= height and columns <= width:
                assert chosen[row, column] == cell.any()
