"""per_image.csv: what a model scored on every image, a row each, so that any figure can be traced to its images.

Columns: key, patient, institute; then for each evaluated class `dice_NAME`, `iou_NAME`, `tp_NAME`, `fp_NAME`, `fn_NAME`
(pixels), `hd95_um_NAME` (micrometers) and `nsd_NAME`. A cell is empty where there is no score. Numbers are written in
full: what is read is what was written, bit for bit.
"""

import csv
import dataclasses
import io
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from bcss_jax import metrics
from bcss_jax.common.files import write_text
from bcss_jax.errors import DataError
from bcss_jax.labels import LabelScheme

ABOUT = ("key", "patient", "institute")
COUNTS = ("tp", "fp", "fn")
SCORES = ("dice", "iou", "hd95_um", "nsd")
ORDER = ("dice", "iou", "tp", "fp", "fn", "hd95_um", "nsd")  # of the columns of a class


@dataclasses.dataclass(frozen=True)
class PerImage:
    """The N rows of a per_image.csv over K evaluated classes.

    Attributes:
      key: N names, unique.
      patient: N.
      institute: N.
      class_names: K.
      dice: float64 [N, K], NaN where there is no score.
      iou: likewise.
      tp: int64 [N, K], pixels.
      fp: likewise.
      fn: likewise.
      hd95_um: float64 [N, K], micrometers, NaN where there is no score.
      nsd: float64 [N, K], likewise.
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


def per_image(
    images: Sequence[dict], confusion: np.ndarray, hd95_um: np.ndarray, nsd: np.ndarray, scheme: LabelScheme
) -> PerImage:
    """The table of a set of images.

    Args:
      images: N dicts with `key`, `patient` and `institute`, as `dataset.PreparedData.table` gives them.
      confusion: integers [N, C, C], as `metrics.confusion` gives them.
      hd95_um: [N, K] micrometers over the K evaluated classes, NaN where there is no score.
      nsd: [N, K], likewise.
      scheme: the label scheme.

    Raises:
      DataError: no images, or an image twice.
      ValueError: shapes that do not fit.
    """
    if not len(images):
        raise DataError("evaluation: expected images, found none; choose a part of the data set that has some")
    n, k, c = len(images), len(scheme.evaluated), scheme.num_classes
    hd95_um, nsd = np.asarray(hd95_um, np.float64), np.asarray(nsd, np.float64)
    if np.shape(confusion) != (n, c, c) or hd95_um.shape != (n, k) or nsd.shape != (n, k):
        raise ValueError(
            f"{n} images, {c} labels and {k} evaluated classes need counts {(n, c, c)} and distances {(n, k)}; "
            f"found {np.shape(confusion)}, {hd95_um.shape}, {nsd.shape}"
        )
    about = {name: tuple(image[name] for image in images) for name in ABOUT}
    _refuse_twice(about["key"], "evaluation")
    tp, fp, fn = metrics.tp_fp_fn(confusion, scheme.evaluated)
    return PerImage(
        **about,
        class_names=scheme.evaluated_names,
        dice=metrics.dice(confusion, scheme.evaluated),
        iou=metrics.iou(confusion, scheme.evaluated),
        tp=tp,
        fp=fp,
        fn=fn,
        hd95_um=hd95_um,
        nsd=nsd,
    )


def write(path: Path, rows: PerImage) -> None:
    """Writes per_image.csv, whole or not at all.

    Raises:
      StorageError: it cannot be written.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_columns(rows.class_names))
    for n in range(len(rows.key)):
        cells = [getattr(rows, name)[n] for name in ABOUT]
        for i in range(len(rows.class_names)):
            for name in ORDER:
                value = getattr(rows, name)[n, i].item()
                cells.append("" if math.isnan(value) else repr(value))
        writer.writerow(cells)
    write_text(path, text.getvalue())


def read(path: Path) -> PerImage:
    """Reads what `write` wrote.

    Raises:
      DataError: not such a file, or an image twice; one line.
    """
    try:
        with open(path, newline="", encoding="utf-8") as file:
            header, *rows = list(csv.reader(file, strict=True))
        class_names = tuple(name.removeprefix("dice_") for name in header[len(ABOUT) :: len(ORDER)])
        if header != _columns(class_names) or not rows or any(len(row) != len(header) for row in rows):
            raise ValueError("other columns")
        cells = np.asarray([row[len(ABOUT) :] for row in rows], object).reshape(len(rows), len(class_names), -1)
        columns = {name: cells[..., i] for i, name in enumerate(ORDER)}
        counts = {name: columns[name].astype(np.int64) for name in COUNTS}
        scores = {name: np.where(columns[name] == "", "nan", columns[name]).astype(np.float64) for name in SCORES}
    except OSError as error:
        raise DataError(f"{path}: expected a per_image.csv, found: {error.strerror}; evaluate again") from error
    except (ValueError, OverflowError, csv.Error) as error:
        raise DataError(
            f"{path}: expected the columns and numbers of a per_image.csv, found others; evaluate again"
        ) from error
    about = {name: tuple(row[i] for row in rows) for i, name in enumerate(ABOUT)}
    _refuse_twice(about["key"], path)
    return PerImage(**about, class_names=class_names, **counts, **scores)


def _columns(class_names):
    return [*ABOUT, *(f"{name}_{class_name}" for class_name in class_names for name in ORDER)]


def _refuse_twice(keys, where):
    seen = set()
    for key in keys:
        if key in seen:
            raise DataError(f"{where}: expected every image once, found {key} twice; remove one of them")
        seen.add(key)
