"""Training: data -> state -> compiled steps -> evaluation -> checkpoint -> report, in one function read from the top."""

import contextlib
import functools
import json
import logging
import math
import os
import sys
import time
from pathlib import Path

import jax
import numpy as np
import optax
from clu import metric_writers
from flax import nnx
from ml_collections import ConfigDict
from PIL import Image

from bcss_jax import labels, losses, metrics, models
from bcss_jax.common import figures
from bcss_jax.common.files import write_text
from bcss_jax.common.formatting import format_score
from bcss_jax.common.interruption import Interruption
from bcss_jax.common.progress import ProgressLine, duration
from bcss_jax.data import synthetic, tfrecords
from bcss_jax.data.augment import Augmentation
from bcss_jax.data.discovery import DataSettings
from bcss_jax.data.input_pipeline import InputWait, eval_batches, train_batches
from bcss_jax.errors import ConfigError, NumericalError, Preempted
from bcss_jax.models.apply import ImageStatistics, split_model
from bcss_jax.models.weights.pretrained import load_pretrained
from bcss_jax.training.checkpoint import Checkpoints, load_trained
from bcss_jax.training.history import RunRecord, SplitTotals, epoch_row, history_csv
from bcss_jax.training.optimizer import Plateau, Poly, adamw, clipped, separate_encoder_optimizer, sgd
from bcss_jax.training.sharding import check_batch_size, make_mesh, place_batch, place_replicated, replicated
from bcss_jax.training.step import TrainState, make_eval_step, make_train_step
from bcss_jax.training.summary import device, summary, versions

SAMPLE_PICTURES = 6  # rows of samples.png
TABLE = "epoch  train loss  val loss  val Dice  val mIoU  learning rate  images/s  input wait    time"
log = logging.getLogger(__name__)


