"""Scores of a segmented slide against a mask of codes."""

import dataclasses
import math
from pathlib import Path

import numpy as np

from bcss_jax import metrics
from bcss_jax.errors import ConfigError, DataError
from bcss_jax.evaluation.surface_distance import surface_scores
from bcss_jax.labels import LabelScheme, lookup_table
from bcss_jax.slides.classes import BACKGROUND, UNREADABLE
from bcss_jax.slides.grid import Grid, nearest
from bcss_jax.tiles import printable, read_mask

TOLERANCE_UM = 2.0  # of NSD, as in evaluations
LARGEST_OUTLINES = 100_000_000  # pixels; above, distances between outlines would take tens of gigabytes


@dataclasses.dataclass(frozen=True)
class Truth:
    """What is known of a slide.

    Attributes:
      labels: uint8 [h, w], labels of the scheme; its ignored label where nothing is known.
      region: rows and columns of a region to score besides, or None.
    """

    labels: np.ndarray
    region: tuple[slice, slice] | None

    def in_region(self) -> "Truth":
        """The region's alone."""
        return self if self.region is None else Truth(self.labels[self.region], None)


def read_truth(
    path: Path, scheme: LabelScheme, codes: str, grid: Grid, region: tuple[int, int, int, int] | None
) -> Truth:
    """Reads a mask, and brings it onto the grid by nearest neighbour.

    Args:
      path: PNG or TIFF of codes, of the size of the slide's level 0 or of the grid.
      scheme: of the model.
      codes: its code book, "bcss22" or "kaggle3".
      grid: the slide's.
      region: x, y, width, height in level-0 pixels to be scored besides the whole, or None.

    Raises:
      DataError: it cannot be read, or has another size.
      ConfigError: the codes cannot express the scheme, or the region does not lie on the slide.
    """
    try:
        table = lookup_table(scheme, codes)
    except ValueError as error:
        raise ConfigError(f"--truth_codes={codes}: {error}") from error
    width, height = (round(size * along) for size, along in zip((grid.width, grid.height), grid.scale, strict=True))
    mask = read_mask(path, codes)
    if mask.shape not in ((height, width), (grid.height, grid.width)):
        raise DataError(
            f"{printable(path)}: expected {width}x{height} pixels as the slide has (or {grid.width}x{grid.height} at "
            f"{grid.mpp:g} um/px), found {mask.shape[1]}x{mask.shape[0]}; give the mask of this very slide"
        )
    rows, columns = (nearest(size, given) for size, given in zip((grid.height, grid.width), mask.shape, strict=True))
    truth = Truth(
        table[mask[np.ix_(rows, columns)]], None if region is None else _rectangle(region, grid, width, height)
    )
    for labels, where in ((truth.labels, "it"), (truth.in_region().labels, "that region")):
        if not np.isin(labels, scheme.evaluated).any():
            raise DataError(
                f"{printable(path)}: expected pixels of {', '.join(scheme.evaluated_names)}, found none in {where}; check the "
                "mask, its codes (--truth_codes) and the region"
            )
    return truth


def _rectangle(region, grid, width, height):
    """Rows and columns of the grid whose pixels begin in a region of level 0."""
    x, y, w, h = region
    if not (0 <= x < x + w <= width and 0 <= y < y + h <= height):
        raise ConfigError(f"--truth_region={x},{y},{w},{h}: does not lie on the slide of {width}x{height} pixels")
    return tuple(
        slice(math.ceil(start / along), math.ceil((start + size) / along))
        for start, size, along in ((y, h, grid.scale[1]), (x, w, grid.scale[0]))
    )


def score(truth: Truth, predicted: np.ndarray, scheme: LabelScheme, grid: Grid) -> dict:
    """Scores of a slide, or of a part of it.

    Args:
      truth: what is known.
      predicted: uint8 [h, w] of the same part, values of `classes`. Known tissue that was not segmented (taken for glass, or
        unreadable) counts as missed.
      scheme: the label scheme.
      grid: the slide's.

    Returns:
      JSON: `dice`, `iou`, `precision`, `recall`, `hd95_um`, `nsd`, each by class and "macro", None where there is no score;
      `confusion` (`truth` names of the rows, `prediction` of the columns, `pixels`), `tolerance_um`.
    """
    nothing = scheme.num_classes  # a label more, for what was not segmented
    table = np.full(256, nothing, np.uint8)
    table[1 : 1 + len(scheme.evaluated)] = scheme.evaluated
    table[[BACKGROUND, UNREADABLE]] = nothing
    labels = table[predicted]
    known = np.isin(truth.labels, scheme.evaluated)
    size = nothing + 1
    pairs = truth.labels[known].astype(np.int64) * size + labels[known]
    counts = np.bincount(pairs, minlength=size * size).reshape(size, size)
    names = [*scheme.evaluated_names, "macro"]

    def by_class(values):
        values = [*values, metrics.mean_of_known(np.asarray(values), axis=0)]
        return {name: None if np.isnan(value) else float(value) for name, value in zip(names, values, strict=True)}

    measures = {"dice": metrics.dice, "iou": metrics.iou, "precision": metrics.precision, "recall": metrics.recall}
    result = {name: by_class(measure(counts, scheme.evaluated)) for name, measure in measures.items()}
    rows, columns = (np.flatnonzero(known.any(axis=axis)) for axis in (1, 0))
    box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    result |= {"hd95_um": None, "nsd": None}
    if known[box].size <= LARGEST_OUTLINES:
        outlines = surface_scores(
            np.where(known, truth.labels, 255)[box],
            labels[box],
            scheme.evaluated,
            255,
            mpp=grid.mpp,
            tolerance_um=TOLERANCE_UM,
        )
        result |= {"hd95_um": by_class(outlines[0]), "nsd": by_class(outlines[1])}
    order = [*scheme.evaluated, nothing]
    return result | {
        "tolerance_um": TOLERANCE_UM,
        "confusion": {
            "truth": list(scheme.evaluated_names),
            "prediction": [*scheme.evaluated_names, "not segmented"],
            "pixels": counts[np.ix_(scheme.evaluated, order)].tolist(),
        },
    }
