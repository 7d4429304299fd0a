"""Scores a slide's labels.ome.tif against its ground truth; both are read in bands of rows.

The counts of (truth, prediction) pairs are integers that are added up over the bands, so the bands do not change the
result. The surface distances need the whole annotated area at once. Where that area is too large they are left out, and
the scores say so.
"""

import dataclasses
import logging
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from bcss_jax import metrics
from bcss_jax.data.decoding.tiff_rows import TiffRows, UnreadableTiff
from bcss_jax.errors import DataError, printable
from bcss_jax.evaluation.statistics.surface_distance import surface_scores
from bcss_jax.labels import LabelScheme
from bcss_jax.slides.classes import BACKGROUND, UNREADABLE
from bcss_jax.slides.grid import Grid
from bcss_jax.slides.scoring.truth import Truth, open_truth, part_of
from bcss_jax.slides.slide_summary import SlideSummary

TOLERANCE_UM = 2.0  # of NSD, as in evaluations
MAX_DISTANCE_PIXELS = 100_000_000  # above, surface distances would take tens of gigabytes
log = logging.getLogger(__name__)


def with_scores(
    summary: SlideSummary,
    folder: Path,
    truth: Path,
    scheme: LabelScheme,
    codes: str,
    region: tuple[int, int, int, int] | None,
    stop: Callable[[], None],
) -> SlideSummary:
    """Returns the summary of a finished slide with new scores, which replace those that it may have.

    Args:
      summary: of the slide.
      folder: of the results.
      truth: mask of codes.
      scheme: of the model.
      codes: code book of the mask.
      region: x, y, width, height in level-0 pixels to score in addition to the whole slide, or None.
      stop: raises if the user asks to stop; called for every band.

    Returns:
      The summary with `scores` as of `scores`, `scores_of_region` if there is a region, and `seconds["scores"]`.

    Raises:
      DataError: the mask cannot be used, or the labels are not those that the summary describes.
      ConfigError: as `open_truth`.
    """
    begin = time.perf_counter()
    grid = summary.grid
    with open_truth(truth, scheme, codes, grid, region) as opened, Labels(folder, summary) as labels:
        whole, *part = scores(opened, labels, scheme, grid, stop)
    for each, where in zip([whole, *part], ("", " of the region"), strict=False):
        if "distances_left_out" in each:
            name = printable(summary.slide.name)
            log.warning("%s: scores%s without HD95 and NSD: %s", name, where, each["distances_left_out"])
    of_region = part[0] | {"level0_x_y_width_height": list(region)} if part and region is not None else None
    taken = time.perf_counter() - begin
    total = summary.seconds["total"] - summary.seconds.get("scores", 0) + taken
    seconds = {**summary.seconds, "scores": taken, "total": total}
    return dataclasses.replace(summary, scores=whole, scores_of_region=of_region, seconds=seconds)


class Labels:
    """Level 0 of a labels.ome.tif, which has to be the one that the summary describes. A context manager."""

    def __init__(self, folder: Path, summary: SlideSummary):
        """Opens the file.

        Raises:
          DataError: it is missing or damaged, or is not such a file.
        """
        self._path, self._summary = folder / summary.labels_file, summary
        try:
            self._tiff = TiffRows(self._path)
        except UnreadableTiff as error:
            raise self._unexpected(error) from error
        size = (summary.grid.width, summary.grid.height)
        tiff = self._tiff
        if (tiff.width, tiff.height, tiff.channels) != (*size, 1) or tiff.dtype != np.uint8:
            tiff.__exit__()
            found = f"{tiff.width}x{tiff.height} pixels of {tiff.dtype} with {tiff.channels} channel(s)"
            raise self._unexpected(found)

    def __enter__(self) -> "Labels":
        """Returns itself."""
        return self

    def __exit__(self, *_) -> None:
        """Closes the file."""
        self._tiff.__exit__()

    def rows(self, start: int, stop: int) -> np.ndarray:
        """Returns the labels of some rows: uint8 [stop - start, width].

        Raises:
          DataError: the file is damaged there.
        """
        try:
            return self._tiff.rows(start, stop)
        except UnreadableTiff as error:
            raise self._unexpected(error) from error

    def check_counts(self, counts: np.ndarray) -> None:
        """Compares the pixels of each label, int64 [256], with the areas of the summary; another slide's would differ.

        Raises:
          DataError: they differ.
        """
        summary = self._summary
        expected = np.zeros(256, np.int64)
        for each in summary.classes:
            expected[each.value] = each.pixels
        expected[UNREADABLE] = round(summary.unreadable_area_mm2 / summary.grid.pixel_mm2)
        expected[BACKGROUND] = counts.sum() - expected.sum()
        differ = np.flatnonzero(counts != expected)
        if len(differ):
            value = differ[-1]
            raise self._unexpected(f"{counts[value]} pixels of the value {value} in place of {expected[value]}")

    def _unexpected(self, found):
        return DataError(
            f"{printable(self._path)}: expected the labels that the summary.json in the same folder describes, found "
            f"{found}; compute the slide again with --overwrite"
        )


