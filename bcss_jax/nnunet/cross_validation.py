"""Combines the folds: one table of their scores, and the decision whether to keep only largest components."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from bcss_jax import metrics
from bcss_jax.common.files import write_text
from bcss_jax.common.formatting import format_score
from bcss_jax.common.outputs import written_files
from bcss_jax.common.regular_file import check_regular_file
from bcss_jax.errors import DataError, UserError, first_line, printable
from bcss_jax.labels import LabelScheme
from bcss_jax.nnunet import postprocess
from bcss_jax.nnunet.cases import Case
from bcss_jax.nnunet.run_files import read_fold_scores


def summarize(workdir: Path, splits: list[dict], scheme: LabelScheme, data: dict) -> tuple[dict, str] | None:
    """Combines the scores of all folds and writes cross_validation.json.

    Args:
      workdir: of the run; the folds' scores are in `fold_<k>/validation/summary.json`.
      splits: names of the validation cases ("val") of each fold.
      scheme: of the labels.
      data: description of the data set as JSON.

    Returns:
      The content of cross_validation.json (scores of each fold, their mean and standard deviation, the scores of all
      cases together, and `data`) and a text table; None if a fold is missing.

    Raises:
      DataError: the scores of a fold are not those of its validation cases.
    """
    files = [workdir / f"fold_{number}" / "validation" / "summary.json" for number in range(len(splits))]
    if not all(file.exists() for file in files):
        return None
    summaries = [read_fold_scores(file, scheme) for file in files]
    for file, each, split in zip(files, summaries, splits, strict=True):
        differing = sorted(set(each["counts"]) ^ set(split["val"]))
        if differing:
            raise DataError(
                f"{file}: expected the scores of the {len(split['val'])} validation cases of this fold, found other "
                f"cases ({', '.join(differing[:5])}); delete {file.parent} to validate the fold again"
            )
    counts = [np.array(list(each["counts"].values())) for each in summaries]
    together = metrics.scores(np.concatenate(counts), 1, scheme.class_names, scheme.evaluated)
    by_fold = [{key: value for key, value in each.items() if key not in ("counts", "data")} for each in summaries]
    means = [each["dice_global"]["macro"] for each in by_fold]
    known = [value for value in means if value is not None]
    found = {
        "folds": by_fold,
        "mean_of_folds": float(np.mean(known)) if known else None,
        "deviation_of_folds": float(np.std(known)) if known else None,
        "all_cases": together,
        "data": data,
    }
    write_text(workdir / "cross_validation.json", json.dumps(found, indent=1, allow_nan=False) + "\n")
    return found, _table(found, counts, scheme)


def _table(found, counts, scheme):
    """Returns a text table of the Dice over all pixels of the validation cases, one row per fold."""
    names = scheme.evaluated_names
    rows = [[str(number), str(len(count))] for number, count in enumerate(counts)]
    rows += [["all", str(sum(map(len, counts)))]]
    for row, scores in zip(rows, [*found["folds"], found["all_cases"]], strict=True):
        values = [scores["dice_global"][name] for name in (*names, "macro")] + [scores["dice_image"]["macro"]]
        row += map(format_score, values)
    rows.insert(0, ["fold", "cases", *names, "mean", "mean by case"])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(f"{cell:>{width}}" for cell, width in zip(row, widths, strict=True)) for row in rows]
    if found["mean_of_folds"] is not None and len(counts) > 1:
        lines.append(f"mean of the folds {found['mean_of_folds']:.4f}, deviation {found['deviation_of_folds']:.4f}")
    return "\n".join(lines)


def decide_postprocessing(workdir: Path, cases: dict[str, Case], splits: list[dict], scheme: LabelScheme) -> dict:
    """Decides on post-processing by the predictions of all folds, and writes postprocessing.json.

    Args:
      workdir: of the run; predictions are in `fold_<k>/validation/<case>.png`.
      cases: by name.
      splits: names of the validation cases ("val") of each fold.
      scheme: of the labels.

    Returns:
      As `postprocess.determine_postprocessing`.
    """
    where = [(number, name) for number, split in enumerate(splits) for name in split["val"]]
    predictions = _LazyArrays(
        lambda number, name: _prediction(workdir / f"fold_{number}" / "validation", f"{name}.png"), where
    )
    truths = _LazyArrays(lambda number, name: cases[name].read()[1], where)
    decision = postprocess.determine_postprocessing(predictions, truths, scheme.evaluated, scheme.ignore_index)
    write_text(workdir / "postprocessing.json", json.dumps(decision, indent=1) + "\n")
    return decision


def _prediction(folder: Path, name: str) -> np.ndarray:
    """Returns labels that `validate` wrote. Raises DataError if they are missing or have changed."""
    found = "a file that has changed" if written_files.changed(folder, [name]) else ""
    try:
        check_regular_file(folder / name, "the labels of a validation case", "run its fold again")
        labels = np.asarray(Image.open(folder / name))
    except Exception as error:  # Pillow raises many kinds for a damaged file
        if isinstance(error, UserError):
            raise
        found = first_line(error)
    if found:
        raise DataError(
            f"{printable(folder / name)}: expected the labels of a validation case, found: {found}; run its fold again"
        )
    return labels


class _LazyArrays(Sequence[np.ndarray]):
    """A sequence of arrays that are read when they are accessed."""

    def __init__(self, read: Callable, arguments: Sequence[tuple]):
        self._read, self._arguments = read, arguments

    def __len__(self):
        return len(self._arguments)

    def __getitem__(self, index) -> Any:
        return np.asarray(self._read(*self._arguments[index]))
