"""Reads the JSON files that a run of nnU-Net's method writes and reads again, and checks what they hold."""

import math
from pathlib import Path
from typing import Annotated, Any, NotRequired

import numpy as np
from pydantic import AfterValidator, Field
from typing_extensions import TypedDict

from bcss_jax import metrics
from bcss_jax.common.json_files import read_json
from bcss_jax.errors import DataError, UserError
from bcss_jax.labels import LabelScheme
from bcss_jax.nnunet.fingerprint import SPACING

_Count = Annotated[int, Field(ge=0)]
_Side = Annotated[int, Field(ge=1)]
_Label = Annotated[int, Field(ge=1, le=255)]
_Share = Annotated[float, Field(ge=0, le=1)]


class _Intensities(TypedDict):
    max: float
    mean: float
    median: float
    min: float
    percentile_00_5: float
    percentile_99_5: float
    std: float


class _Fingerprint(TypedDict):
    foreground_intensity_properties_per_channel: dict[str, _Intensities]
    median_relative_size_after_cropping: _Share
    shapes_after_crop: Annotated[list[Annotated[list[_Side], Field(min_length=3, max_length=3)]], Field(min_length=1)]
    spacings: list[Annotated[list[Annotated[float, Field(gt=0)]], Field(min_length=3, max_length=3)]]


def _check_cases(values: dict) -> dict:
    """Raises ValueError unless shapes and spacings are those of the same 2D images."""
    shapes, spacings = values["shapes_after_crop"], values["spacings"]
    if len(shapes) != len(spacings):
        raise ValueError(f"{len(shapes)} shapes and {len(spacings)} spacings")
    if any(shape[0] != 1 for shape in shapes) or any(tuple(spacing) != SPACING for spacing in spacings):
        raise ValueError("shapes or spacings that are not those of 2D images without a spacing")
    return values


class _Fold(TypedDict):
    train: list[str]
    val: list[str]


class _Postprocessing(TypedDict):
    keep_largest: list[Annotated[list[_Label], Field(min_length=1)]]
    dice_before: NotRequired[dict[str, _Share | None]]
    dice_after: NotRequired[dict[str, _Share | None]]


class _FoldScores(TypedDict):
    counts: Annotated[dict[str, list[list[_Count]]], Field(min_length=1)]
    dice_global: dict[str, _Share | None]
    dice_image: dict[str, _Share | None]


def _same(a: float | None, b: float | None) -> bool:
    return a is b is None or (a is not None and b is not None and math.isclose(a, b, abs_tol=1e-9))


def read_fingerprint(path: Path, remedy: str, error_type: type[UserError] = DataError) -> Any:
    """Returns the content of a dataset_fingerprint.json; errors as of `read_json`."""
    kind = Annotated[_Fingerprint, AfterValidator(_check_cases)]
    return read_json(path, "the fingerprint of a data set", remedy, kind=kind, error_type=error_type)


def read_splits(path: Path, remedy: str) -> Any:
    """Returns the content of a splits_final.json: the names of "train" and "val" of each fold."""
    return read_json(path, "the split that the folds were trained with", remedy, kind=list[_Fold])


def read_postprocessing(path: Path, remedy: str) -> Any:
    """Returns the content of a postprocessing.json, as `postprocess.determine_postprocessing` returned it."""
    return read_json(path, "the postprocessing of a run", remedy, kind=_Postprocessing)


def read_fold_scores(path: Path, scheme: LabelScheme) -> Any:
    """Returns the content of a fold's summary.json: scores, and confusion counts that they are the scores of."""

    def check(values):
        counts = list(values["counts"].values())
        if any(len(rows) != scheme.num_classes or {len(row) for row in rows} != {len(rows)} for rows in counts):
            raise ValueError("counts of another number of classes")
        expected = metrics.scores(np.asarray(counts), 1, scheme.class_names, scheme.evaluated)
        for name in ("dice_global", "dice_image"):
            found = values[name]
            if found.keys() != expected[name].keys() or not all(
                _same(found[key], value) for key, value in expected[name].items()
            ):
                raise ValueError(f"{name} of other counts")
        return values

    remedy = "validate the fold again: delete the file and run the same command"
    return read_json(path, "the scores of a fold", remedy, kind=Annotated[_FoldScores, AfterValidator(check)])
