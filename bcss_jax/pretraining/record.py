"""The record of a pretraining: its position, and one row per epoch, saved as JSON in every checkpoint."""

import dataclasses
import math
from typing import Annotated, Any

from pydantic import Field
from typing_extensions import TypedDict

from bcss_jax.training.history import EpochRecord, json_row

# What the step reports, of which a row has the mean over the epoch.
FIGURES = (
    "loss", "class_loss", "patch_loss", "spread_loss", "words_loss", "teacher_entropy", "prototype_entropy", "kl",
    "feature_deviation", "center_norm", "grad_norm",
)  # fmt: skip
COLUMNS = (
    "epoch", "step", *FIGURES, "knn_accuracy", "learning_rate", "weight_decay", "momentum", "teacher_temperature",
    "input_wait", "images_per_second", "seconds",
)  # fmt: skip


@dataclasses.dataclass
class PretrainingRecord(EpochRecord):
    """Record of a pretraining, whose rows have the columns `COLUMNS`.

    Attributes:
      sums: of the figures of the steps of the current epoch.
      counted: number of these steps.
    """

    sums: dict[str, float] = dataclasses.field(default_factory=dict)
    counted: int = 0

    def add(self, report: dict) -> None:
        """Adds the figures of a step."""
        for name in FIGURES:
            self.sums[name] = self.sums.get(name, 0.0) + float(report[name])
        self.counted += 1

    def means(self) -> dict[str, float]:
        """Returns the mean of each figure over the steps of the current epoch."""
        return {name: self.sums[name] / self.counted if self.counted else math.nan for name in FIGURES}

    def end_epoch(self, row: dict) -> bool:
        """Adds the row of the finished epoch and starts the next. Returns False: no epoch is the best."""
        self.history.append(json_row(row))
        self.epoch, self.step_in_epoch, self.sums, self.counted = self.epoch + 1, 0, {}, 0
        return False

    @classmethod
    def from_json(cls, values: dict) -> "PretrainingRecord":
        """Returns the record that `to_json` wrote."""
        return cls(**values)


class _Row(TypedDict):
    epoch: Annotated[int, Field(ge=1)]


class PretrainingRecordJson(TypedDict):
    """What is read of the record in a checkpoint."""

    seconds: float
    epoch: Annotated[int, Field(ge=0)]
    step_in_epoch: Annotated[int, Field(ge=0)]
    history: list[_Row]
    bad_steps: Annotated[int, Field(ge=0)]
    sums: dict[str, Any]
    counted: Annotated[int, Field(ge=0)]
