"""Writes the files made from a slide's finished labels: the pyramid, the regions for QuPath, and the overlay."""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from bcss_jax.slides.classes import SlideClass
from bcss_jax.slides.grid import Grid
from bcss_jax.slides.outputs import geojson, label_pyramid, overlay
from bcss_jax.slides.store.tile_store import TileStore

FILES = {"labels": "labels.ome.tif", "regions": "regions.geojson", "overlay": "overlay.png"}


def write(
    folder: Path,
    store: TileStore,
    grid: Grid,
    classes: Sequence[SlideClass],
    thumbnail: np.ndarray,
    *,
    name: str,
    title: str,
    origin: tuple[int, int],
    min_area_um2: float,
    areas_mm2: dict[int, float],
    lap: Callable[[str], None],
    stop: Callable[[], None],
) -> float:
    """Writes each file whole or not at all; the regions are traced while the other files are made.

    Args:
      folder: of the files.
      store: all labels of the slide.
      grid: of the slide.
      classes: what the labels mean.
      thumbnail: uint8 [h, w, 3], to be tinted.
      name: of the slide.
      title: of the overlay.
      origin: x and y of the level-0 pixel that QuPath counts from.
      min_area_um2: smaller regions are left out.
      areas_mm2: area by label.
      lap: called with the name of each stage that ends: `pyramid`, `overlay`, and `regions` (the wait for them alone).
      stop: raises if the user asks to stop; called between the stages.

    Returns:
      Seconds that tracing the regions took.

    Raises:
      StorageError: a file cannot be written.
    """

    def trace():
        begin = time.perf_counter()
        geojson.write(folder / FILES["regions"], store, grid, classes, origin=origin, min_area_um2=min_area_um2)
        return time.perf_counter() - begin

    stop()
    with ThreadPoolExecutor(1) as background:
        tracing = background.submit(trace)
        label_pyramid.write(folder / FILES["labels"], store, mpp=grid.mpp, classes=classes, name=name)
        lap("pyramid")
        stop()
        overlay.overlay(
            thumbnail,
            label_pyramid.read_resized(folder / FILES["labels"], *thumbnail.shape[:2]),
            classes,
            folder / FILES["overlay"],
            title=title,
            mm_per_pixel=grid.mpp * grid.width / thumbnail.shape[1] / 1000,
            areas_mm2=areas_mm2,
        )
        lap("overlay")
        tracing_seconds = tracing.result()
        lap("regions")
    return tracing_seconds
