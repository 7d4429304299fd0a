"""Training of one fold as nnU-Net trains: patches, augmentation on the device, deep supervision, SGD, poly schedule.

Source: nnUNetTrainer of nnU-Net 2.8.1.
"""

import contextlib
import dataclasses
import functools
import logging
import math
import time
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
from flax import nnx

from bcss_jax import figures, losses, metrics
from bcss_jax.checkpoint import Checkpoints
from bcss_jax.errors import ConfigError, NumericalError, Preempted
from bcss_jax.interruption import Interruption
from bcss_jax.model_function import split_model
from bcss_jax.nnunet.augment import augment
from bcss_jax.nnunet.batches import batches, padded_size
from bcss_jax.nnunet.patches import Case, initial_patch_size
from bcss_jax.nnunet.record import FoldRecord, history_csv
from bcss_jax.optimizer import Poly, clipped, sgd
from bcss_jax.progress import ProgressLine, duration
from bcss_jax.sharding import make_mesh, place_replicated, replicated
from bcss_jax.step import TrainState, make_eval_step, make_train_step
from bcss_jax.workdir import write_text

log = logging.getLogger(__name__)

MOMENTUM, LEARNING_RATE, WEIGHT_DECAY, CLIP_NORM = 0.99, 1e-2, 3e-5, 12.0
VALIDATION = 2**40  # added to the seed: validation patches are drawn apart from the training's
# The project's Dice loss is 1 - Dice, nnU-Net's -Dice.
OFFSET = 1.0
TABLE = "epoch  train loss  val loss  pseudo-Dice  smoothed  learning rate  images/s  input wait    time"


@dataclasses.dataclass(frozen=True)
class Length:
    """How long a fold is trained; nnU-Net's are 1000 epochs of 250 and 50 iterations.

    Attributes:
      epochs: number of them.
      iterations: training batches an epoch.
      val_iterations: validation batches an epoch.
    """

    epochs: int = 1000
    iterations: int = 250
    val_iterations: int = 50


def train_fold(
    model: nnx.Module,
    train_cases: Sequence[Case],
    val_cases: Sequence[Case],
    *,
    plan: dict,
    class_names: tuple[str, ...],
    folder: Path,
    about: dict,
    length: Length,
    seed: int,
    batch_size: int,
    micro_batches: int = 1,
    checkpoint_steps: int = 1000,
    log_seconds: float = 10.0,
    max_bad_steps: int = 3,
    interruption: Interruption,
    title: str,
) -> FoldRecord:
    """Trains until the last epoch is done; goes on from the last checkpoint in `folder`.

    Args:
      model: with new weights; with deep supervision heads.
      train_cases: preprocessed.
      val_cases: preprocessed.
      plan: of `plan`; its `2d` configuration.
      class_names: background first, without `ignore`.
      folder: of the fold.
      about: JSON that is kept in every checkpoint.
      length: of the training.
      seed: of patches and augmentation.
      batch_size: examples a batch.
      micro_batches: parts that a batch is computed in.
      checkpoint_steps: iterations between checkpoints; there is always one at an epoch's end.
      log_seconds: between progress lines where the output is no terminal.
      max_bad_steps: iterations with a non-finite loss after which training gives up.
      interruption: asked after every iteration.
      title: of progress and pictures.

    Returns:
      The record of the finished training.

    Raises:
      ConfigError: the batch cannot be computed in so many parts.
      NumericalError: losses that are not finite.
      Preempted: stopped on request, and saved.
      StorageError: a checkpoint could not be written.
    """
    configuration = plan["configurations"]["2d"]
    patch_size, masked = tuple(configuration["patch_size"]), configuration["use_mask_for_norm"]
    cut_size, num_classes = initial_patch_size(patch_size), len(class_names)
    foreground = tuple(range(1, num_classes))
    mesh, speaks = make_mesh(), jax.process_index() == 0
    if padded_size(batch_size, mesh) % (mesh.size * micro_batches):
        raise ConfigError(
            f"config.micro_batches={micro_batches}: a batch of {batch_size} on {mesh.size} device(s) does not divide into "
            "so many parts; choose another number"
        )
    # Labels above the classes are `ignore`, and those of the examples that fill a batch up.
    common = dict(num_classes=num_classes, ignore_index=num_classes, classes=foreground, statistics=None)
    common["dice_batch"] = bool(configuration["batch_dice"])
    tx, schedule = clipped(sgd(LEARNING_RATE, WEIGHT_DECAY, MOMENTUM), CLIP_NORM), Poly(length.epochs)
    train_step = make_train_step(
        model,
        tx,
        mesh,
        seed=seed,
        micro_batches=micro_batches,
        deep_supervision=losses.deep_supervision_weights(model.num_scales),
        augment=functools.partial(
            augment, patch_size=patch_size, masked_channels=tuple(int(c) for c in np.flatnonzero(masked))
        ),
        **common,
    )
    eval_step = make_eval_step(model, mesh, choose_among=tuple(range(num_classes)), **common)

    _, params, rest = split_model(model)
    start = TrainState(np.int32(0), params, rest, tx.init(params), schedule.init())
    state = place_replicated(start, mesh)
    del params, rest, start
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
    drawing = dict(seed=seed, batch_size=batch_size, patch_size=patch_size, padding=num_classes, mesh=mesh)

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
        loss_sum, counts = 0.0, np.zeros((num_classes, num_classes), np.int64)
        first = record.epoch * length.val_iterations
        drawn = drawing | {"seed": seed + VALIDATION, "cut_size": patch_size}
        for batch in batches(val_cases, first=first, last=first + length.val_iterations, **drawn):
            report = eval_step(state.params, state.rest, batch["images"], _inside(batch["labels"]))
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
            steps = range(record.epoch * length.iterations + first, (record.epoch + 1) * length.iterations)
            ready = batches(train_cases, first=steps.start, last=steps.stop, cut_size=cut_size, **drawing)
            label = f"{title}, epoch {record.epoch + 1}"
            waited, grad_norm, loss = 0.0, math.nan, None
            pending = None  # the iteration in flight: its numbers are read while the next one runs
            with (
                contextlib.closing(ready),
                contextlib.closing(ProgressLine(label, length.iterations, first, log_seconds, speaks)) as line,
            ):
                for step in steps:
                    asked = time.perf_counter()
                    batch = next(ready)
                    waited += time.perf_counter() - asked
                    state, report = train_step(state, batch["images"], batch["labels"])
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
                    "images_per_second": len(steps) * batch_size / seconds,
                    "input_wait": waited / seconds,
                    "seconds": record.tick(),
                    **{f"dice_{name}": float(value) for name, value in zip(class_names[1:], dice, strict=True)},
                }
                state.schedule = place_replicated(schedule.update(jax.device_get(state.schedule), val_loss), mesh)
                improved = record.end_epoch(row)
                save(improved_at=record.epoch if improved else None)
                line.print(_table_line(record.history[-1]))
            if speaks:
                write_text(folder / "history.csv", history_csv(record.history, class_names[1:]))
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
    loss, val_loss, dice, smoothed = ("n/a" if number is None else f"{number:.4f}" for number in numbers)
    return (
        f"{row['epoch']:5d}  {loss:>10}  {val_loss:>8}  {dice:>11}  {smoothed:>8}  {row['learning_rate']:13.2e}"
        f"  {row['images_per_second']:8.2f}  {row['input_wait']:10.1%}  {duration(row['seconds']):>6}"
        f"{'  best' if row['best'] else ''}"
    )
