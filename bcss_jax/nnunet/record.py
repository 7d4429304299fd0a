"""The record of a fold's training: its position and its history, saved as JSON in every checkpoint."""

import dataclasses
import math
from typing import Annotated, NotRequired

import numpy as np
from pydantic import Field
from typing_extensions import TypedDict

from bcss_jax.training.history import EpochRecord, json_row

# Columns of history.csv, which also has a column `dice_<class>` for each class.
COLUMNS = (
    "epoch", "train_loss", "val_loss", "train_dice", "val_dice", "smoothed_dice", "learning_rate", "grad_norm",
    "images_per_second", "input_wait", "seconds", "best",
)  # fmt: skip
SMOOTHING = 0.9  # weight of the old value in the smoothed pseudo-Dice


class _Row(TypedDict):
    epoch: Annotated[int, Field(ge=1)]
    smoothed_dice: float | None
    skipped_by_loss_scale: NotRequired[Annotated[int, Field(ge=0)]]


class FoldRecordJson(TypedDict):
    """What is read of the record of a fold in a checkpoint."""

    seconds: float
    epoch: Annotated[int, Field(ge=0)]
    iteration: Annotated[int, Field(ge=0)]
    history: list[_Row]
    bad_steps: Annotated[int, Field(ge=0)]
    loss_sum: float
    counted: Annotated[int, Field(ge=0)]
    counts: list[list[Annotated[int, Field(ge=0)]]] | None
    skipped_by_loss_scale: NotRequired[Annotated[int, Field(ge=0)]]


@dataclasses.dataclass
class FoldRecord(EpochRecord):
    """Record of a fold, whose best epoch has the highest smoothed pseudo-Dice. The rows of `history` are `COLUMNS`.

    Attributes:
      loss_sum: sum of the losses of the training batches of the current epoch.
      counted: number of batches in that sum.
      counts: confusion counts [C, C] of their full-resolution predictions.
    """

    loss_sum: float = 0.0
    counted: int = 0
    counts: list | None = None

    def add(self, loss: float, counts: np.ndarray) -> None:
        """Adds a training batch to the current epoch."""
        self.loss_sum += loss
        self.counted += 1
        self.counts = (np.asarray(counts, np.int64) + (0 if self.counts is None else np.asarray(self.counts))).tolist()

    def smoothed(self, dice: float) -> float:
        """Returns nnU-Net's smoothed pseudo-Dice after an epoch with this pseudo-Dice.

        Epochs without one are skipped.
        """
        known = [row["smoothed_dice"] for row in self.history if row["smoothed_dice"] is not None]
        if not math.isfinite(dice):
            return known[-1] if known else math.nan
        return SMOOTHING * known[-1] + (1 - SMOOTHING) * dice if known else dice

    def end_epoch(self, row: dict) -> bool:
        """Adds the row of the finished epoch and starts the next.

        Returns whether its smoothed Dice is the best so far.
        """
        row = json_row(row)
        before = [r["smoothed_dice"] for r in self.history if r["smoothed_dice"] is not None]
        now = row["smoothed_dice"]
        row["best"] = now is not None and (not before or now > max(before))
        self.history.append(row)
        self.epoch, self.step_in_epoch, self.loss_sum, self.counted, self.counts = self.epoch + 1, 0, 0.0, 0, None
        return row["best"]

    def to_json(self) -> dict:
        """Returns the whole record as JSON."""
        values = super().to_json()
        values["iteration"] = values.pop("step_in_epoch")  # its name in checkpoints
        return values

    @classmethod
    def from_json(cls, values: dict) -> "FoldRecord":
        """Returns the record that `to_json` wrote."""
        values = dict(values)
        return cls(step_in_epoch=values.pop("iteration"), **values)