def train(config: ConfigDict, workdir: Path, interruption: Interruption) -> None:
    """Trains, or goes on training, the run in `workdir`, and writes its report.

    Args:
      config: valid (`config.validate`) and the one `workdir` is claimed for.
      workdir: gets checkpoints/, tensorboard/, history.csv, curves.png, samples.png and summary.json.
      interruption: active; tells when to save and stop.

    Raises:
      UserError: of the kinds in `errors`; each says what to do.
    """
    speaks = jax.process_index() == 0  # only one process prints and writes the report
    say = functools.partial(print, flush=True) if speaks else (lambda line: None)

    # --- Devices, model, steps: what can be wrong with the settings shows before any data are read ---
    scheme = labels.find_scheme(config.labels)
    augmentation = Augmentation(**config.augment)
    mesh = make_mesh()
    check_batch_size("config.batch_size", config.batch_size, config.micro_batches, mesh)
    check_batch_size("config.eval_batch_size", config.eval_batch_size, 1, mesh)
    model = models.create(**config.model, num_classes=scheme.num_classes, dtype=config.dtype, seed=config.seed)
    side = {"sample": synthetic.SIZE, "roi": config.data.patch_size}.get(config.data.layout)
    if side:  # of the other layouts the size shows when they are read
        jax.eval_shape(model, jax.ShapeDtypeStruct((1, side, side, 3), np.float32))
    tx, schedule = _optimizer(config, model), _schedule(config)
    objective = {
        "num_classes": scheme.num_classes,
        "ignore_index": scheme.ignore_index,
        "classes": scheme.evaluated,
        "statistics": ImageStatistics(tuple(config.image_mean), tuple(config.image_std)),
        **config.loss,
    }
    new_train_step = functools.partial(
        make_train_step,
        model,
        tx,
        mesh,
        micro_batches=config.micro_batches,
        seed=config.seed,
        deep_supervision=_head_weights(config, model),
        **objective,
    )
    train_steps = {"whole": new_train_step()}
    if config.freeze_encoder_epochs:
        train_steps["encoder frozen"] = new_train_step(frozen=("encoder",))
    eval_step = make_eval_step(model, mesh, **objective)
    # A run that goes on has its weights in a checkpoint, named by its step; what a killed save left is none.
    pretrained, begun = None, any(path.name.isdecimal() for path in (workdir / "checkpoints").glob("*"))
    if config.pretrained and not begun:
        pretrained = load_pretrained(model, Path(config.pretrained))
        left = f"; passed over: {', '.join(pretrained['passed_over'])}" if pretrained["passed_over"] else ""
        say(f"{config.pretrained}: {pretrained['tensors']} tensors into the {pretrained['part']}{left}")

    # --- Data ---
    settings = DataSettings(
        config.data.layout,
        config.data.dir or None,
        config.data.split,
        config.data.mpp,
        config.data.patch_size,
        config.data.stride,
        config.data.allow_missing,
        config.data.max_bad,
    )
    data = tfrecords.prepare(settings, prepared_dir=Path(config.data.prepared_dir).expanduser(), scheme=scheme)
    num_train, num_val = data.splits["train"], data.splits["val"]
    pipeline = {
        "table": labels.lookup_table(scheme, data.codes),
        "ignore_index": scheme.ignore_index,
        "process_index": jax.process_index(),
        "process_count": jax.process_count(),
        "threads": config.data.threads or None,
    }
    say(
        f"{config.data.layout}: {num_train} training and {num_val} validation images, classes {', '.join(scheme.evaluated_names)}"
    )

    # --- State: new, or where the run was ---
    _, params, model_state = split_model(model)
    num_params = sum(math.prod(p.shape) for p in jax.tree.leaves(params))
    start = TrainState(np.int32(0), params, model_state, tx.init(params), schedule.init())
    state = place_replicated(start, mesh)
    del model, new_train_step, params, model_state, start
    say(f"{config.model.name}: {num_params:,} parameters, {mesh.size} {jax.devices()[0].device_kind} device(s)")

    checkpoints = Checkpoints(workdir / "checkpoints")
    about = {
        "config": config.to_dict(),
        "pretrained": pretrained,
        "label_scheme": scheme.to_json(),
        "data": data.describe(),
        "device": device(),
        "versions": versions(),
    }
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=replicated(mesh)), state)
    restored = checkpoints.restore(abstract)
    record = RunRecord()
    if restored:
        state, record_json, before = restored
        if before["data"]["content_sha256"] != about["data"]["content_sha256"]:
            raise ConfigError(
                f"{workdir}: the data set is not the one this run was trained on (its tiles, parts or masks differ); "
                "put it back, or use --fresh or another --workdir"
            )
        record = RunRecord.from_json(record_json)
        about["pretrained"] = before["pretrained"]
        if record.epoch >= config.epochs or _stalled(record, config.early_stopping):
            about = before  # nothing will be trained: what it was trained on and with stays true
        say(f"resuming after epoch {record.epoch}, batch {record.step_in_epoch} (step {int(state.step)})")

    def save(improved_at: int | None = None):
        record.tick()
        checkpoints.save(state, record.to_json(), about, improved_at)

    # --- Loop ---
    smooth, steps_per_epoch = config.loss.smooth, math.ceil(num_train / config.batch_size)

    def absorb(step: int, indices: np.ndarray, report: dict) -> float:
        """Takes a finished step into the record; returns its loss."""
        if not report["finite"]:
            record.bad_steps += 1
            names = ", ".join(data.table("train")[i]["key"] for i in indices if i >= 0)
            loss, norm = float(report["loss"]), float(report["grad_norm"])
            found = (
                f"step {step} (epoch {record.epoch + 1}): loss {loss}, gradient norm {norm}, left out; batch: {names}"
            )
            log.warning("%s", found)
            if record.bad_steps >= config.max_bad_steps:
                saved = (
                    f"the last checkpoint is kept in {checkpoints.folder}"
                    if checkpoints.steps()
                    else "nothing was saved yet"
                )
                raise NumericalError(
                    f"{found}. Training gives up after {record.bad_steps} such steps (config.max_bad_steps); {saved}. "
                    "Try a lower --config.optimizer.learning_rate"
                )
            return loss
        record.empty_steps += not report["has_truth"]
        record.totals.add(report["sums"], report["confusion"])
        return float(report["loss"])

    def evaluate(
        params, model_state, part: str = "val", keep: frozenset[int] = frozenset()
    ) -> tuple[SplitTotals, dict, dict]:
        """Goes through a part of the data: totals, scores.

        With `keep`, positions of examples: only through their batches, and their images, labels and predictions besides.
        """
        totals, per_image, kept, count = SplitTotals(), [], {}, data.splits[part]
        batches = eval_batches(data.load(part), count, batch_size=config.eval_batch_size, **pipeline)
        for number, batch in enumerate(batches):
            positions = range(number * config.eval_batch_size, (number + 1) * config.eval_batch_size)
            if keep and keep.isdisjoint(positions):
                continue
            placed = place_batch({"image": batch["image"], "label": batch["label"]}, mesh)
            report = jax.device_get(eval_step(params, model_state, placed["image"], placed["label"]))
            real = min(config.eval_batch_size, count - number * config.eval_batch_size)
            totals.add(report["sums"], report["confusion"].sum(0))
            per_image.append(report["confusion"][:real])
            for row in range(len(batch["index"])):
                if positions[row] in keep:
                    kept[int(batch["index"][row])] = (
                        batch["image"][row],
                        batch["label"][row],
                        report["predictions"][row],
                    )
        scores = metrics.scores(np.concatenate(per_image), config.eval_batch_size, scheme.class_names, scheme.evaluated)
        return totals, scores, kept

    writer = metric_writers.SummaryWriter(str(workdir / "tensorboard")) if speaks else metric_writers.MultiWriter([])
    drawn = -math.inf
    interruption.begin()
    with contextlib.closing(checkpoints), metric_writers.ensure_flushes(writer):
        say(TABLE)
        while record.epoch < config.epochs and not _stalled(record, config.early_stopping):
            batches = InputWait(
                train_batches(
                    data.load("train"),
                    num_train,
                    batch_size=config.batch_size,
                    seed=config.seed,
                    epoch=record.epoch,
                    start_step=record.step_in_epoch,
                    augmentation=augmentation,
                    **pipeline,
                )
            )
            first_step, epoch_start = record.step_in_epoch, time.perf_counter()
            train_step = train_steps["encoder frozen" if record.epoch < config.freeze_encoder_epochs else "whole"]
            with contextlib.closing(
                ProgressLine(f"epoch {record.epoch + 1}", steps_per_epoch, first_step, config.log_seconds, speaks)
            ) as line:
                pending = loss = None  # the step in flight: its numbers are read while the next one runs
                grad_norm = math.nan
                for batch in batches:
                    placed = place_batch({"image": batch["image"], "label": batch["label"]}, mesh)
                    state, report = train_step(state, placed["image"], placed["label"])
                    record.step_in_epoch += 1
                    step = record.epoch * steps_per_epoch + record.step_in_epoch
                    if pending:
                        loss = absorb(*pending)
                    pending = step, batch["index"], report
                    checkpoints.check()
                    stop = interruption.agreed(step)
                    if record.step_in_epoch == steps_per_epoch:
                        continue  # the end of the epoch saves, and stops if asked to
                    if stop or step % config.checkpoint_steps == 0:
                        loss = absorb(*pending)
                        pending = None
                        save()
                    if loss is not None:
                        wait = batches.seconds / (time.perf_counter() - epoch_start)
                        done = record.step_in_epoch - (pending is not None)
                        line.update(done, f"loss {loss:.4f}, input wait {wait:.1%}")
                    if stop:
                        raise Preempted(f"stopped at step {step} and saved; the same command goes on from there")
                if pending:
                    grad_norm = float(pending[2]["grad_norm"])
                    absorb(*pending)
                train_seconds = time.perf_counter() - epoch_start
                images_per_second = (record.step_in_epoch - first_step) * config.batch_size / train_seconds

                totals, scores, _ = evaluate(state.params, state.model_state)
                learning_rate = config.optimizer.learning_rate * float(state.schedule.scale)
                row = epoch_row(
                    record,
                    totals,
                    scores,
                    scheme.evaluated,
                    smooth,
                    step=record.epoch * steps_per_epoch + record.step_in_epoch,
                    learning_rate=learning_rate,
                    grad_norm=grad_norm,
                    input_wait=batches.seconds / train_seconds,
                    images_per_second=images_per_second,
                    seconds=record.tick(),
                )
                scale = schedule.update(jax.device_get(state.schedule), row["val_loss"])
                state.schedule = place_replicated(scale, mesh)
                improved = record.end_epoch(row)
                save(improved_at=record.epoch if improved else None)
                line.print(_table_line(record.history[-1]))
            if speaks:
                scalars = {k: v for k, v in row.items() if isinstance(v, float) and math.isfinite(v)}
                writer.write_scalars(row["step"], scalars)
                write_text(workdir / "history.csv", history_csv(record.history))
                if time.perf_counter() - drawn > config.log_seconds:  # drawing takes half a second
                    figures.curves(record.history, workdir / "curves.png", title=config.name)
                    drawn = time.perf_counter()
            if interruption.agreed(0) and record.epoch < config.epochs:
                raise Preempted(f"stopped after epoch {record.epoch} and saved; the same command goes on from there")
        checkpoints.wait()

        # --- Report, from what the checkpoints hold ---
        best = load_trained(checkpoints.folder, mesh, "best")
        # Evenly spread over those whose images process 0 has, which draws them.
        rows = config.eval_batch_size // jax.process_count()
        own = [position for position in range(num_val) if position % config.eval_batch_size < rows]
        chosen = frozenset(own[i] for i in np.linspace(0, len(own) - 1, min(SAMPLE_PICTURES, len(own))).astype(int))
        _, _, kept = evaluate(best.params, best.model_state, keep=chosen)
        # The published Kaggle set has no masks for its test part; where there are some, they are looked at once, here.
        test = {}
        if data.splits.get("test"):
            say(f"evaluating the {data.splits['test']} test images")
            for which, weights in (("best", best), ("last", state)):
                test[which] = evaluate(weights.params, weights.model_state, "test")[1]
        if not speaks:
            return
        table = data.table("val")
        images, truth, predictions = (np.stack(part) for part in zip(*(kept[i] for i in sorted(kept)), strict=True))
        figures.samples(
            images,
            truth,
            predictions,
            scheme,
            workdir / "samples.png",
            names=[table[i]["key"] for i in sorted(kept)],
            title=f"{config.name}: validation images, best epoch",
        )
        writer.write_images(
            int(state.step), {"samples": np.asarray(Image.open(workdir / "samples.png").convert("RGB"))[None]}
        )
    write_text(workdir / "history.csv", history_csv(record.history))
    figures.curves(record.history, workdir / "curves.png", title=config.name)
    stopped_early = record.epoch < config.epochs
    result = summary(
        name=config.name,
        about=about,
        record=record,
        scheme=scheme,
        params=jax.device_get(state.params),
        stopped_early=stopped_early,
        test=test,
    )
    write_text(workdir / "summary.json", json.dumps(result, indent=2, allow_nan=False) + "\n")

    why = f"no better validation loss for {record.stalled_epochs()} epochs" if stopped_early else "all epochs done"
    dice = ", ".join(f"{name} {format_score(value)}" for name, value in result["dice_global"].items())
    say(f"finished after epoch {record.epoch} ({why}) in {duration(record.seconds)}")
    say(f"best epoch {result['best_epoch']}: Dice over the validation split: {dice}")
    say(f"look at:   {workdir / 'curves.png'}  {workdir / 'samples.png'}")
    say(f"figures:   {workdir / 'summary.json'}  {workdir / 'history.csv'}")
    python = os.path.relpath(sys.executable) if Path(sys.executable).is_relative_to(Path.cwd()) else sys.executable
    say(f"next:      {python} -m tensorboard.main --logdir={workdir / 'tensorboard'}")
    if config.data.layout == "sample":
        layout = f"--config=configs/{config.name}.py:kaggle224"
        say(f"on BCSS:   {python} -m bcss_jax.main {layout} --config.data.dir=FOLDER")


