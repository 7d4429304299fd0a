"""Measures the stain of a slide once, from a sample of squares of its tissue that is always the same."""

import numpy as np

from bcss_jax.common.interruption import result_of
from bcss_jax.data.stain.measured_stain import MeasuredStain, NotMeasurable, measure
from bcss_jax.slides.reading.reader_pool import ReaderPool
from bcss_jax.slides.tissue.tissue_mask import Tissue

SIDE = 256  # pixels of a square
SQUARES = 100
STEP = 2  # every second pixel of every second row is measured
SEED = 0


def stain_of_slide(pool: ReaderPool, tissue: Tissue, white: np.ndarray | None) -> MeasuredStain:
    """Measures the stain at the um per pixel of the model.

    The squares depend on the slide and its tissue alone, not on windows, batches, readers or devices.

    Args:
      pool: reads the slide.
      tissue: where to look, with the slide's grid.
      white: as in `measured_stain.measure`.

    Raises:
      NotMeasurable: there is hardly any tissue, or not the two stains.
      DataError: the slide cannot be read.
    """
    grid = tissue.grid
    boxes = []
    for y in range(0, grid.height, SIDE):
        for x in range(0, grid.width, SIDE):
            boxes.append((y, min(y + SIDE, grid.height), x, min(x + SIDE, grid.width)))
    requested = []
    for number in np.random.default_rng(SEED).permutation(len(boxes)):
        top, bottom, left, right = boxes[number]
        inside = tissue.pixels(top, bottom, left, right)
        if inside.any():
            requested.append((inside, pool.submit(grid, left, top, right - left, bottom - top)))
        if len(requested) == SQUARES:
            break
    found = []
    for inside, future in requested:
        block = result_of(future)
        readable = inside if block.unreadable is None else inside & ~block.unreadable
        found.append(block.pixels[::STEP, ::STEP][readable[::STEP, ::STEP]])
    if not found:
        raise NotMeasurable("no tissue")
    return measure(np.concatenate(found), white)
