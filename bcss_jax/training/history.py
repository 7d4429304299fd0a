"""The record of a run: its position and its history, saved as JSON in every checkpoint for a resumed run."""

import csv
import dataclasses
import io
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, NotRequired, TypeVar

import numpy as np
from pydantic import Field
from typing_extensions import TypedDict

from bcss_jax import losses, metrics
from bcss_jax.common.json_files import check_shape
from bcss_jax.common.timing import Timed
from bcss_jax.errors import DataError, first_line, printable
from bcss_jax.losses import Objective
from bcss_jax.training.loss_scale import LossScale

# Columns of history.csv, which has one row per epoch. Scores are of the validation split unless they begin with train_.
COLUMNS = (
    "epoch", "step", "train_loss", "val_loss", "train_iou", "val_iou", "train_dice", "val_dice", "dice_image",
    "dice_batch", "iou_image", "iou_batch", "learning_rate", "grad_norm", "input_wait", "images_per_second", "seconds",
    "best",
)  # fmt: skip
# Further columns in float16: number of steps of the epoch that were skipped, and the scale at its end.
LOSS_SCALE_COLUMNS = ("skipped_by_loss_scale", "loss_scale")


class SplitTotals:
    """Loss sums and confusion counts of all batches of a split, in float64 and int64."""

    def __init__(self, values: dict | None = None):
        """Starts at zero, or with the values that `to_json` returned."""
        values = values or {}
        self.sums = {name: np.asarray(value, np.float64) for name, value in values.get("sums", {}).items()}
        self.confusion = np.asarray(values.get("confusion", 0), np.int64)

    def add(self, sums: dict, confusion: np.ndarray) -> None:
        """Adds the `losses.loss_sums` and the confusion counts [C, C] of a batch."""
        for name, value in sums.items():
            self.sums[name] = self.sums.get(name, 0.0) + np.asarray(value, np.float64)
        self.confusion = self.confusion + np.asarray(confusion, np.int64)

    def loss(self, objective: Objective) -> float:
        """Returns the loss of all batches together, as if they were one; NaN if there was none."""
        return float(losses.loss_from_sums(self.sums, objective)) if self.sums else math.nan

    def macro(self, measure, classes) -> float:
        """Returns the mean over classes of a measure (`metrics.dice`, `metrics.iou`); NaN if no class occurs."""
        values = measure(self.confusion, classes) if self.confusion.ndim else np.asarray([math.nan])
        return float(np.mean(values[~np.isnan(values)])) if not np.isnan(values).all() else math.nan

    def to_json(self) -> dict:
        """Returns sums and counts as JSON, which keeps floats exactly."""
        return {"sums": {k: v.tolist() for k, v in self.sums.items()}, "confusion": self.confusion.tolist()}


