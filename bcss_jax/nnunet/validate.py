"""Prediction and scores of whole cases by sliding windows, as in nnU-Net's validation."""

import contextlib
import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from bcss_jax import metrics
from bcss_jax.common import figures
from bcss_jax.common.files import storage_errors, write_png, write_text
from bcss_jax.common.interruption import safe_point
from bcss_jax.common.outputs import written_files
from bcss_jax.common.progress import FIRST_LINE_SECONDS, ProgressLine
from bcss_jax.errors import NumericalError, printable
from bcss_jax.labels import LabelScheme
from bcss_jax.nnunet.cases import Case
from bcss_jax.nnunet.predict import predicted_labels
from bcss_jax.nnunet.store import StoredCase

PICTURES, PICTURE_SIDE = 6, 512
log = logging.getLogger(__name__)


def validate(
    predict: Callable[[np.ndarray], np.ndarray],
    cases: Sequence[Case],
    stored: Sequence[StoredCase],
    scheme: LabelScheme,
    folder: Path,
    *,
    title: str,
    data: dict,
    postprocess: Callable[[np.ndarray], np.ndarray] | None = None,
    log_seconds: float = FIRST_LINE_SECONDS,
) -> dict:
    """Predicts cases, writes their labels as PNG, scores them, and draws some of them.

    Args:
      predict: from a preprocessed image [H, W, C] to logits [H, W, K].
      cases: with their ground truth.
      stored: the same cases, preprocessed.
      scheme: of the labels.
      folder: gets `<name>.png`, `summary.json` and `samples.png`.
      title: of progress and picture.
      data: description of the data set, JSON for summary.json.
      postprocess: from labels [H, W] to labels; None: they stay as they are.
      log_seconds: time before the first progress line where the output is not a terminal.

    Returns:
      The content of summary.json: `metrics.scores`, `data`, and `counts`, the confusion counts [C, C] of each case
      by name.

    Raises:
      NumericalError: the output of the network is not finite.
      StorageError: the files cannot be written.
    """
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    chosen, pictures, counts = set(np.linspace(0, len(cases) - 1, min(PICTURES, len(cases))).astype(int)), [], {}
    with contextlib.closing(ProgressLine(f"{title}, predicting", len(cases), 0, log_seconds)) as line:
        for number, (case, prepared) in enumerate(zip(cases, stored, strict=True)):
            try:
                logits = predict(prepared.data)
            except NumericalError as error:
                raise NumericalError(f"{case.name}: {error}") from error
            labels = predicted_labels(logits, prepared.properties)
            labels = postprocess(labels) if postprocess else labels
            image, truth = case.read()
            counts[case.name] = confusion(labels, truth, scheme)
            write_png(folder / f"{case.name}.png", labels)
            if number in chosen:
                pictures.append((case.name, image, truth, labels))
            line.update(number + 1)
    safe_point()
    names, images, truths, predictions = zip(*pictures, strict=True)
    side = [min(PICTURE_SIDE, *(image.shape[axis] for image in images)) for axis in (0, 1)]
    images, truths, predictions = (np.stack([_center(a, side) for a in each]) for each in (images, truths, predictions))
    figures.samples(images, truths, predictions, scheme, folder / "samples.png", names=names, title=title)
    summary = {
        **metrics.scores(np.stack(list(counts.values())), 1, scheme.class_names, scheme.evaluated),
        "data": data,
        "counts": {name: each.tolist() for name, each in counts.items()},
    }
    write_text(folder / "summary.json", json.dumps(summary, indent=1, allow_nan=False) + "\n")
    return summary


def is_validated(folder: Path, cases: Sequence[Case]) -> bool:
    """Returns whether `validate` has finished there. If its files have changed since, a line says so, and it has not.

    Args:
      folder: as in `validate`.
      cases: as in `validate`.
    """
    if not (folder / "summary.json").exists():
        return False
    changed = written_files.changed(folder, ["summary.json", *(f"{case.name}.png" for case in cases)])
    if changed:
        log.warning(
            "%s: is missing or has changed since it was written; the cases are predicted again",
            printable(folder / changed[0]),
        )
    return not changed


def confusion(labels: np.ndarray, truth: np.ndarray, scheme: LabelScheme) -> np.ndarray:
    """Returns counts, int64 [C, C], as `metrics.confusion` for an image of any size; rows are truth."""
    counted = truth != scheme.ignore_index
    pairs = truth[counted].astype(np.int64) * scheme.num_classes + labels[counted]
    return np.bincount(pairs, minlength=scheme.num_classes**2).reshape(scheme.num_classes, -1)


def _center(array, side):
    """Returns the central part of an image."""
    y, x = ((size - wanted) // 2 for size, wanted in zip(array.shape, side, strict=False))
    return array[y : y + side[0], x : x + side[1]]
