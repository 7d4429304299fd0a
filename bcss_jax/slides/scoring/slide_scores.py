"""Scores of a slide's labels.ome.tif against its truth, both read in bands of rows.

Counts of (truth, prediction) pairs are integers added up over the bands, so how these are cut changes nothing. The
distances between outlines need all of the known area at once; where that is too large they are left out, and the scores
say so.
"""

import logging
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from bcss_jax import metrics
from bcss_jax.errors import DataError, printable
from bcss_jax.evaluation.statistics.surface_distance import surface_scores
from bcss_jax.labels import LabelScheme
from bcss_jax.slides.classes import BACKGROUND, UNREADABLE
from bcss_jax.slides.grid import Grid
from bcss_jax.slides.reading.tiff_rows import TiffRows, UnreadableTiff
from bcss_jax.slides.scoring.truth import Truth, open_truth, part_of

TOLERANCE_UM = 2.0  # of NSD, as in evaluations
LARGEST_OUTLINES = 100_000_000  # pixels; above, distances between outlines would take tens of gigabytes
log = logging.getLogger(__name__)


def with_scores(
    summary: dict,
    folder: Path,
    truth: Path,
    scheme: LabelScheme,
    codes: str,
    region: tuple[int, int, int, int] | None,
    stop: Callable[[], None],
) -> dict:
    """The summary of a finished slide with scores in place of those that it may have.

    Args:
      summary: what summary.json says.
      folder: of the results.
      truth: file of codes.
      scheme: of the model.
      codes: code book of the truth.
      region: x, y, width, height in level-0 pixels to be scored besides the whole, or None.
      stop: raises if the user asks to stop; called for every band.

    Returns:
      A new summary: `scores` as of `score`, for a region `scores_of_region` too, `seconds.scores`.

    Raises:
      DataError: the truth cannot be used, or the labels are not those that the summary tells of.
      ConfigError: as `open_truth`.
    """
    begun = time.perf_counter()
    grid = Grid(**summary["grid"])
    with open_truth(truth, scheme, codes, grid, region) as opened, Labels(folder, summary) as labels:
        whole, *part = scores(opened, labels, scheme, grid, stop)
    for each, where in zip([whole, *part], ("", " of the region"), strict=False):
        if "distances_left_out" in each:
            name = printable(summary["slide"]["name"])
            log.warning("%s: scores%s without HD95 and NSD: %s", name, where, each["distances_left_out"])
    new = {name: value for name, value in summary.items() if name not in ("scores", "scores_of_region")}
    new["scores"] = whole
    if part:
        new["scores_of_region"] = part[0] | {"level0_x_y_width_height": list(region)}
    seconds = summary["seconds"]
    took = time.perf_counter() - begun
    total = seconds["total"] - seconds.get("scores", 0) + took
    return new | {"seconds": {**seconds, "scores": took, "total": total}}


class Labels:
    """Level 0 of a labels.ome.tif, which has to be that of its summary.

    `seen` counts the pixels of the values that `rows` gave.
    """

    def __init__(self, folder: Path, summary: dict):
        """Opens it; to be used in a `with` statement.

        Raises:
          DataError: it is not there, damaged, or something else.
        """
        self._path, self._summary = folder / summary["files"]["labels"], summary
        size = tuple(summary["grid"][side] for side in ("width", "height"))
        try:
            self._tiff = TiffRows(self._path)
        except UnreadableTiff as error:
            raise self._other(error) from error
        if (self._tiff.width, self._tiff.height) != size or self._tiff.dtype != np.uint8:
            self._tiff.__exit__()
            raise self._other(f"{self._tiff.width}x{self._tiff.height} pixels of {self._tiff.dtype}")

    def __enter__(self) -> "Labels":
        """Itself."""
        return self

    def __exit__(self, *_) -> None:
        """Closes the file."""
        self._tiff.__exit__()

    def rows(self, start: int, stop: int) -> np.ndarray:
        """Values of `classes`: uint8 [stop - start, width].

        Raises:
          DataError: the file is damaged there.
        """
        try:
            return self._tiff.rows(start, stop)
        except UnreadableTiff as error:
            raise self._other(error) from error

    def check_counts(self, counts: np.ndarray) -> None:
        """Compares pixels by value, int64 [256], with the areas of the summary: another slide's labels have others.

        Raises:
          DataError: they differ.
        """
        expected = np.zeros(256, np.int64)
        for each in self._summary["classes"]:
            expected[each["value"]] = each["pixels"]
        pixel_mm2 = Grid(**self._summary["grid"]).pixel_mm2
        expected[UNREADABLE] = round(self._summary["unreadable_area_mm2"] / pixel_mm2)
        expected[BACKGROUND] = counts.sum() - expected.sum()
        differ = np.flatnonzero(counts != expected)
        if len(differ):
            value = differ[-1]
            raise self._other(f"{counts[value]} pixels of the value {value} in place of {expected[value]}")

    def _other(self, found):
        return DataError(
            f"{printable(self._path)}: expected the labels that the summary.json beside it tells of, found {found}; compute "
            "the slide again with --overwrite"
        )


