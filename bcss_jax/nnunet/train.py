"""Training of one fold as nnU-Net trains: its epochs, what is measured and kept of them.

Source: nnUNetTrainer of nnU-Net 2.8.1.
"""

import contextlib
import logging
import math
import time
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np

from bcss_jax import losses, metrics
from bcss_jax.common import figures
from bcss_jax.common.files import write_text
from bcss_jax.common.formatting import format_score
from bcss_jax.common.interruption import Interruption
from bcss_jax.common.progress import ProgressLine, duration
from bcss_jax.errors import ConfigError, NumericalError, Preempted
from bcss_jax.nnunet.batches import batches
from bcss_jax.nnunet.patches import PatchSource, initial_patch_size
from bcss_jax.nnunet.record import COLUMNS, FoldRecord
from bcss_jax.nnunet.steps import LEARNING_RATE, Steps
from bcss_jax.training.checkpoint import Checkpoints
from bcss_jax.training.history import history_csv
from bcss_jax.training.sharding import place_replicated, replicated

log = logging.getLogger(__name__)

VALIDATION = 2**40  # added to the seed: validation patches are drawn apart from the training's
# The project's Dice loss is 1 - Dice, nnU-Net's -Dice.
OFFSET = 1.0
TABLE = "epoch  train loss  val loss  pseudo-Dice  smoothed  learning rate  images/s  input wait    time"


