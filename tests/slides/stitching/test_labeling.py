"""Labels of a slide from windows equal those of the whole slide, for any batches and after any number of stops."""

import contextlib
import dataclasses

import jax
import numpy as np
import pytest
import zarr
from helpers.slides_small import ArrayPool, color_model, tissue_picture

from bcss_jax import models
from bcss_jax.common.interruption import Interruption
from bcss_jax.errors import DataError, Preempted
from bcss_jax.inference.predict import log_probabilities
from bcss_jax.inference.slide_model import SlideModel, WindowPredictor
from bcss_jax.labels import SCHEMES
from bcss_jax.models.apply import ModelFunction, split_model
from bcss_jax.slides.classes import UNREADABLE, classes_of
from bcss_jax.slides.grid import Grid
from bcss_jax.slides.stitching import labeling
from bcss_jax.slides.stitching.blend import blend_weights
from bcss_jax.slides.stitching.seams import seam_score
from bcss_jax.slides.stitching.tile_writer import read_disagreement
from bcss_jax.slides.store.probability_store import ProbabilityStore
from bcss_jax.slides.store.tile_store import TileStore
from bcss_jax.slides.tissue.tissue_mask import Tissue
from bcss_jax.slides.windows import cut_window, windows_of
from bcss_jax.training.sharding import make_mesh, replicated

TILE = 64


def label(
    folder,
    pool,
    model,
    mask,
    *,
    overlap=0.25,
    blend="gaussian",
    batch=5,
    devices=1,
    probabilities=None,
    interruption=None,
    tile=TILE,
):
    """Labels a slide; returns the labels, uint8 [H, W], and the store."""
    height, width = pool.pixels.shape[:2]
    windows = windows_of(height, width, model.window, overlap)
    weights = blend_weights(windows, blend)
    mesh = make_mesh(jax.devices()[:devices])
    arrays = jax.device_put(model.arrays, replicated(mesh))
    placed = SlideModel(*(arrays if name == "arrays" else getattr(model, name) for name in model.__dataclass_fields__))
    store = TileStore(folder, width, height, tile)
    tissue = Tissue(mask, Grid(width, height, 0.25, (1.0, 1.0)))
    run = dict(classes=len(model.scheme.evaluated), readers=1, label="slide")
    run["with_disagreement"] = model.flip_disagreement is not None
    predictor = WindowPredictor(placed, weights, batch, mesh)
    with Interruption() as own:
        own.begin()
        labeling.label_slide(
            pool, tissue, windows, predictor, weights, store, probabilities, interruption=interruption or own, **run
        )
    found = np.block([[store.pixels(row, column) for column in range(store.columns)] for row in range(store.rows)])
    return found, store


def network(window=32, name="unet"):
    """Returns a small network with untrained weights."""
    scheme = SCHEMES["tumor_stroma"]
    arguments = dict(width=4) if name == "unet" else {}
    model = models.create(name, num_classes=scheme.num_classes, **arguments)
    function = ModelFunction(model)
    _, params, model_state = split_model(model)

    def probabilities(arrays, images):
        return jax.numpy.exp(log_probabilities(function, scheme, False, *arrays, images))[
            ..., np.asarray(scheme.evaluated)
        ]

    return SlideModel("small", scheme, 0.25, window, {}, {}, (params, model_state), probabilities)


@pytest.mark.parametrize("overlap, blend", ((0.0, "centre"), (0.25, "gaussian"), (0.5, "gaussian"), (0.5, "centre")))
def test_a_network_that_sees_single_pixels_labels_a_slide_as_a_whole(tmp_path, overlap, blend):
    pixels, expected = tissue_picture(150, 210)
    mask = expected > 0
    found, store = label(tmp_path, ArrayPool(pixels), color_model(), mask, overlap=overlap, blend=blend)
    np.testing.assert_array_equal(found, expected)
    assert sorted(np.unique(found)) == [0, 1, 2]