@dataclasses.dataclass
class EpochRecord(Timed):
    """Position of a run, and one row per finished epoch.

    Attributes:
      epoch: number of finished epochs.
      step_in_epoch: number of finished steps of the current epoch.
      history: one row per finished epoch.
      bad_steps: number of steps with a non-finite loss or gradient so far.
      skipped_by_loss_scale: number of steps whose gradient was not finite because of the loss scale; not bad steps.
    """

    epoch: int = 0
    step_in_epoch: int = 0
    history: list[dict] = dataclasses.field(default_factory=list)
    bad_steps: int = 0
    skipped_by_loss_scale: int = 0

    def end_epoch(self, row: dict) -> bool:
        """Adds the row of the finished epoch and starts the next. Returns whether this epoch is the best so far."""
        raise NotImplementedError

    def loss_scale_columns(self, state: LossScale | None) -> dict:
        """Returns the `LOSS_SCALE_COLUMNS` of the epoch that ends; none without a loss scale."""
        if state is None:
            return {}
        before = sum(row.get("skipped_by_loss_scale", 0) for row in self.history)
        return {"skipped_by_loss_scale": self.skipped_by_loss_scale - before, "loss_scale": float(state.scale)}

    def to_json(self) -> dict:
        """Returns the whole record as JSON."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        if not self.skipped_by_loss_scale:  # earlier versions do not know it
            del values["skipped_by_loss_scale"]
        return values


@dataclasses.dataclass
class RunRecord(EpochRecord):
    """Record of a run whose best epoch has the lowest validation loss.

    The rows of `history` have the columns `COLUMNS`, and `scores` (`metrics.scores` of the validation split).

    Attributes:
      totals: of the training batches of the current epoch.
      empty_steps: number of steps in which all pixels were ignored.
    """

    totals: SplitTotals = dataclasses.field(default_factory=SplitTotals)
    empty_steps: int = 0

    def best(self) -> dict | None:
        """Returns the row with the lowest validation loss, the first of equals; None if no loss was finite."""
        rows = [row for row in self.history if row["val_loss"] is not None]
        return min(rows, key=lambda row: row["val_loss"], default=None)

    def stalled_epochs(self) -> int:
        """Returns the number of epochs since the best one."""
        best = self.best()
        return self.epoch - (best["epoch"] if best else 0)

    def end_epoch(self, row: dict) -> bool:
        """Adds the row of the finished epoch, marks the best row, and starts the next epoch.

        Returns:
          Whether the finished epoch is the best so far.
        """
        self.history.append(json_row(row))
        best = self.best()
        for each in self.history:
            each["best"] = each is best
        self.epoch, self.step_in_epoch, self.totals = self.epoch + 1, 0, SplitTotals()
        return best is self.history[-1]

    def to_json(self) -> dict:
        """Returns the whole record as JSON."""
        return super().to_json() | {"totals": self.totals.to_json()}

    @classmethod
    def from_json(cls, values: dict) -> "RunRecord":
        """Returns the record that `to_json` wrote."""
        values = dict(values)
        return cls(totals=SplitTotals(values.pop("totals")), **values)


class _Row(TypedDict):
    epoch: Annotated[int, Field(ge=1)]
    val_loss: float | None
    skipped_by_loss_scale: NotRequired[Annotated[int, Field(ge=0)]]


class _Totals(TypedDict):
    sums: dict[str, Any]
    confusion: Any


class RunRecordJson(TypedDict):
    """What is read of the record of a run in a checkpoint."""

    seconds: float
    epoch: Annotated[int, Field(ge=0)]
    step_in_epoch: Annotated[int, Field(ge=0)]
    history: list[_Row]
    bad_steps: Annotated[int, Field(ge=0)]
    totals: _Totals
    empty_steps: NotRequired[Annotated[int, Field(ge=0)]]
    skipped_by_loss_scale: NotRequired[Annotated[int, Field(ge=0)]]


Record = TypeVar("Record", bound=EpochRecord)


def restored_record(read: Callable[[dict], Record], kind: Any, values: Any, folder: Path) -> Record:
    """Returns the record of a checkpoint.

    Args:
      read: makes it of JSON, for example `RunRecord.from_json`.
      kind: shape of the JSON, for example `RunRecordJson`.
      values: the JSON.
      folder: of the checkpoints, for the message.

    Raises:
      DataError: the JSON is not that of such a record.
    """
    try:
        check_shape(values, kind, finite=False)  # sums of bad steps may be NaN
        record = read(values)
        if record.epoch != len(record.history):
            raise ValueError(f"{record.epoch} epochs with {len(record.history)} rows")
        return record
    except (ValueError, TypeError) as error:
        raise DataError(
            f"{printable(folder)}: expected the progress of the run in its checkpoint, found: {first_line(error)}; "
            "delete the damaged checkpoint, or start over with --fresh"
        ) from error


def history_csv(history: list[dict], columns: Sequence[str] = COLUMNS) -> str:
    """Returns the text of history.csv. Runs in float16 have the `LOSS_SCALE_COLUMNS` as well."""
    if any(name in row for row in history for name in LOSS_SCALE_COLUMNS):
        columns = (*columns, *LOSS_SCALE_COLUMNS)
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(history)
    return text.getvalue()


def skipped_text(row: dict) -> str:
    """Returns what the table of epochs says of skipped steps; nothing if there are none."""
    count = row.get("skipped_by_loss_scale")
    return f"  {count} skipped by the loss scale, now {row['loss_scale']:g}" if count else ""


def epoch_row(record: RunRecord, val_loss: float, scores: dict, objective: Objective, **more) -> dict:
    """Returns the row of a finished epoch.

    Args:
      record: with the totals of the training batches.
      val_loss: of the validation split.
      scores: `metrics.scores` of the validation split.
      objective: of the run.
      **more: further columns.
    """
    classes = objective.classes
    return {
        "epoch": record.epoch + 1,
        "train_loss": record.totals.loss(objective),
        "val_loss": val_loss,
        "train_iou": record.totals.macro(metrics.iou, classes),
        "val_iou": scores["iou_global"]["macro"],
        "train_dice": record.totals.macro(metrics.dice, classes),
        "val_dice": scores["dice_global"]["macro"],
        "dice_image": scores["dice_image"]["macro"],
        "dice_batch": scores["dice_batch"]["macro"],
        "iou_image": scores["iou_image"]["macro"],
        "iou_batch": scores["iou_batch"]["macro"],
        "scores": scores,
        **more,
    }


def json_row(row: dict) -> dict:
    """Returns a row with None in place of numbers that are not finite, which JSON does not have."""
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}
