"""Labels a slide whose pixels are in memory: windows, network, blending and the store of labels, without a reader."""

import concurrent.futures
import dataclasses
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from bcss_jax import labels, models
from bcss_jax.common.interruption import Interruption
from bcss_jax.data import synthetic
from bcss_jax.inference.slide_model import SlideModel, WindowPredictor, probabilities_of
from bcss_jax.models.apply import ModelFunction, split_model
from bcss_jax.slides.grid import Grid
from bcss_jax.slides.reading.reader_workers import Block
from bcss_jax.slides.stitching.blend import blend_weights
from bcss_jax.slides.stitching.labeling import label_slide
from bcss_jax.slides.store.tile_store import TileStore
from bcss_jax.slides.tissue.tissue_mask import Tissue
from bcss_jax.slides.windows import windows_of
from bcss_jax.training import sharding
from benchmarks.gpu.child import Report

WINDOW, OVERLAP, MPP = synthetic.SIZE, 0.25, synthetic.MPP
READERS = 4  # of which as many blocks are asked for ahead
ROUNDS = 3


class PixelsInMemory:
    """Takes the place of a `ReaderPool`."""

    def __init__(self, pixels: np.ndarray):
        """Stores the pixels of the slide, uint8 [H, W, 3]."""
        self._pixels = pixels

    def submit(self, grid: Grid, x: int, y: int, width: int, height: int) -> "concurrent.futures.Future[Block]":
        """Returns a block of the grid, which is that of the pixels."""
        future: concurrent.futures.Future[Block] = concurrent.futures.Future()
        future.set_result(Block(self._pixels[y : y + height, x : x + width], None))
        return future


def run(report: Report, *, width: int, side: int, batch: int, dtype: str) -> None:
    """Labels a slide of `side` pixels with a U-Net of this width, `batch` windows at a time.

    The first round includes the compilation; the others are measured.
    """
    scheme, mesh = labels.find_scheme("tumor_stroma"), sharding.make_mesh(jax.local_devices()[:1])
    model = models.create("unet", num_classes=scheme.num_classes, width=width, dtype=dtype)
    arrays = sharding.place_replicated(split_model(model)[1:], mesh)
    probabilities = probabilities_of(ModelFunction(model), scheme, tta=False)
    slide_model = SlideModel("unet", scheme, MPP, WINDOW, {}, {}, arrays, probabilities)
    grid = Grid(side, side, MPP, (1.0, 1.0))
    windows = windows_of(side, side, WINDOW, OVERLAP)
    weights = blend_weights(windows, "gaussian")
    predictor = WindowPredictor(slide_model, weights, batch, mesh)
    slide: Any = PixelsInMemory(_pixels(side))
    tissue = Tissue(np.ones((1, 1), bool), grid)

    def label() -> dict[str, Any]:
        with tempfile.TemporaryDirectory() as folder, Interruption() as interruption:
            interruption.begin()
            start = time.perf_counter()
            seconds = label_slide(
                slide, tissue, windows, predictor, weights, TileStore(Path(folder), side, side), None,
                classes=len(scheme.evaluated), readers=READERS, interruption=interruption, label="slide",
            )  # fmt: skip
            return {"seconds": time.perf_counter() - start, **dataclasses.asdict(seconds)}

    label()
    for number in range(1, ROUNDS + 1):
        with report.quiet():
            found = label()
        total = found.pop("seconds")
        report.add(
            round=number, network=f"unet {width}", type=dtype, mm2=side * side * grid.pixel_mm2,
            windows=windows.rows * windows.columns, seconds=total,
            windows_per_s=windows.rows * windows.columns / total,
            **{f"{name}_s": value for name, value in found.items()},
        )  # fmt: skip


def _pixels(side: int) -> np.ndarray:
    patch = np.concatenate([synthetic.draw_patch(0, number).image for number in range(4)], axis=1)
    rows, columns = -(-side // patch.shape[0]), -(-side // patch.shape[1])
    return np.ascontiguousarray(np.tile(patch, (rows, columns, 1))[:side, :side])
