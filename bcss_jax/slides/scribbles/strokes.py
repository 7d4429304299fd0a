"""Reads the strokes on a slide: lines, points and polygons with classes."""

import collections
import dataclasses
import logging
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from bcss_jax.errors import DataError, printable
from bcss_jax.labels import LabelScheme
from bcss_jax.slides.annotations.class_names import label_annotations
from bcss_jax.slides.annotations.placement import check_placement
from bcss_jax.slides.annotations.slide_labels import AnnotatedLabels, read_annotations
from bcss_jax.slides.grid import Grid
from bcss_jax.slides.windows import Windows

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Strokes:
    """The strokes on a slide.

    Attributes:
      labels: of the pixels that they cover; `scheme.ignore_index` elsewhere.
      classes: labels of the evaluated classes that have strokes, in the order of the scheme.
      scheme: the labels.
    """

    labels: AnnotatedLabels
    classes: tuple[int, ...]
    scheme: LabelScheme


class CellPixels(NamedTuple):
    """The pixels with strokes in the cell of a window.

    Attributes:
      row: of the window.
      column: of the window.
      ys: pixel rows, counted from the window's corner [n].
      xs: pixel columns, counted from the window's corner [n].
      numbers: of their class in `Strokes.classes` [n].
    """

    row: int
    column: int
    ys: np.ndarray
    xs: np.ndarray
    numbers: np.ndarray


def read_strokes(
    path: Path,
    scheme: LabelScheme,
    size: tuple[int, int],
    mpp: tuple[float, float],
    origin: tuple[float, float],
    stroke_um: float,
    warn: Callable[[str], None] = log.warning,
) -> Strokes:
    """Reads strokes.

    Args:
      path: GeoJSON as QuPath writes it, or ASAP's XML.
      scheme: the labels, by whose names the strokes are classified.
      size: width and height of level 0.
      mpp: um per pixel of level 0 along x and y.
      origin: level-0 pixel of QuPath's point (0, 0).
      stroke_um: width of lines, and diameter of points, in um.
      warn: called with one line about everything that is odd but usable.

    Raises:
      DataError: the file cannot be read, does not belong to this slide, has a class that the scheme does not know, or
        has strokes of fewer than two classes.
    """
    annotations = read_annotations(path, origin, warn, line_width=stroke_um / mpp[0])
    check_placement(path, annotations, size, mpp, warn=warn)
    bare = dataclasses.replace(scheme, unannotated=None)  # what has no stroke has no label
    labeled = label_annotations(path, annotations, bare, warn=warn, may_have_region=False)
    classes = tuple(label for label in scheme.evaluated if label in labeled.by_label)
    names = [scheme.class_names[label] for label in classes]
    if len(classes) < 2:
        raise DataError(
            f"{printable(path)}: expected strokes of two classes or more ({', '.join(scheme.evaluated_names)}), found "
            f"only {', '.join(names) or 'others'}; draw some of another class"
        )
    without = [name for name in scheme.evaluated_names if name not in names]
    if without:
        warn(f"{printable(path)}: there are no strokes of {', '.join(without)}, so nothing is labeled as that")
    return Strokes(AnnotatedLabels(path, labeled, bare, size, False, warn), classes, bare)


def pixels_in_cells(strokes: Strokes, grid: Grid, windows: Windows) -> list[CellPixels]:
    """Returns the pixels with strokes by the window in whose cell they lie, row by row; each pixel lies in one cell."""
    found = []
    number_of = np.full(256, -1, np.int64)
    number_of[list(strokes.classes)] = np.arange(len(strokes.classes))
    for row, column in np.argwhere(_touched(strokes.labels.boxes, grid, windows)).tolist():
        top, left = row * windows.stride, column * windows.stride
        height, width = min(windows.stride, grid.height - top), min(windows.stride, grid.width - left)
        labels = strokes.labels.labels(left * grid.scale[0], top * grid.scale[1], width, height, grid.scale)
        numbers = number_of[labels]
        ys, xs = np.nonzero(numbers >= 0)
        if len(ys):
            found.append(CellPixels(row, column, ys + windows.margin, xs + windows.margin, numbers[ys, xs]))
    return found


def limited(cells: list[CellPixels], most: int, classes: int) -> list[CellPixels]:
    """Returns the cells with at most about `most` pixels of each class, drawn evenly, always the same ones."""
    counts = collections.Counter(np.concatenate([cell.numbers for cell in cells]).tolist())
    share = np.array([min(1.0, most / max(counts[number], 1)) for number in range(classes)])
    rng, result = np.random.default_rng(0), []
    for cell in cells:
        keep = rng.random(len(cell.numbers)) < share[cell.numbers]
        if keep.any():
            result.append(cell._replace(ys=cell.ys[keep], xs=cell.xs[keep], numbers=cell.numbers[keep]))
    return result


def _touched(boxes: np.ndarray, grid: Grid, windows: Windows) -> np.ndarray:
    """Returns which cells a box in pixels of level 0 [n, 4] touches, bool [rows, columns]."""
    result = np.zeros((windows.rows, windows.columns), bool)
    scaled = boxes / np.array([*grid.scale, *grid.scale]) / windows.stride
    for left, top, right, bottom in np.floor(scaled).astype(np.int64):
        result[max(top, 0) : bottom + 1, max(left, 0) : right + 1] = True
    return result
