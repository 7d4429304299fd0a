"""Training of one fold as in nnU-Net: epochs of patches, validation on patches, and the pseudo-Dice.

Source: nnUNetTrainer of nnU-Net 2.8.1.
"""

import contextlib
import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np

from bcss_jax import losses, metrics
from bcss_jax.common import figures
from bcss_jax.common.files import write_text
from bcss_jax.common.formatting import format_score
from bcss_jax.common.interruption import Interruption, work_has_ended
from bcss_jax.common.processes import is_main_process, print_main
from bcss_jax.common.progress import duration
from bcss_jax.errors import ConfigError, NumericalError
from bcss_jax.nnunet.batches import batches
from bcss_jax.nnunet.patches import PatchSource, initial_patch_size
from bcss_jax.nnunet.record import COLUMNS, FoldRecord, FoldRecordJson
from bcss_jax.nnunet.steps import LEARNING_RATE, Steps
from bcss_jax.training.checkpoint import Checkpoints
from bcss_jax.training.epoch import LoopSettings, TrainingSession
from bcss_jax.training.history import history_csv, restored_record, skipped_text
from bcss_jax.training.resumed import check_same_run
from bcss_jax.training.sharding import place_replicated
from bcss_jax.training.step import TrainState

VALIDATION_SEED = 2**40  # added to the seed, so that validation patches are drawn independently of training patches
OFFSET = 1.0  # the Dice loss is 1 - Dice in this project and -Dice in nnU-Net
TABLE = "epoch  train loss  val loss  pseudo-Dice  smoothed  learning rate  images/s  input wait    time"


def train_fold(
    steps: Steps,
    train_cases: Sequence[PatchSource],
    val_cases: Sequence[PatchSource],
    *,
    class_names: tuple[str, ...],
    folder: Path,
    metadata: dict,
    settings: LoopSettings,
    interruption: Interruption,
    title: str,
) -> FoldRecord:
    """Trains until the last epoch is done; resumes from the last checkpoint in `folder`.

    Args:
      steps: compiled steps, the same for all folds.
      train_cases: preprocessed cases.
      val_cases: preprocessed cases.
      class_names: background first, without `ignore`.
      folder: folder of the fold.
      metadata: JSON that is stored in every checkpoint.
      settings: of the loop; a step is what nnU-Net calls an iteration.
      interruption: tells when to save and stop.
      title: shown before progress lines and in figures.

    Returns:
      The record of the finished training.

    Raises:
      ConfigError: the fold was started with other cases.
      NumericalError: too many losses were not finite.
      Preempted: the training was asked to stop, and is saved.
      StorageError: a checkpoint could not be written.
    """
    fold = _Fold(steps, train_cases, val_cases, class_names, title)
    session, resumed = _start_or_resume(steps, folder, metadata, settings, interruption, title)
    record, epochs = session.record, steps.length.epochs
    interruption.begin()
    with contextlib.closing(session.checkpoints):
        if resumed:
            print_main(f"{title}: resuming after epoch {record.epoch}, step {record.step_in_epoch}")
        if record.epoch < epochs:
            print_main(TABLE)
        while record.epoch < epochs:
            fold.train_epoch(session)
            if is_main_process():
                columns = (*COLUMNS, *(f"dice_{name}" for name in class_names[1:]))
                write_text(folder / "history.csv", history_csv(record.history, columns))
                figures.curves(
                    record.history, folder / "progress.png", title, score="dice", heading="pseudo-Dice (mean)"
                )
            session.stop_if_asked(epochs)
        session.checkpoints.wait()
    work_has_ended()
    return record


def _start_or_resume(
    steps: Steps, folder: Path, metadata: dict, settings: LoopSettings, interruption: Interruption, title: str
) -> tuple[TrainingSession[FoldRecord], bool]:
    """Returns the session of the fold, and whether it was restored from a checkpoint."""
    state = place_replicated(steps.start, steps.mesh)
    checkpoints, record = Checkpoints(folder / "checkpoints"), FoldRecord()
    restored = checkpoints.restore(state)
    if restored:
        state, record_json, saved_metadata = restored
        check_same_run(checkpoints.folder, saved_metadata, metadata)
        record = restored_record(FoldRecord.from_json, FoldRecordJson, record_json, checkpoints.folder)
        if saved_metadata["data_sha256"] != metadata["data_sha256"]:
            raise ConfigError(
                f"{folder}: the cases are not those that this fold was trained on; put them back, or use --fresh or "
                "another --workdir"
            )
    session = TrainingSession(state, record, checkpoints, metadata, settings, interruption, title)
    return session, restored is not None


