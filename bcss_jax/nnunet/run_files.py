"""Reads the JSON files that a run of nnU-Net's method writes and reads again, and checks what they hold."""

from pathlib import Path
from typing import Annotated, Any, NotRequired

from pydantic import Field
from typing_extensions import TypedDict

from bcss_jax.common.json_files import read_json
from bcss_jax.errors import DataError, UserError

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


class Fingerprint(TypedDict):
    """Content of dataset_fingerprint.json."""

    foreground_intensity_properties_per_channel: dict[str, _Intensities]
    median_relative_size_after_cropping: _Share
    shapes_after_crop: Annotated[list[Annotated[list[_Side], Field(min_length=3, max_length=3)]], Field(min_length=1)]
    spacings: list[Annotated[list[Annotated[float, Field(gt=0)]], Field(min_length=3, max_length=3)]]


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


def read_fingerprint(path: Path, remedy: str, error_type: type[UserError] = DataError) -> Any:
    """Returns the content of a dataset_fingerprint.json; errors as of `read_json`."""
    return read_json(path, "the fingerprint of a data set", remedy, kind=Fingerprint, error_type=error_type)


def read_splits(path: Path, remedy: str) -> Any:
    """Returns the content of a splits_final.json: the names of "train" and "val" of each fold."""
    return read_json(path, "the split that the folds were trained with", remedy, kind=list[_Fold])


def read_postprocessing(path: Path, remedy: str) -> Any:
    """Returns the content of a postprocessing.json, as `postprocess.determine_postprocessing` returned it."""
    return read_json(path, "the postprocessing of a run", remedy, kind=_Postprocessing)


def read_fold_scores(path: Path, num_classes: int) -> Any:
    """Returns the content of a fold's summary.json, with confusion counts of that number of classes."""
    remedy = "validate the fold again: delete the file and run the same command"
    found = read_json(path, "the scores of a fold", remedy, kind=_FoldScores)
    for name, counts in found["counts"].items():
        if len(counts) != num_classes or any(len(row) != num_classes for row in counts):
            raise DataError(
                f"{path}: expected the scores of a fold with {num_classes}x{num_classes} counts of each case, found "
                f"others for {ascii(name)[:80]}; {remedy}"
            )
    return found