def scores(truth: Truth, labels: Labels, scheme: LabelScheme, grid: Grid, stop: Callable[[], None]) -> list[dict]:
    """Scores of the whole slide, and of the truth's region if it has one.

    Known tissue that was not segmented (taken for glass, or unreadable) counts as missed.

    Args:
      truth: what is known.
      labels: what was found.
      scheme: the label scheme.
      grid: the slide's.
      stop: called for every band.

    Returns:
      JSON each: `dice`, `iou`, `precision`, `recall`, `hd95_um`, `nsd`, each by class and "macro", None where there is no
      score; `confusion` (`truth` names of the rows, `prediction` of the columns, `pixels`), `tolerance_um`. Where the
      area is too large for `hd95_um` and `nsd` they are None, and `distances_left_out` says why.

    Raises:
      DataError: a file is damaged, nothing is known, or the labels are not those of the summary.
    """
    everything = tuple(slice(0, size) for size in truth.shape)
    parts = [_Part(part, scheme) for part in ([everything] if truth.region is None else [everything, truth.region])]
    for start, end in truth.bands():
        stop()
        known, predicted = truth.rows(start, end), labels.rows(start, end)
        for part in parts:
            part.add(part_of(known, start, part.place), part_of(predicted, start, part.place), start)
    labels.check_counts(parts[0].pairs.sum(0))
    for number, part in enumerate(parts):
        if not part.rows.any():
            raise truth.nothing_to_score(truth.region if number else None)
    return [part.scores(truth, labels, grid.mpp) for part in parts]


class _Part:
    """What is counted in a part of the grid.

    Attributes:
      place: rows and columns.
      pairs: int64 [256, 256], pixels by label of the truth and value of the prediction.
      rows: bool, of the part's rows whether anything is known in them.
      columns: likewise.
    """

    def __init__(self, place, scheme):
        self.place, self.pairs, self._scheme = place, np.zeros((256, 256), np.int64), scheme
        self.rows, self.columns = (np.zeros(along.stop - along.start, bool) for along in place)
        self._known = np.zeros(256, bool)
        self._known[list(scheme.evaluated)] = True
        self._label = np.full(256, scheme.num_classes, np.uint8)  # a label more, for what was not segmented
        self._label[1 : 1 + len(scheme.evaluated)] = scheme.evaluated

    def add(self, truth, predicted, start):
        """The pixels of the part that are in a band, which begins at row `start` of the grid."""
        pairs = truth.astype(np.uint16) << 8 | predicted
        self.pairs += np.bincount(pairs.ravel(), minlength=1 << 16).reshape(256, 256)
        known = self._known[truth]
        first = max(0, start - self.place[0].start)
        self.rows[first : first + len(known)] = known.any(axis=1)
        self.columns |= known.any(axis=0)

    def scores(self, truth, labels, mpp):
        scheme = self._scheme
        counts = np.zeros((256, scheme.num_classes + 1), np.int64)
        np.add.at(counts.T, self._label, self.pairs.T)
        counts = np.where(self._known[:, None], counts, 0)[: scheme.num_classes + 1]
        names = [*scheme.evaluated_names, "macro"]

        def by_class(values):
            values = [*values, metrics.mean_of_known(np.asarray(values), axis=0)]
            return {name: None if np.isnan(value) else float(value) for name, value in zip(names, values, strict=True)}

        measures = {"dice": metrics.dice, "iou": metrics.iou, "precision": metrics.precision, "recall": metrics.recall}
        result = {name: by_class(measure(counts, scheme.evaluated)) for name, measure in measures.items()}
        box = self._box()
        height, width = (along.stop - along.start for along in box)
        if height * width > LARGEST_OUTLINES:
            reason = (
                f"what is known spans {width} x {height} pixels, and HD95 and NSD need at most {LARGEST_OUTLINES:,} at once; "
                "--truth_region scores a part"
            )
            result |= {"hd95_um": None, "nsd": None, "distances_left_out": reason}
        else:
            outlines = self._outlines(truth, labels, mpp, box)
            result |= {"hd95_um": by_class(outlines.hd95_um), "nsd": by_class(outlines.nsd)}
        return result | {
            "tolerance_um": TOLERANCE_UM,
            "confusion": {
                "truth": list(scheme.evaluated_names),
                "prediction": [*scheme.evaluated_names, "not segmented"],
                "pixels": counts[np.ix_(scheme.evaluated, [*scheme.evaluated, scheme.num_classes])].tolist(),
            },
        }

    def _box(self):
        """The smallest one that holds all that is known."""
        box = []
        for along, known in zip(self.place, (self.rows, self.columns), strict=True):
            first, last = np.flatnonzero(known)[[0, -1]].tolist()
            box.append(slice(along.start + first, along.start + last + 1))
        return box

    def _outlines(self, truth, labels, mpp, box):
        """HD95 and NSD in a box."""
        shape = tuple(along.stop - along.start for along in box)
        known, predicted = np.empty(shape, np.uint8), np.empty(shape, np.uint8)
        for start, end in truth.bands(box[0].start, box[0].stop):
            here = slice(start - box[0].start, end - box[0].start)
            found = truth.rows(start, end)[:, box[1]]
            known[here] = np.where(self._known[found], found, 255)
            predicted[here] = self._label[labels.rows(start, end)[:, box[1]]]
        evaluated = self._scheme.evaluated
        return surface_scores(known, predicted, evaluated, 255, mpp=mpp, tolerance_um=TOLERANCE_UM)
