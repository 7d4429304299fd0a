import numpy as np
import pytest
import tifffile
from helpers.slide_files import difference, own_grid, picture, tiled, whole
from PIL import Image

from bcss_jax.slides.grid import grid_of
from bcss_jax.slides.reading import read_block as read_block_module
from bcss_jax.slides.reading.backend import Level
from bcss_jax.slides.reading.open_slide import open_slide
from bcss_jax.slides.reading.read_block import best_level, read_block


def random_blocks(grid, count, seed=0, side=90):
    rng = np.random.default_rng(seed)
    for _ in range(count):
        x, y = int(rng.integers(grid.width)), int(rng.integers(grid.height))
        width, height = (int(rng.integers(1, min(side, room) + 1)) for room in (grid.width - x, grid.height - y))
        yield x, y, width, height


@pytest.mark.parametrize(
    "scale, level", [(0.5, 0), (1.0, 0), (0.9992, 0), (1.9, 0), (1.9984, 1), (2.0, 1), (7.8, 1), (8.0, 2), (99.0, 2)]
)
def test_the_best_level_is_the_coarsest_that_is_not_coarser_than_the_grid(scale, level):
    assert best_level((Level(800, 800, 1.0), Level(400, 400, 2.0), Level(100, 100, 8.0)), scale) == level


def test_pixels_are_copied_at_the_slides_own_resolution(tmp_path):
    pixels = picture(301, 203)
    slide = open_slide(tiled(tmp_path / "a.tif", pixels, levels=2))
    grid = own_grid(slide)
    for x, y, width, height in random_blocks(grid, 30):
        block, unreadable = read_block(slide, grid, x, y, width, height)
        assert unreadable is None
        np.testing.assert_array_equal(block, pixels[y : y + height, x : x + width])


@pytest.mark.parametrize("model_mpp", [0.11, 0.3, 0.4, 0.5, 0.7, 1.3, 3.1])
def test_a_pixel_does_not_depend_on_its_block(tmp_path, model_mpp):
    slide = open_slide(tiled(tmp_path / "a.tif", picture(301, 203), levels=2))
    grid = own_grid(slide, model_mpp=model_mpp)
    everything, _ = read_block(slide, grid, 0, 0, grid.width, grid.height)
    for x, y, width, height in random_blocks(grid, 20):
        block, _ = read_block(slide, grid, x, y, width, height)
        apart = difference(block, everything[y : y + height, x : x + width])
        assert apart.max() <= 1, (x, y, width, height)


@pytest.mark.parametrize("model_mpp", [0.11, 0.33, 0.7, 1.3])
def test_blocks_are_resampled_like_the_whole_image(tmp_path, model_mpp):
    pixels = picture(301, 203)
    slide = open_slide(tiled(tmp_path / "a.tif", pixels))
    grid = own_grid(slide, model_mpp=model_mpp)
    rows = Image.fromarray(pixels).resize((grid.width, 203), Image.Resampling.LANCZOS)
    expected = np.asarray(rows.resize((grid.width, grid.height), Image.Resampling.LANCZOS))
    for x, y, width, height in random_blocks(grid, 10):
        block, _ = read_block(slide, grid, x, y, width, height)
        assert difference(block, expected[y : y + height, x : x + width]).max() <= 1


def test_a_level_of_the_grids_resolution_is_copied(tmp_path):
    pixels = picture(304, 208)
    slide = open_slide(tiled(tmp_path / "a.tif", pixels, levels=3))
    block, _ = read_block(slide, own_grid(slide, model_mpp=0.5), 10, 20, 100, 50)
    np.testing.assert_array_equal(block, pixels[::2, ::2][20:70, 10:110])
    block, _ = read_block(slide, own_grid(slide, mpp=0.2502, model_mpp=1.0), 0, 0, 70, 50)
    np.testing.assert_array_equal(block, pixels[::4, ::4][:50, :70])


