"""per_image.csv: the scores of a model on every image, one row each, so that each score can be traced to its images.

Columns: key, patient, institute; then for each evaluated class `dice_NAME`, `iou_NAME`, `tp_NAME`, `fp_NAME`, `fn_NAME`
(pixels), `hd95_um_NAME` (micrometers) and `nsd_NAME`. A cell is empty where there is no score. Numbers are written with
all digits, so that reading the file gives exactly the numbers that were written.
"""

import csv
import dataclasses
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bcss_jax import metrics
from bcss_jax.common.files import write_text
from bcss_jax.common.regular_file import read_regular_file
from bcss_jax.errors import DataError
from bcss_jax.labels import LabelScheme

ID_COLUMNS = ("key", "patient", "institute")
COUNT_COLUMNS = ("tp", "fp", "fn")
SCORE_COLUMNS = ("dice", "iou", "hd95_um", "nsd")
CLASS_COLUMNS = ("dice", "iou", "tp", "fp", "fn", "hd95_um", "nsd")  # of each class, in this order


@dataclasses.dataclass(frozen=True)
class PerImageScores:
    """The N rows of a per_image.csv, for K evaluated classes.

    Attributes:
      key: unique names of the N images.
      patient: N names.
      institute: N names.
      class_names: K names.
      dice: float64 [N, K], NaN where there is no score.
      iou: float64 [N, K], NaN where there is no score.
      tp: int64 [N, K], true positive pixels.
      fp: int64 [N, K], false positive pixels.
      fn: int64 [N, K], false negative pixels.
      hd95_um: float64 [N, K], micrometers, NaN where there is no score.
      nsd: float64 [N, K], NaN where there is no score.
    """

    key: tuple[str, ...]
    patient: tuple[str, ...]
    institute: tuple[str, ...]
    class_names: tuple[str, ...]
    dice: np.ndarray
    iou: np.ndarray
    tp: np.ndarray
    fp: np.ndarray
    fn: np.ndarray
    hd95_um: np.ndarray
    nsd: np.ndarray


def per_image_scores(
    images: Sequence[dict], confusion: np.ndarray, hd95_um: np.ndarray, nsd: np.ndarray, scheme: LabelScheme
) -> PerImageScores:
    """Returns the scores of each image.

    Args:
      images: N dicts with `key`, `patient` and `institute`, as in `tfrecords.PreparedData.table`.
      confusion: integers [N, C, C], as `metrics.confusion` returns them.
      hd95_um: [N, K] micrometers over the K evaluated classes, NaN where there is no score.
      nsd: [N, K], NaN where there is no score.
      scheme: the label scheme.

    Raises:
      DataError: There are no images, or an image occurs twice.
      ValueError: The shapes do not fit.
    """
    if not len(images):
        raise DataError("evaluation: expected images, found none; choose a split of the data set that has some")
    n, k, c = len(images), len(scheme.evaluated), scheme.num_classes
    hd95_um, nsd = np.asarray(hd95_um, np.float64), np.asarray(nsd, np.float64)
    if np.shape(confusion) != (n, c, c) or hd95_um.shape != (n, k) or nsd.shape != (n, k):
        raise ValueError(
            f"{n} images, {c} labels and {k} evaluated classes: expected counts {(n, c, c)} and distances {(n, k)}, "
            f"found {np.shape(confusion)}, {hd95_um.shape}, {nsd.shape}"
        )
    ids: dict[str, Any] = {name: tuple(image[name] for image in images) for name in ID_COLUMNS}
    _refuse_duplicates(ids["key"], "evaluation")
    tp, fp, fn = metrics.tp_fp_fn(confusion, scheme.evaluated)
    return PerImageScores(
        **ids,
        class_names=scheme.evaluated_names,
        dice=metrics.dice(confusion, scheme.evaluated),
        iou=metrics.iou(confusion, scheme.evaluated),
        tp=tp,
        fp=fp,
        fn=fn,
        hd95_um=hd95_um,
        nsd=nsd,
    )


def write_per_image(path: Path, rows: PerImageScores) -> None:
    """Writes per_image.csv atomically.

    Raises:
      StorageError: The file cannot be written.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_columns(rows.class_names))
    for n in range(len(rows.key)):
        cells = [getattr(rows, name)[n] for name in ID_COLUMNS]
        for i in range(len(rows.class_names)):
            for name in CLASS_COLUMNS:
                value = getattr(rows, name)[n, i].item()
                cells.append("" if math.isnan(value) else repr(value))
        writer.writerow(cells)
    write_text(path, text.getvalue())


def read_per_image(path: Path) -> PerImageScores:
    """Reads a file of `write_per_image`.

    Raises:
      DataError: It is not such a file, or an image occurs twice. The message is one line.
    """
    content = read_regular_file(path, "a per_image.csv", "evaluate again")
    try:
        header, *rows = list(csv.reader(io.StringIO(content.decode(), newline=""), strict=True))
        class_names = tuple(name.removeprefix("dice_") for name in header[len(ID_COLUMNS) :: len(CLASS_COLUMNS)])
        if header != _columns(class_names) or not rows or any(len(row) != len(header) for row in rows):
            raise ValueError("other columns")
        cells = np.asarray([row[len(ID_COLUMNS) :] for row in rows], object).reshape(len(rows), len(class_names), -1)
        columns = {name: cells[..., i] for i, name in enumerate(CLASS_COLUMNS)}
        counts: dict[str, Any] = {name: columns[name].astype(np.int64) for name in COUNT_COLUMNS}
        scores: dict[str, Any] = {
            name: np.where(columns[name] == "", "nan", columns[name]).astype(np.float64) for name in SCORE_COLUMNS
        }
        _check_values(counts, scores)
    except (ValueError, OverflowError, csv.Error) as error:
        raise DataError(
            f"{path}: expected the columns and numbers of a per_image.csv, found others; evaluate again"
        ) from error
    ids: dict[str, Any] = {name: tuple(row[i] for row in rows) for i, name in enumerate(ID_COLUMNS)}
    _refuse_duplicates(ids["key"], path)
    return PerImageScores(**ids, class_names=class_names, **counts, **scores)


def _check_values(counts: dict[str, np.ndarray], scores: dict[str, np.ndarray]) -> None:
    """Raises ValueError unless counts and scores are possible and belong together."""
    tp, fp, fn = (counts[name] for name in COUNT_COLUMNS)
    if min(tp.min(), fp.min(), fn.min()) < 0 or np.isinf(list(scores.values())).any():
        raise ValueError("numbers out of range")
    if any((scores[name] < 0).any() for name in SCORE_COLUMNS) or (scores["nsd"] > 1).any():
        raise ValueError("scores out of range")
    for name, weight in (("dice", 2), ("iou", 1)):
        size = weight * tp + fp + fn
        expected = np.divide(weight * tp, size, out=np.full(size.shape, np.nan), where=size > 0)
        if not np.allclose(scores[name], expected, rtol=0, atol=1e-9, equal_nan=True):
            raise ValueError(f"{name} of other counts")


def _columns(class_names):
    return [*ID_COLUMNS, *(f"{name}_{class_name}" for class_name in class_names for name in CLASS_COLUMNS)]


def _refuse_duplicates(keys, where):
    seen = set()
    for key in keys:
        if key in seen:
            raise DataError(f"{where}: expected every image once, found {key} twice; remove one of the two")
        seen.add(key)