def train_fold(
    steps: Steps,
    train_cases: Sequence[PatchSource],
    val_cases: Sequence[PatchSource],
    *,
    class_names: tuple[str, ...],
    folder: Path,
    about: dict,
    checkpoint_steps: int = 1000,
    log_seconds: float = 10.0,
    max_bad_steps: int = 3,
    interruption: Interruption,
    title: str,
) -> FoldRecord:
    """Trains until the last epoch is done; goes on from the last checkpoint in `folder`.

    Args:
      steps: the same for all folds.
      train_cases: preprocessed.
      val_cases: preprocessed.
      class_names: background first, without `ignore`.
      folder: of the fold.
      about: JSON that is kept in every checkpoint.
      checkpoint_steps: iterations between checkpoints; there is always one at an epoch's end.
      log_seconds: between progress lines where the output is no terminal.
      max_bad_steps: iterations with a non-finite loss after which training gives up.
      interruption: asked after every iteration.
      title: of progress and pictures.

    Returns:
      The record of the finished training.

    Raises:
      ConfigError: the fold was begun with other cases.
      NumericalError: losses that are not finite.
      Preempted: stopped on request, and saved.
      StorageError: a checkpoint could not be written.
    """
    length, mesh, speaks = steps.length, steps.mesh, jax.process_index() == 0
    cut_size, foreground = initial_patch_size(steps.patch_size), tuple(range(1, steps.num_classes))
    state = place_replicated(steps.start, mesh)
    checkpoints, record = Checkpoints(folder / "checkpoints"), FoldRecord()
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=replicated(mesh)), state)
    restored = checkpoints.restore(abstract)
    if restored:
        state, values, before = restored
        record = FoldRecord(**values)
        if before["data_sha256"] != about["data_sha256"]:
            raise ConfigError(
                f"{folder}: the cases are not those that this fold was trained on; put them back, or use --fresh or "
                "another --workdir"
            )
    drawing = dict(seed=steps.seed, batch_size=steps.batch_size, patch_size=steps.patch_size)
    drawing |= dict(padding=steps.num_classes, mesh=mesh)

    def say(line):
        if speaks:
            print(line, flush=True)

    def absorb(step, report):
        loss = float(report["loss"]) - OFFSET
        if bool(report["finite"]):
            record.add(loss, report["confusion"])
            return loss
        record.bad_steps += 1
        found = f"{title}: iteration {step}: loss {loss}, gradient norm {float(report['grad_norm'])}, left out"
        log.warning("%s", found)
        if record.bad_steps >= max_bad_steps:
            raise NumericalError(
                f"{found}. Training gives up after {record.bad_steps} such iterations (config.max_bad_steps); try "
                "--config.dtype=float32 or look at the data"
            )
        return loss

    def save(improved_at=None):
        record.tick()
        checkpoints.save(state, record.to_json(), about, improved_at)

    def validate():
        """Mean loss and Dice of each class over this epoch's validation patches."""
        loss_sum, counts = 0.0, np.zeros((steps.num_classes, steps.num_classes), np.int64)
        first = record.epoch * length.val_iterations
        drawn = drawing | {"seed": steps.seed + VALIDATION, "cut_size": steps.patch_size}
        for batch in batches(val_cases, first=first, last=first + length.val_iterations, **drawn):
            report = steps.evaluate(state.params, state.model_state, batch["images"], _inside(batch["labels"]))
            sums = jax.device_get(report["sums"])
            loss_sum += float(losses.loss_from_sums(sums)) - OFFSET if sums["pixels"] else 0.0
            counts += np.asarray(report["confusion"], np.int64).sum(0)
        return loss_sum / length.val_iterations, metrics.dice(counts, foreground)

    interruption.begin()
    with contextlib.closing(checkpoints):
        if restored:
            say(f"{title}: resuming after epoch {record.epoch}, iteration {record.iteration}")
        if record.epoch < length.epochs:
            say(TABLE)
        while record.epoch < length.epochs:
            begun, first = time.perf_counter(), record.iteration
            iterations = range(record.epoch * length.iterations + first, (record.epoch + 1) * length.iterations)
            ready = batches(train_cases, first=iterations.start, last=iterations.stop, cut_size=cut_size, **drawing)
            label = f"{title}, epoch {record.epoch + 1}"
            waited, grad_norm, loss = 0.0, math.nan, None
            pending = None  # the iteration in flight: its numbers are read while the next one runs
            with (
                contextlib.closing(ready),
                contextlib.closing(ProgressLine(label, length.iterations, first, log_seconds, speaks)) as line,
            ):
                for step in iterations:
                    asked = time.perf_counter()
                    batch = next(ready)
                    waited += time.perf_counter() - asked
                    state, report = steps.train(state, batch["images"], batch["labels"])
                    record.iteration += 1
                    if pending:
                        loss = absorb(*pending)
                    pending = step, report
                    checkpoints.check()
                    if record.iteration == length.iterations:
                        continue  # the end of the epoch saves, and stops if asked to
                    stop = interruption.agreed(step)
                    if stop or (step + 1) % checkpoint_steps == 0:
                        loss, pending = absorb(*pending), None
                        save()
                    if loss is not None:
                        share = waited / (time.perf_counter() - begun)
                        line.update(
                            record.iteration - (pending is not None), f"loss {loss:.4f}, input wait {share:.1%}"
                        )
                    if stop:
                        raise Preempted(f"{title}: stopped at iteration {step + 1} and saved; the same command goes on")
                if pending:
                    grad_norm = float(pending[1]["grad_norm"])
                    absorb(*pending)
                seconds = time.perf_counter() - begun
                val_loss, dice = validate()
                mean = float(np.nanmean(dice)) if np.isfinite(dice).any() else math.nan
                train_dice = (
                    metrics.dice(np.asarray(record.counts), foreground) if record.counted else np.array([np.nan])
                )
                row = {
                    "epoch": record.epoch + 1,
                    "train_loss": record.loss_sum / max(record.counted, 1),
                    "val_loss": val_loss,
                    "train_dice": float(np.nanmean(train_dice)) if np.isfinite(train_dice).any() else math.nan,
                    "val_dice": mean,
                    "smoothed_dice": record.smoothed(mean),
                    "learning_rate": LEARNING_RATE * float(state.schedule.scale),
                    "grad_norm": grad_norm,
                    "images_per_second": len(iterations) * steps.batch_size / seconds,
                    "input_wait": waited / seconds,
                    "seconds": record.tick(),
                    **{f"dice_{name}": float(value) for name, value in zip(class_names[1:], dice, strict=True)},
                }
                state.schedule = place_replicated(steps.schedule.update(jax.device_get(state.schedule), val_loss), mesh)
                improved = record.end_epoch(row)
                save(improved_at=record.epoch if improved else None)
                line.print(_table_line(record.history[-1]))
            if speaks:
                write_text(
                    folder / "history.csv",
                    history_csv(record.history, (*COLUMNS, *(f"dice_{name}" for name in class_names[1:]))),
                )
                figures.curves(
                    record.history, folder / "progress.png", title, score="dice", heading="pseudo-Dice (mean)"
                )
            if interruption.agreed(0) and record.epoch < length.epochs:
                raise Preempted(f"{title}: stopped after epoch {record.epoch} and saved; the same command goes on")
        checkpoints.wait()
    return record


@jax.jit
def _inside(labels):
    """Outside of the picture (-1) counts as background, as in training."""
    return labels.clip(0)


def _table_line(row):
    numbers = [row[name] for name in ("train_loss", "val_loss", "val_dice", "smoothed_dice")]
    loss, val_loss, dice, smoothed = map(format_score, numbers)
    return (
        f"{row['epoch']:5d}  {loss:>10}  {val_loss:>8}  {dice:>11}  {smoothed:>8}  {row['learning_rate']:13.2e}"
        f"  {row['images_per_second']:8.2f}  {row['input_wait']:10.1%}  {duration(row['seconds']):>6}"
        f"{'  best' if row['best'] else ''}"
    )