def _optimizer(config: ConfigDict, model: nnx.Module) -> optax.GradientTransformation:
    settings = config.optimizer
    rule = adamw if settings.name == "adamw" else functools.partial(sgd, momentum=settings.momentum)
    tx = rule(settings.learning_rate, settings.weight_decay)
    if settings.encoder_scale != 1 or config.freeze_encoder_epochs:
        if not hasattr(model, "encoder"):
            setting = "freeze_encoder_epochs" if config.freeze_encoder_epochs else "optimizer.encoder_scale"
            raise ConfigError(
                f"config.{setting}: {config.model.name} has no encoder of its own; leave it at its default"
            )
        tx = separate_encoder_optimizer(
            rule(settings.encoder_scale * settings.learning_rate, settings.weight_decay), tx
        )
    return clipped(tx, settings.clip_norm or None)


def _schedule(config: ConfigDict) -> Plateau | Poly:
    if config.schedule == "poly":
        return Poly(config.epochs)
    return Plateau(config.plateau.factor, config.plateau.patience, config.plateau.min_scale)


def _head_weights(config: ConfigDict, model: nnx.Module) -> tuple[float, ...]:
    """Weights of the losses at the network's heads; none without deep supervision."""
    if not config.deep_supervision:
        return ()
    if not hasattr(model, "all_logits"):
        raise ConfigError(f"config.deep_supervision: {config.model.name} has one head only; leave it at False")
    return losses.deep_supervision_weights(model.num_scales)


def _stalled(record: RunRecord, patience: int) -> bool:
    return bool(patience) and record.stalled_epochs() >= patience


def _table_line(row: dict) -> str:
    return (
        f"{row['epoch']:5d}  {format_score(row['train_loss']):>10}  {format_score(row['val_loss']):>8}  {format_score(row['val_dice']):>8}"
        f"  {format_score(row['val_iou']):>8}  {row['learning_rate']:13.2e}  {row['images_per_second']:8.2f}"
        f"  {row['input_wait']:10.1%}  {duration(row['seconds']):>6}{'  best' if row['best'] else ''}"
    )