def test_only_blocks_under_tissue_are_read_and_each_once(tmp_path, monkeypatch):
    monkeypatch.setattr("bcss_jax.slides.stitching.block_cache.ROWS", 32)
    monkeypatch.setattr("bcss_jax.slides.stitching.block_cache.COLUMNS", 32)
    pixels, _ = tissue_picture(256, 256)
    mask = np.zeros((256, 256), bool)
    mask[40:90, 100:140] = True
    pool = ArrayPool(pixels)
    found, _ = label(tmp_path, pool, color_model(), mask)
    assert found[mask].all() and not found[~mask].any()
    assert len(set(pool.asked)) == len(pool.asked)
    windows = windows_of(256, 256, 16, 0.25)
    needed = set()
    for row in range(windows.rows):
        for column in range(windows.columns):
            top, left = row * windows.stride, column * windows.stride
            if mask[top : top + windows.stride, left : left + windows.stride].any():
                y, x = windows.corner(row, column)
                needed |= {(v // 32, u // 32) for v in (max(y, 0), y + 15) for u in (max(x, 0), x + 15)}
    assert {(y // 32, x // 32) for x, y, _, _ in pool.asked} == needed


def test_blended_probabilities_are_the_weighted_means_of_the_windows(tmp_path):
    pixels, _ = tissue_picture(70, 90)
    model, size = network(), 32
    store = ProbabilityStore(tmp_path / "p.zarr", 90, 70, mpp=0.25, classes=classes_of(model.scheme), name="slide")
    label(tmp_path / "labels", ArrayPool(pixels), model, np.ones((1, 1), bool), probabilities=store, tile=512)
    windows = windows_of(70, 90, size, 0.25)
    weights = blend_weights(windows, "gaussian").astype(np.float64)
    sums, total = np.zeros((2, 70, 90)), np.zeros((70, 90))
    for row in range(windows.rows):
        for column in range(windows.columns):
            y, x = windows.corner(row, column)
            y0, y1, x0, x1 = max(y, 0), min(y + size, 70), max(x, 0), min(x + size, 90)
            window = cut_window(pixels[y0:y1, x0:x1], (y, x), size, (y0, x0), (70, 90))
            seen = np.asarray(model.probabilities(model.arrays, window[None]), np.float64)[0].transpose(2, 0, 1)
            inside = np.s_[y0 - y : y1 - y, x0 - x : x1 - x]
            sums[:, y0:y1, x0:x1] += (seen * weights)[:, *inside]
            total[y0:y1, x0:x1] += weights[inside]
    found = zarr.open(tmp_path / "p.zarr", mode="r")["0"][:]
    assert np.abs(found - 255 * sums / total).max() <= 0.51
    assert found.std() > 1  # the probabilities are not all equal


@pytest.mark.parametrize("name", ("unet", pytest.param("unet_resnet34", marks=pytest.mark.slow)))
def test_bits_do_not_depend_on_batches_and_devices(tmp_path, name):
    pixels, expected = tissue_picture(100, 130)
    model, files = network(64, name), set()
    for batch, devices in ((1, 1), (3, 1), (16, 1), (4, 4)):
        path = tmp_path / f"{batch}-{devices}"
        store = ProbabilityStore(path / "p.zarr", 130, 100, mpp=0.25, classes=classes_of(model.scheme), name="slide")
        label(
            path / "labels",
            ArrayPool(pixels),
            model,
            expected > 0,
            batch=batch,
            devices=devices,
            probabilities=store,
            tile=512,
        )
        files.add(bytes_of(path))
    assert len(files) == 1


def bytes_of(folder):
    """Returns the names and contents of all files of a folder."""
    return tuple(
        (str(path.relative_to(folder)), path.read_bytes()) for path in sorted(folder.rglob("*")) if path.is_file()
    )


@pytest.mark.parametrize("overlap", (0.25, 0.5, 0.7))
def test_resuming_after_a_stop_gives_the_same_bytes(tmp_path, monkeypatch, overlap):
    monkeypatch.setattr("bcss_jax.slides.stitching.block_cache.ROWS", 32)
    monkeypatch.setattr("bcss_jax.slides.stitching.block_cache.COLUMNS", 64)
    monkeypatch.setattr("bcss_jax.slides.stitching.blend.LANE", 50)
    pixels, expected = tissue_picture(300, 200, seed=1)
    run = dict(model=color_model(), mask=expected > 0, overlap=overlap)
    whole = ArrayPool(pixels)
    label(tmp_path / "whole", whole, **run)
    rng = np.random.default_rng(0)
    kept = 0
    for number in range(8):
        folder = tmp_path / str(number)
        first, second = rng.integers(1, len(whole.asked), 2)
        with pytest.raises(DataError, match="here"):
            label(folder, ArrayPool(pixels, fails_at=int(first), error=DataError("here")), **run)
        kept += len(list(folder.glob("row-*"))) > 0
        with contextlib.suppress(DataError):  # there may be fewer blocks left
            label(folder, ArrayPool(pixels, fails_at=int(second), error=DataError("here")), **run)
        label(folder, ArrayPool(pixels), **run)
        assert bytes_of(folder) == bytes_of(tmp_path / "whole")
    assert kept > 3  # most runs resumed from written rows
    nothing = ArrayPool(pixels)
    label(tmp_path / "whole", nothing, **run)
    assert not nothing.asked


def test_a_request_to_stop_keeps_complete_rows(tmp_path):
    pixels, expected = tissue_picture(300, 200)
    run = dict(model=color_model(), mask=expected > 0)
    label(tmp_path / "whole", ArrayPool(pixels), **run)

    class StopsAt:
        requested_after = 40

        @property
        def requested(self):
            self.requested_after -= 1
            return self.requested_after < 0

    with pytest.raises(Preempted, match="stopped after"):
        label(tmp_path / "stopped", ArrayPool(pixels), interruption=StopsAt(), **run)
    assert 0 < len(list((tmp_path / "stopped").glob("row-*"))) < 5
    label(tmp_path / "stopped", ArrayPool(pixels), **run)
    assert bytes_of(tmp_path / "stopped") == bytes_of(tmp_path / "whole")


def test_unreadable_tissue_is_marked_and_too_much_of_it_fails(tmp_path):
    pixels, expected = tissue_picture(200, 200)
    damaged = np.zeros(expected.shape, bool)
    damaged[50:66, 60:70] = True
    found, _ = label(tmp_path / "some", ArrayPool(pixels, damaged), color_model(), np.ones((1, 1), bool))
    assert (found[damaged] == UNREADABLE).all() and (found[~damaged] != UNREADABLE).all()
    damaged[50:90, 60:80] = True
    with pytest.raises(DataError, match="slide: over 1% of the tissue cannot be decoded"):
        label(tmp_path / "much", ArrayPool(pixels, damaged), color_model(), np.ones((1, 1), bool))


@pytest.mark.parametrize("height, width", ((1, 1), (1, 2000), (2000, 1), (5, 9), (64, 64), (65, 63)))
def test_slides_smaller_than_a_window_and_strips(tmp_path, height, width):
    pixels, expected = tissue_picture(height, width, seed=3)
    mask = np.ones((1, 1), bool)
    found, _ = label(tmp_path, ArrayPool(pixels), color_model(), mask)
    assert found.shape == expected.shape
    np.testing.assert_array_equal(found[expected > 0], expected[expected > 0])


def test_a_slide_without_tissue_is_not_read(tmp_path):
    pixels, _ = tissue_picture(150, 100)
    pool = ArrayPool(pixels)
    found, store = label(tmp_path, pool, color_model(), np.zeros((10, 10), bool))
    assert not found.any() and not pool.asked and store.complete()
    assert seam_score(labeling.seam_counts(store))["score"] is None


def test_the_disagreement_of_flips_is_blended_and_summed_where_there_are_labels(tmp_path):
    pixels, expected = tissue_picture(150, 210)
    mask = expected > 0
    plain = color_model()

    def flips(arrays, images):  # the green channel stands in for the share of pairs
        return plain.probabilities(arrays, images), images[..., 1] / 255

    model = dataclasses.replace(plain, flip_disagreement=flips)
    found, store = label(tmp_path / "a", ArrayPool(pixels), model, mask)
    np.testing.assert_array_equal(found, expected)
    rows = [read_disagreement(store, row) for row in range(store.rows)]
    wanted = np.pad(np.where(mask, pixels[..., 1], 0), ((0, 192 - 150), (0, 224 - 210))).astype(float)
    wanted = wanted.reshape(6, 32, 7, 32).mean((1, 3))
    assert np.abs(np.concatenate(rows) - wanted).max() <= 1 and wanted.max() > 20

    # Stopped after the first row of tiles: the rest is computed again, and is the same.
    for name in ("row-000001", "disagreement-000002.json"):
        (store.folder / name).unlink()
    pool = ArrayPool(pixels)
    again, store = label(tmp_path / "a", pool, model, mask)
    assert pool.asked and [read_disagreement(store, row) for row in range(store.rows)] == rows
    np.testing.assert_array_equal(again, expected)

    # Rows of an earlier version have none, and are computed again too.
    _, store = label(tmp_path / "b", ArrayPool(pixels), plain, mask)
    assert not list(store.folder.glob("disagreement-*"))
    _, store = label(tmp_path / "b", ArrayPool(pixels), model, mask)
    assert [read_disagreement(store, row) for row in range(store.rows)] == rows
