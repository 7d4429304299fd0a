"""Where a run is and what it has measured: saved as JSON in every checkpoint, so that a resumed run knows all of it."""

import csv
import dataclasses
import io
import math
from collections.abc import Sequence

import numpy as np

from bcss_jax import losses, metrics
from bcss_jax.common.timing import Timed

# Columns of history.csv; one row per epoch. Scores are those of the validation split unless named train_.
COLUMNS = (
    "epoch", "step", "train_loss", "val_loss", "train_iou", "val_iou", "train_dice", "val_dice", "dice_image",
    "dice_batch", "iou_image", "iou_batch", "learning_rate", "grad_norm", "input_wait", "images_per_second", "seconds", "best",
)  # fmt: skip


class SplitTotals:
    """Loss sums and confusion counts added up over batches, in float64 and int64."""

    def __init__(self, values: dict | None = None):
        """Nothing added up yet, or what `to_json` gave."""
        values = values or {}
        self.sums = {name: np.asarray(value, np.float64) for name, value in values.get("sums", {}).items()}
        self.confusion = np.asarray(values.get("confusion", 0), np.int64)

    def add(self, sums: dict, confusion: np.ndarray) -> None:
        """Adds a batch: `losses.loss_sums` and counts [C, C]."""
        for name, value in sums.items():
            self.sums[name] = self.sums.get(name, 0.0) + np.asarray(value, np.float64)
        self.confusion = self.confusion + np.asarray(confusion, np.int64)

    def loss(self, smooth: float) -> float:
        """Loss of everything added up, as if it were one batch; NaN if nothing was."""
        return float(losses.loss_from_sums(self.sums, smooth=smooth)) if self.sums else math.nan

    def macro(self, measure, classes) -> float:
        """Mean over classes of `metrics.dice` or `metrics.iou` of the counts; NaN where no class occurs."""
        values = measure(self.confusion, classes) if self.confusion.ndim else np.asarray([math.nan])
        return float(np.mean(values[~np.isnan(values)])) if not np.isnan(values).all() else math.nan

    def to_json(self) -> dict:
        """Exact: floats survive JSON."""
        return {"sums": {k: v.tolist() for k, v in self.sums.items()}, "confusion": self.confusion.tolist()}


@dataclasses.dataclass
class RunRecord(Timed):
    """Position, totals of the running epoch, and one row per finished epoch.

    Attributes:
      epoch: finished epochs.
      step_in_epoch: batches done of the running one.
      totals: of the running epoch's training batches.
      history: rows of `COLUMNS`, each with `scores` (`metrics.scores` of the validation split) besides.
      bad_steps: steps with a non-finite loss or gradient so far.
      empty_steps: steps in which all pixels were ignored.
    """

    epoch: int = 0
    step_in_epoch: int = 0
    totals: SplitTotals = dataclasses.field(default_factory=SplitTotals)
    history: list[dict] = dataclasses.field(default_factory=list)
    bad_steps: int = 0
    empty_steps: int = 0

    def best(self) -> dict | None:
        """The row with the lowest validation loss (the first of equals); None before the first finite one."""
        rows = [row for row in self.history if row["val_loss"] is not None]
        return min(rows, key=lambda row: row["val_loss"], default=None)

    def stalled_epochs(self) -> int:
        """Finished epochs since the best one."""
        best = self.best()
        return self.epoch - (best["epoch"] if best else 0)

    def end_epoch(self, row: dict) -> bool:
        """Takes the finished epoch's row, marks the best, and starts the next. Returns whether it is the best so far."""
        self.history.append({key: _json_number(value) for key, value in row.items()})
        best = self.best()
        for each in self.history:
            each["best"] = each is best
        self.epoch, self.step_in_epoch, self.totals = self.epoch + 1, 0, SplitTotals()
        return best is self.history[-1]

    def to_json(self) -> dict:
        """Everything, as JSON."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return fields | {"totals": self.totals.to_json()}

    @classmethod
    def from_json(cls, values: dict) -> "RunRecord":
        """The inverse of `to_json`."""
        return cls(**values | {"totals": SplitTotals(values["totals"])})


def history_csv(history: list[dict], columns: Sequence[str] = COLUMNS) -> str:
    """The text of history.csv."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(history)
    return text.getvalue()


def epoch_row(
    record: RunRecord, validation: SplitTotals, scores: dict, classes: tuple[int, ...], smooth: float, **more
) -> dict:
    """The row of a finished epoch: totals of both splits, `scores` of the validation split, and what else is given."""
    return {
        "epoch": record.epoch + 1,
        "train_loss": record.totals.loss(smooth),
        "val_loss": validation.loss(smooth),
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


def _json_number(value):
    """JSON has no NaN: None says that there is no number."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