def scores(truth: Truth, labels: Labels, scheme: LabelScheme, grid: Grid, stop: Callable[[], None]) -> list[dict]:
    """Returns the scores of the whole slide, and those of a region if the ground truth has one.

    Annotated tissue that was not segmented (taken for glass, or unreadable) counts as missed.

    Args:
      truth: the ground truth.
      labels: the labels to score.
      scheme: the label scheme.
      grid: of the slide.
      stop: called for every band.

    Returns:
      JSON for each: `dice`, `iou`, `precision`, `recall`, `hd95_um`, `nsd`, each by class and "macro", None where there
        is
      no score; `confusion` (`truth` names of the rows, `prediction` of the columns, `pixels`), `tolerance_um`. Where
      the area is too large for `hd95_um` and `nsd`, both are None and `distances_left_out` gives the reason.

    Raises:
      DataError: a file is damaged, nothing is annotated, or the labels are not those of the summary.
    """
    height, width = truth.shape
    everything = (slice(0, height), slice(0, width))
    parts = [_Part(part, scheme) for part in ([everything] if truth.region is None else [everything, truth.region])]
    for start, end in truth.bands():
        stop()
        annotated, predicted = truth.rows(start, end), labels.rows(start, end)
        for part in parts:
            part.add(part_of(annotated, start, part.place), part_of(predicted, start, part.place), start)
    labels.check_counts(parts[0].pairs.sum(0))
    for number, part in enumerate(parts):
        if not part.rows.any():
            raise truth.nothing_to_score(truth.region if number else None)
    return [part.scores(truth, labels, grid.mpp) for part in parts]


class _Part:
    """Counts the pixels of a part of the grid.

    Attributes:
      place: rows and columns of the part.
      pairs: int64 [256, 256], pixels by label of the ground truth and value of the prediction.
      rows: bool, whether anything is annotated in each row of the part.
      columns: bool, whether anything is annotated in each column of the part.
    """

    def __init__(self, place, scheme):
        self.place, self.pairs, self._scheme = place, np.zeros((256, 256), np.int64), scheme
        self.rows, self.columns = (np.zeros(axis.stop - axis.start, bool) for axis in place)
        self._is_evaluated = np.zeros(256, bool)
        self._is_evaluated[list(scheme.evaluated)] = True
        self._label = np.full(256, scheme.num_classes, np.uint8)  # one label more, for what was not segmented
        self._label[1 : 1 + len(scheme.evaluated)] = scheme.evaluated

    def add(self, truth, predicted, start):
        """Adds the pixels of the part that lie in a band, which begins at row `start` of the grid."""
        pairs = truth.astype(np.uint16) << 8 | predicted
        self.pairs += np.bincount(pairs.ravel(), minlength=1 << 16).reshape(256, 256)
        annotated = self._is_evaluated[truth]
        first = max(0, start - self.place[0].start)
        self.rows[first : first + len(annotated)] = annotated.any(axis=1)
        self.columns |= annotated.any(axis=0)

    def scores(self, truth, labels, mpp):
        scheme = self._scheme
        counts = np.zeros((256, scheme.num_classes + 1), np.int64)
        np.add.at(counts.T, self._label, self.pairs.T)
        counts = np.where(self._is_evaluated[:, None], counts, 0)[: scheme.num_classes + 1]
        names = [*scheme.evaluated_names, "macro"]

        def by_class(values):
            values = [*values, metrics.mean_of_known(np.asarray(values), axis=0)]
            return {name: None if np.isnan(value) else float(value) for name, value in zip(names, values, strict=True)}

        measures = {"dice": metrics.dice, "iou": metrics.iou, "precision": metrics.precision, "recall": metrics.recall}
        result = {name: by_class(measure(counts, scheme.evaluated)) for name, measure in measures.items()}
        box = self._bounding_box()
        height, width = (axis.stop - axis.start for axis in box)
        if height * width > MAX_DISTANCE_PIXELS:
            reason = (
                f"the annotated area spans {width} x {height} pixels, and HD95 and NSD can be computed for at most "
                f"{MAX_DISTANCE_PIXELS:,}; --truth_region scores a part"
            )
            result |= {"hd95_um": None, "nsd": None, "distances_left_out": reason}
        else:
            surface = self._surface_scores(truth, labels, mpp, box)
            result |= {"hd95_um": by_class(surface.hd95_um), "nsd": by_class(surface.nsd)}
        return result | {
            "tolerance_um": TOLERANCE_UM,
            "confusion": {
                "truth": list(scheme.evaluated_names),
                "prediction": [*scheme.evaluated_names, "not segmented"],
                "pixels": counts[np.ix_(scheme.evaluated, [*scheme.evaluated, scheme.num_classes])].tolist(),
            },
        }

    def _bounding_box(self):
        """Rows and columns of the smallest box that holds everything that is annotated."""
        box = []
        for axis, annotated in zip(self.place, (self.rows, self.columns), strict=True):
            first, last = np.flatnonzero(annotated)[[0, -1]].tolist()
            box.append(slice(axis.start + first, axis.start + last + 1))
        return box

    def _surface_scores(self, truth, labels, mpp, box):
        """HD95 and NSD in a box."""
        shape = tuple(axis.stop - axis.start for axis in box)
        annotated, predicted = np.empty(shape, np.uint8), np.empty(shape, np.uint8)
        for start, end in truth.bands(box[0].start, box[0].stop):
            here = slice(start - box[0].start, end - box[0].start)
            found = truth.rows(start, end)[:, box[1]]
            annotated[here] = np.where(self._is_evaluated[found], found, 255)
            predicted[here] = self._label[labels.rows(start, end)[:, box[1]]]
        evaluated = self._scheme.evaluated
        return surface_scores(annotated, predicted, evaluated, 255, mpp=mpp, tolerance_um=TOLERANCE_UM)
