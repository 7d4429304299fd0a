"""Where the labels of several models of one slide differ."""

import contextlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from bcss_jax.slides.grid import Grid
from bcss_jax.slides.store.disagreement_map import CELL, cells_along
from bcss_jax.viewer.label_file import LabelFile

STEP = 4  # pixels between the places that are compared; labels are reduced by majority to about this resolution
BAND = 64  # rows of cells that are read at a time: at a step of 4, the height of a tile of labels


def label_disagreement(labels: Sequence[tuple[Path, Grid]], grid: Grid, values: Sequence[int]) -> np.ndarray:
    """Returns the share of each cell's area in dispute; memory holds a band of the slide.

    Args:
      labels: the file of labels of each model, with its grid; all grids span the same slide.
      grid: on which the cells are `CELL` pixels wide.
      values: of the classes; pixels that some model gives none of them are not in dispute.

    Returns:
      float32 [ceil(height / CELL), ceil(width / CELL)], the mean over a cell of `pairs_that_disagree`; what a cell at
      the edge has outside of the slide counts as not in dispute.

    Raises:
      DataError: a file of labels is missing or damaged.
    """
    rows, columns = cells_along(grid.height), cells_along(grid.width)
    in_cell = CELL // STEP
    xs, ys = ((np.arange(count * in_cell) + 0.5) * STEP for count in (columns, rows))
    cells = np.zeros((rows, columns), np.float32)
    with contextlib.ExitStack() as stack:
        files = [(LabelFile(path, its_grid), its_grid) for path, its_grid in labels]
        for file, _ in files:
            stack.callback(file.close)
        for top in range(0, rows, BAND):
            band = ys[top * in_cell : (top + BAND) * in_cell]
            sampled = [_sampled(file, its_grid, grid, xs, band) for file, its_grid in files]
            disputed = pairs_that_disagree(sampled, values)
            cells[top : top + BAND] = disputed.reshape(-1, in_cell, columns, in_cell).mean((1, 3))
    return cells


def pairs_that_disagree(labels: Sequence[np.ndarray], values: Sequence[int]) -> np.ndarray:
    """Returns the share of the pairs of members that give a pixel different classes.

    Args:
      labels: uint8 [h, w] of each of at least two members.
      values: of the classes.

    Returns:
      float32 [h, w], 0 where some member gives none of these classes (background, unreadable).
    """
    count, agreeing, known = len(labels), 0, 0
    for value in values:
        votes = sum((each == value).astype(np.int32) for each in labels)
        agreeing, known = agreeing + votes * (votes - 1), known + votes
    disagreeing = 1 - agreeing / np.float32(count * (count - 1))
    return np.where(known == count, disagreeing, 0).astype(np.float32)


def _sampled(file: LabelFile, its_grid: Grid, grid: Grid, xs: np.ndarray, ys: np.ndarray) -> np.ndarray:
    """Returns a model's labels at places of a grid, uint8 [h, w]; 0 outside of the slide."""
    across, down = its_grid.width / grid.width, its_grid.height / grid.height
    return file.sample(xs * across, ys * down, STEP * min(across, down))