def test_a_large_reduction_is_the_mean_of_areas_in_bounded_pieces(tmp_path, monkeypatch):
    pixels = picture(640, 480)
    slide = open_slide(tiled(tmp_path / "a.tif", pixels))
    grid = own_grid(slide, model_mpp=0.25 * 16)
    expected = pixels.reshape(30, 16, 40, 16, 3).mean(axis=(1, 3))
    block, _ = read_block(slide, grid, 0, 0, 40, 30)
    assert difference(block, expected).max() <= 1
    monkeypatch.setattr(read_block_module, "SOURCE_PIXELS", 100 * 100)
    sizes = []
    read = slide.read
    monkeypatch.setattr(slide, "read", lambda level, x, y, w, h: sizes.append(w * h) or read(level, x, y, w, h))
    in_pieces, _ = read_block(slide, grid, 0, 0, 40, 30)
    assert difference(in_pieces, block).max() <= 1
    assert len(sizes) == 7 * 5 and max(sizes) < 2 * 100 * 100


def test_pixels_that_are_not_square(tmp_path):
    pixels = picture(300, 200)
    slide = open_slide(tiled(tmp_path / "a.tif", pixels))
    grid = grid_of(300, 200, (0.25, 0.5), 0.25)
    assert (grid.width, grid.height) == (300, 400)
    block, _ = read_block(slide, grid, 50, 60, 100, 90)
    expected = np.asarray(Image.fromarray(pixels).resize((300, 400), Image.Resampling.LANCZOS))[60:150, 50:150]
    assert difference(block, expected).max() <= 1


@pytest.mark.parametrize("size", [(1, 1), (1, 700), (3, 2)])
@pytest.mark.parametrize("model_mpp", [0.25, 0.1, 0.6])
def test_very_small_slides(tmp_path, size, model_mpp):
    slide = open_slide(tiled(tmp_path / "a.tif", picture(*size)))
    grid = own_grid(slide, model_mpp=model_mpp)
    block, unreadable = read_block(slide, grid, 0, 0, grid.width, grid.height)
    assert block.shape == (grid.height, grid.width, 3) and unreadable is None


@pytest.mark.parametrize("box", [(-1, 0, 5, 5), (0, 0, 0, 5), (95, 0, 6, 5), (0, 76, 5, 5)])
def test_blocks_outside_the_grid_are_refused(tmp_path, box):
    slide = open_slide(tiled(tmp_path / "a.tif", picture(100, 80)))
    with pytest.raises(ValueError, match="does not lie in a grid of 100x80"):
        read_block(slide, own_grid(slide), *box)


# Real slides.


def test_a_20x_slide_for_a_40x_model(shared):
    slide = open_slide(shared / "data/slides/CMU-1-Small-Region.svs")
    assert (slide.format, slide.mpp, slide.levels) == ("aperio", (0.499, 0.499), (Level(2220, 2967, 1.0),))
    grid = grid_of(2220, 2967, slide.mpp, 0.25)
    assert (grid.width, grid.height) == (4431, 5922)
    expected = np.asarray(Image.fromarray(whole(slide)).resize((4431, 5922), Image.Resampling.LANCZOS))
    for x, y, width, height in [(0, 0, 512, 512), (3919, 5410, 512, 512), *random_blocks(grid, 6, side=600)]:
        block, _ = read_block(slide, grid, x, y, width, height)
        apart = difference(block, expected[y : y + height, x : x + width])
        # Pixels are rounded after each axis, so they differ by one level, and rarely by two.
        assert apart.max() <= 2 and np.mean(apart > 1) < 1e-4


def test_a_pyramid(shared):
    path = shared / "data/slides/TCGA-A2-A0D2_pyramid.tif"
    slide = open_slide(path)
    assert slide.mpp == (0.25, 0.25)
    assert [level.downsample for level in slide.levels] == [1.0, 2.0, 4.0, 8.0]
    grid = own_grid(slide, model_mpp=0.5)
    everything, _ = read_block(slide, grid, 0, 0, grid.width, grid.height)
    for x, y, width, height in random_blocks(grid, 6, side=600):
        block, _ = read_block(slide, grid, x, y, width, height)
        assert difference(block, everything[y : y + height, x : x + width]).max() <= 1
    # OpenSlide shifts the tiles of a level of half the size by a fraction of a pixel.
    assert difference(whole(slide, 1), tifffile.imread(path, series=0, level=1)).mean() < 4
