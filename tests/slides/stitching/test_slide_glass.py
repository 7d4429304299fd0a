"""Glass inside tissue gets no label, and does not depend on cells, blocks, windows, readers or stops."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest
from helpers import slide_files
from helpers.slides_small import color_model

from bcss_jax.common.interruption import Interruption
from bcss_jax.errors import Preempted
from bcss_jax.inference.slide_model import SlideModel, WindowPredictor
from bcss_jax.slides.classes import classes_of
from bcss_jax.slides.grid import grid_of
from bcss_jax.slides.reading.backend import Level
from bcss_jax.slides.reading.reader_pool import ReaderPool
from bcss_jax.slides.stitching import block_cache, labeling, slide_glass
from bcss_jax.slides.stitching.blend import blend_weights
from bcss_jax.slides.stitching.slide_glass import SlideGlass, glass_grid
from bcss_jax.slides.store.tile_store import TileStore
from bcss_jax.slides.tissue.tissue_mask import Tissue
from bcss_jax.slides.windows import windows_of
from bcss_jax.training.sharding import make_mesh, replicated

GLASS = np.array([240.0, 240.0, 240.0])
MPP = (0.25, 0.25)
HEIGHT, WIDTH = 700, 900


def picture():
    """Tissue with a lumen, a tear that crosses the whole slide, gaps between fibers, and pale glass-like edges."""
    rng = np.random.default_rng(0)
    coarse = rng.random((HEIGHT // 20 + 1, WIDTH // 20 + 1))
    pale = np.kron(coarse, np.ones((20, 20)))[:HEIGHT, :WIDTH]
    pixels = np.stack([210 + 30 * pale, 90 + 150 * pale**0.3, 170 + 60 * pale], axis=2)
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    glass = (rows - 300) ** 2 + (columns - 450) ** 2 < 150**2
    glass |= abs(rows - 600 + columns // 9) < 40
    glass |= columns % 200 < 12
    pixels[glass] = 240
    pixels += rng.integers(-4, 5, pixels.shape)
    return pixels.clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def slide(tmp_path_factory):
    return slide_files.tiled(tmp_path_factory.mktemp("slides") / "case.tif", picture())


def glass_of_slide(path, step=97, columns=131, readers=1):
    with ReaderPool(path, readers) as pool:
        grid = grid_of(pool.info.width, pool.info.height, MPP, 0.25)
        glass = SlideGlass(pool, Tissue(np.ones((1, 1), bool), grid), MPP, GLASS)
        found = np.zeros((grid.height, grid.width), bool)
        for top in range(0, grid.height, step):
            for left in range(0, grid.width, columns):
                here = np.s_[top : top + step, left : left + columns]
                bottom, right = min(top + step, grid.height), min(left + columns, grid.width)
                found[here] = glass.pixels(top, bottom, left, right)
            glass.forget_above(top + step)
    return found


def test_glass_does_not_depend_on_cells_blocks_pieces_or_readers(slide, monkeypatch):
    whole = glass_of_slide(slide, step=HEIGHT, columns=WIDTH)
    assert whole[300, 450] and 0.1 < whole.mean() < 0.5
    np.testing.assert_array_equal(glass_of_slide(slide, readers=3), whole)
    for cell, rows, columns in ((64, 32, 48), (33, 256, 1024), (100, 17, 29)):
        monkeypatch.setattr(slide_glass, "CELL", cell)
        monkeypatch.setattr(block_cache, "ROWS", rows)
        monkeypatch.setattr(block_cache, "COLUMNS", columns)
        np.testing.assert_array_equal(glass_of_slide(slide), whole)


@pytest.mark.parametrize(
    "mpp, downsamples, expected",
    (
        ((0.25, 0.25), (1, 4, 16), (4, 4)),  # the level of 1 um
        ((0.5, 0.5), (1, 4, 16), (4, 4)),  # the level of 2 um
        ((0.25, 0.25), (1,), (4, 4)),
        ((0.499, 0.499), (1,), (2, 2)),
        ((0.25, 0.25), (1, 2.0003), (4.0006, 4.0006)),
        ((0.25, 0.5), (1,), (4, 2)),
        ((3.0, 3.0), (1, 4), (1, 1)),  # no finer pixels are there
    ),
)
def test_the_grid_spans_whole_pixels_of_the_level_that_has_about_1_to_2_um(mpp, downsamples, expected):
    levels = tuple(Level(round(1001 / each), round(703 / each), float(each)) for each in downsamples)
    grid = glass_grid(levels, mpp)
    assert grid.scale == pytest.approx(expected)
    assert grid.width * grid.scale[0] >= 1001 and grid.height * grid.scale[1] >= 703


def label(folder, path, glass=True, window=64, overlap=0.25, batch=3, readers=1, stop_after=None):
    """Labels the slide with a model that sees single pixels; returns the labels, uint8 [H, W]."""
    model, mesh = color_model(window), make_mesh(jax.devices()[:1])
    arrays = jax.device_put(model.arrays, replicated(mesh))
    model = SlideModel(*(arrays if name == "arrays" else getattr(model, name) for name in model.__dataclass_fields__))
    with ReaderPool(path, readers) as pool, Interruption() as interruption:
        interruption.begin()
        grid = grid_of(pool.info.width, pool.info.height, MPP, 0.25)
        windows = windows_of(grid.height, grid.width, window, overlap)
        weights = blend_weights(windows, "gaussian")
        tissue = Tissue(np.ones((1, 1), bool), grid)
        store = TileStore(folder, grid.width, grid.height, 128)
        predictor = WindowPredictor(model, weights, batch, mesh)
        calls, stop = [0], SimpleNamespace(requested=False)

        def predict(images):
            calls[0] += 1
            stop.requested = calls[0] == stop_after
            return predictor(images)

        predict.batch_size = batch
        labeling.label_slide(
            pool,
            tissue,
            windows,
            predict,
            weights,
            store,
            None,
            classes=len(classes_of(model.scheme)),
            readers=readers,
            interruption=stop,
            label="slide",
            glass=SlideGlass(pool, tissue, MPP, GLASS) if glass else None,
        )
    return np.block([[store.pixels(row, column) for column in range(store.columns)] for row in range(store.rows)])


def test_glass_gets_no_label_whatever_the_windows_and_all_else_keeps_its_label(tmp_path, slide):
    glass = glass_of_slide(slide)
    kept = label(tmp_path / "kept", slide, glass=False)
    assert kept.all()
    for number, options in enumerate(({}, {"window": 48, "overlap": 0, "batch": 7}, {"readers": 3, "window": 96})):
        found = label(tmp_path / str(number), slide, **options)
        np.testing.assert_array_equal(found == 0, glass)
        np.testing.assert_array_equal(found[~glass], kept[~glass])


def test_a_slide_that_was_stopped_goes_on_to_the_same_labels(tmp_path, slide):
    whole = label(tmp_path / "whole", slide)
    with pytest.raises(Preempted):
        label(tmp_path / "stopped", slide, stop_after=80)
    assert 0 < len(list((tmp_path / "stopped").glob("row-*"))) < 6
    np.testing.assert_array_equal(label(tmp_path / "stopped", slide), whole)
    for file in (tmp_path / "whole").iterdir():
        assert file.read_bytes() == (tmp_path / "stopped" / file.name).read_bytes()