@dataclasses.dataclass(frozen=True)
class _Fold:
    """The steps and cases of a fold. The attributes are the arguments of `train_fold`."""

    steps: Steps
    train_cases: Sequence[PatchSource]
    val_cases: Sequence[PatchSource]
    class_names: tuple[str, ...]
    title: str

    def train_epoch(self, session: TrainingSession[FoldRecord]) -> None:
        """Trains the rest of the current epoch, validates, and saves."""
        steps, record, length = self.steps, session.record, self.steps.length
        first = record.epoch * length.iterations + record.step_in_epoch
        last = (record.epoch + 1) * length.iterations
        cut_size = initial_patch_size(steps.patch_size)
        shared = self._batch_arguments()
        ready = batches(self.train_cases, first=first, last=last, cut_size=cut_size, seed=steps.seed, **shared)

        def train_step(state, batch):
            return steps.train(state, batch["images"], batch["labels"])

        def record_step(step, report):
            loss = float(report["loss"]) - OFFSET
            if report["skipped_by_loss_scale"]:
                record.skipped_by_loss_scale += 1
            if report["finite"] or report["skipped_by_loss_scale"]:
                record.add(loss, report["confusion"])
            else:
                session.record_bad_step(
                    f"step {step}: loss {loss}, gradient norm {float(report['grad_norm'])}, left out",
                    "Try --config.dtype=float32, or look at the data",
                )
            return loss

        with (
            contextlib.closing(ready),
            session.progress_line(f"{self.title}, epoch {record.epoch + 1}") as line,
        ):
            report = session.run_epoch(ready, train_step, record_step, line)
            val_loss, dice = self._validate(session.state, record.epoch)
            train_dice = metrics.dice(np.asarray(record.counts), steps.objective.classes) if record.counted else np.nan
            row = {
                "epoch": record.epoch + 1,
                "train_loss": record.loss_sum / max(record.counted, 1),
                "val_loss": val_loss,
                "train_dice": _mean_of_finite(train_dice),
                "val_dice": _mean_of_finite(dice),
                "smoothed_dice": record.smoothed(_mean_of_finite(dice)),
                "learning_rate": LEARNING_RATE * float(session.state.schedule.scale),
                "grad_norm": report.grad_norm,
                "images_per_second": report.steps * steps.batch_size / report.seconds,
                "input_wait": report.input_wait,
                "seconds": record.tick(),
                **record.loss_scale_columns(session.state.loss_scale),
                **{f"dice_{name}": float(value) for name, value in zip(self.class_names[1:], dice, strict=True)},
            }
            session.end_epoch(row, steps.schedule, steps.mesh)
            line.print(_table_line(record.history[-1]))

    def _validate(self, state: TrainState, epoch: int) -> tuple[float, np.ndarray]:
        """Returns the mean loss of an epoch's validation patches, and the Dice of each class except the background."""
        steps, count = self.steps, self.steps.length.val_iterations
        num_classes = steps.objective.num_classes
        loss_sum, counts = 0.0, np.zeros((num_classes, num_classes), np.int64)
        first, seed = epoch * count, steps.seed + VALIDATION_SEED
        size, shared = steps.patch_size, self._batch_arguments()
        for batch in batches(self.val_cases, first=first, last=first + count, cut_size=size, seed=seed, **shared):
            report = steps.evaluate(
                state.params, state.model_state, batch["images"], _outside_as_background(batch["labels"])
            )
            sums = jax.device_get(report["sums"])
            loss_sum += float(losses.loss_from_sums(sums, steps.objective)) - OFFSET if sums["pixels"] else 0.0
            counts += np.asarray(report["confusion"], np.int64).sum(0)
        if not math.isfinite(loss_sum):
            raise NumericalError(
                f"{self.title}: the loss of the validation patches is not finite after epoch {epoch + 1}; try "
                "--config.dtype=float32, or look at the data"
            )
        return loss_sum / count, metrics.dice(counts, steps.objective.classes)

    def _batch_arguments(self) -> dict:
        """Returns the arguments of `batches` that training and validation share."""
        steps = self.steps
        return {
            "batch_size": steps.batch_size,
            "patch_size": steps.patch_size,
            "padding": steps.objective.num_classes,
            "mesh": steps.mesh,
        }


def _mean_of_finite(values: np.ndarray | float) -> float:
    """Returns the mean of the values that are not NaN; NaN if all are."""
    return float(np.nanmean(values)) if np.isfinite(values).any() else math.nan


@jax.jit
def _outside_as_background(labels):
    """Returns the labels with background in place of -1, which marks pixels outside of the image."""
    return labels.clip(0)


def _table_line(row):
    numbers = [row[name] for name in ("train_loss", "val_loss", "val_dice", "smoothed_dice")]
    loss, val_loss, dice, smoothed = map(format_score, numbers)
    return (
        f"{row['epoch']:5d}  {loss:>10}  {val_loss:>8}  {dice:>11}  {smoothed:>8}  {row['learning_rate']:13.2e}"
        f"  {row['images_per_second']:8.2f}  {row['input_wait']:10.1%}  {duration(row['seconds']):>6}"
        f"{'  best' if row['best'] else ''}{skipped_text(row)}"
    )
