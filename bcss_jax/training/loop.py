"""Training of a run: data and compiled steps, epochs with evaluation and checkpoints, and the report at the end."""

import contextlib
import functools
import json
import logging
import math
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx
from PIL import Image

from bcss_jax import labels, metrics
from bcss_jax.common import figures
from bcss_jax.common.digests import sha256_of_file
from bcss_jax.common.files import write_text
from bcss_jax.common.formatting import format_score
from bcss_jax.common.interruption import Interruption, safe_point, work_has_ended
from bcss_jax.common.processes import is_main_process, print_main
from bcss_jax.common.progress import duration
from bcss_jax.common.startup import compilation_cache, start_clock
from bcss_jax.data import synthetic, tfrecords
from bcss_jax.data.augmentation.settings import Augmentation
from bcss_jax.data.decoded_tiles import decoded_bytes, free_memory, holds
from bcss_jax.data.discovery import DataSettings
from bcss_jax.data.input_pipeline import decode_tiles, eval_batches, image_size, train_batches
from bcss_jax.data.sampling.balance import class_weights, draws, with_slide_weights
from bcss_jax.data.sampling.folded_data import hold_out
from bcss_jax.data.stain.training_stain import stain_of_training
from bcss_jax.errors import NumericalError, printable
from bcss_jax.losses import loss_from_sums
from bcss_jax.models.weights.pretrained import load_pretrained, what_was_loaded
from bcss_jax.training import build
from bcss_jax.training.checkpoint import Checkpoints, load_trained
from bcss_jax.training.device_advice import advice_on_dtype
from bcss_jax.training.epoch import LoopSettings, TrainingSession
from bcss_jax.training.frozen.feature_cache import FeatureCache, cache_in_share, images_recur
from bcss_jax.training.history import (
    RunRecord,
    RunRecordJson,
    SplitTotals,
    epoch_row,
    history_csv,
    restored_record,
    skipped_text,
)
from bcss_jax.training.loss_scale import loss_scale_for
from bcss_jax.training.resumed import check_same_data, check_same_run
from bcss_jax.training.sharding import check_batch_size, make_mesh, place_batch, place_replicated
from bcss_jax.training.start.compile_ahead import compiled_meanwhile
from bcss_jax.training.start.from_run import load_from_run
from bcss_jax.training.step import TrainState
from bcss_jax.training.step_folder import step_numbers
from bcss_jax.training.summary import device, summary, versions
from bcss_jax.training.tensorboard import TensorBoard

SAMPLE_PICTURES = 6  # rows of samples.png
CURVES_SECONDS = 10.0  # between two drawings of curves.png
BEFORE = "stopped before the first step; the same command starts again"
TRAINED = "stopped after the training; the same command writes the report"
log = logging.getLogger(__name__)
TABLE = "epoch  train loss  val loss  val Dice  val mIoU  learning rate  images/s  input wait    time"


def train(config: Any, workdir: Path, interruption: Interruption) -> None:
    """Trains the run in `workdir`, or resumes it, and writes its report.

    Args:
      config: a ConfigDict, valid (`config.validate`), and the one that `workdir` is claimed for.
      workdir: gets checkpoints/, tensorboard/, history.csv, curves.png, samples.png and summary.json.
      interruption: active; tells when to save and stop.

    Raises:
      UserError: of the kinds in `errors`; the message says what to do.
    """
    compilation_cache.enable()
    run = Run(config, workdir, interruption)
    session = run.session
    interruption.begin()
    with contextlib.closing(session.checkpoints), contextlib.closing(run.tensorboard):
        print_main(TABLE)
        while session.record.epoch < config.epochs and not _stalled(session.record, config.early_stopping):
            row = run.train_epoch()
            run.write_progress(row)
            session.stop_if_asked(config.epochs)
        session.checkpoints.wait()
        work_has_ended()
        test_scores = run.evaluate_finished_run()
    if is_main_process():
        safe_point(TRAINED)
        run.write_report(test_scores)


class Evaluation(NamedTuple):
    """Result of an evaluation.

    Attributes:
      totals: loss sums and confusion counts.
      loss: of the whole split, or the mean over batches (`config.validation_loss`).
      scores: `metrics.scores`.
      examples: (image, labels, predictions) of the examples that were asked for, by their number.
    """

    totals: SplitTotals
    loss: float
    scores: dict
    examples: dict[int, tuple[np.ndarray, np.ndarray, np.ndarray]]


class Run:
    """A run that is trained: its compiled steps, its data, and its state.

    Attributes:
      session: state, record and checkpoints; new, or as they were when the run was interrupted.
      tensorboard: event files; only the main process writes them.
    """

    def __init__(self, config: Any, workdir: Path, interruption: Interruption):
        """Builds the run; mistakes in the settings show before any data are read. Errors as `train`."""
        clock = start_clock.current()
        clock.lap("imports")
        self._config, self._workdir, self._scheme = config, workdir, labels.find_scheme(config.labels)
        self._augmentation = Augmentation(**config.augment) if config.augment_on == "host" else None
        self._mesh = make_mesh()
        check_batch_size("config.batch_size", config.batch_size, config.micro_batches, self._mesh)
        check_batch_size("config.eval_batch_size", config.eval_batch_size, 1, self._mesh)
        model = build.create_model(config, self._scheme)
        self._steps = build.make_steps(config, self._scheme, model, self._mesh)
        pretrained = self._load_pretrained(model)
        safe_point(BEFORE)
        start = TrainState.create(model, self._steps.tx, self._steps.schedule, loss_scale_for(config.dtype))
        state = place_replicated(start, self._mesh)
        del model, start  # otherwise their arrays would stay in device memory in addition to the state
        clock.lap("network")
        with self._compiled_meanwhile(state):
            self._data = prepare_data(config, self._scheme)
            clock.lap("data")
        clock.lap("compiling")
        safe_point(BEFORE)
        self._pipeline = {
            "table": labels.lookup_table(self._scheme, self._data.codes),
            "ignore_index": self._scheme.ignore_index,
            "process_index": jax.process_index(),
            "process_count": jax.process_count(),
            "threads": config.data.threads or None,
        }
        self.session = self._start_or_resume(state, pretrained, interruption)
        self._weights = draw_weights(config, self._data, self._scheme, self._pipeline["table"])
        self._tiles = self._load_training_tiles()
        self._feature_cache = self._make_feature_cache()
        self.tensorboard = TensorBoard(workdir / "tensorboard", active=is_main_process())
        self._curves_drawn = -math.inf

    def _compiled_meanwhile(self, state: TrainState) -> contextlib.AbstractContextManager:
        """Compiles the training step while the sample is drawn; the tiles of other data have a size of their own."""
        config = self._config
        if (
            self._steps.on_features
            or config.data.layout != "sample"
            or config.augment_on == "device"
            or jax.process_count() > 1
        ):
            return contextlib.nullcontext()
        shape = config.batch_size, synthetic.SIZE, synthetic.SIZE
        return compiled_meanwhile(self._steps.train_step(0), state, shape, self._mesh)

    def _load_pretrained(self, model: nnx.Module) -> dict | None:
        """Loads pretrained weights into the model of a run that has no checkpoint. Returns what is known of them."""
        config = self._config
        if step_numbers(self._workdir / "checkpoints") or not config.pretrained:
            return None
        path = Path(config.pretrained).expanduser()
        if path.is_dir():
            pretrained = load_from_run(model, path, config, self._scheme)
        else:
            pretrained = load_pretrained(model, path)
        print_main(f"{config.pretrained}: {what_was_loaded(pretrained)}")
        return pretrained

    def _compare_pretrained(self, begun_with: dict | None) -> None:
        """Warns if the file of pretrained weights is no longer the one that the resumed run began with."""
        file = Path(self._config.pretrained).expanduser()
        if begun_with and is_main_process() and _another_content(file, begun_with["sha256"]):
            log.warning(
                "%s: has changed since the run began with it; the run goes on with the weights of its checkpoint (to "
                "begin with the new ones, use --fresh or another --workdir)",
                printable(file),
            )

    def _start_or_resume(
        self, state: TrainState, pretrained: dict | None, interruption: Interruption
    ) -> TrainingSession[RunRecord]:
        """Returns the session of a new run, which begins with `state`, or of the run that the last checkpoint holds."""
        config, mesh, data = self._config, self._mesh, self._data
        never_trained = self._steps.never_trained
        count, fixed = (
            sum(math.prod(p.shape) for p in jax.tree.leaves(parts))
            for parts in (state.params, {name: state.params[name] for name in never_trained})
        )
        print_main(
            f"{config.model.name}: {count:,} parameters{f', of which {count - fixed:,} are trained' if fixed else ''}, "
            f"{mesh.size} {jax.devices()[0].device_kind} device(s)"
        )
        if fixed and not pretrained and not step_numbers(self._workdir / "checkpoints"):
            log.warning("the encoder is not trained and has random weights; name a file with --config.pretrained")
        if advice := advice_on_dtype(config.dtype, jax.local_devices()):
            print_main(advice)
        checkpoints, record = Checkpoints(self._workdir / "checkpoints"), RunRecord()
        stain = stain_of_training(data)
        metadata = {
            "config": config.to_dict(),
            "pretrained": pretrained,
            "label_scheme": self._scheme.to_json(),
            "data": data.describe(),
            "stain": None if stain is None else stain.to_json(),
            "device": device(),
            "versions": versions(),
        }
        restored = checkpoints.restore(state)
        if restored:
            state, record_json, saved_metadata = restored
            check_same_run(checkpoints.folder, saved_metadata, metadata)
            check_same_data(self._workdir, saved_metadata, metadata)
            record = restored_record(RunRecord.from_json, RunRecordJson, record_json, checkpoints.folder)
            metadata["pretrained"] = saved_metadata["pretrained"]
            self._compare_pretrained(saved_metadata["pretrained"])
            if record.epoch >= config.epochs or _stalled(record, config.early_stopping):
                metadata = saved_metadata  # nothing will be trained: the description of the training stays true
            print_main(f"resuming after epoch {record.epoch}, batch {record.step_in_epoch} (step {int(state.step)})")
        settings = LoopSettings(
            steps_per_epoch=math.ceil(data.splits["train"] / config.batch_size),
            checkpoint_steps=config.checkpoint_steps,
            log_seconds=config.log_seconds,
            max_bad_steps=config.max_bad_steps,
        )
        return TrainingSession(state, record, checkpoints, metadata, settings, interruption)

    def _load_training_tiles(self):
        """Returns the training tiles, decoded if they fit the memory, or as a data set of encoded ones."""
        config, record = self._config, self.session.record
        encoded, count = self._data.load("train"), self._data.splits["train"]
        if record.epoch >= config.epochs or _stalled(record, config.early_stopping):
            return encoded  # nothing will be trained
        needed = decoded_bytes(count, image_size(encoded))
        held, why = holds(needed, config.data.memory_share, jax.process_count(), free_memory())
        print_main(f"training tiles are {'held decoded in memory' if held else 'decoded in every epoch'} ({why})")
        if not held:
            return encoded
        return decode_tiles(
            encoded,
            count,
            table=self._pipeline["table"],
            threads=self._pipeline["threads"],
            between_batches=functools.partial(safe_point, BEFORE),
        )

    def _make_feature_cache(self) -> FeatureCache | None:
        """Returns where the features of an encoder that is not trained are kept; None: they are computed each time."""
        steps = self._steps.on_features
        if steps is None:
            return None
        training = self._keeps_training_features()
        return cache_in_share(steps.encode, self._mesh, self._config.data.memory_share, training=training)

    def _keeps_training_features(self) -> bool:
        return self._augmentation is not None and images_recur(self._augmentation)

    def _features(self, weights, images: np.ndarray) -> tuple:
        """Returns the further argument of the steps on features; empty if features are not kept."""
        if self._feature_cache is None:
            return ()
        arrays = self._feature_cache.features(weights.params, weights.model_state, images)
        return (tuple(place_batch({str(i): array for i, array in enumerate(arrays)}, self._mesh).values()),)

    # --- One epoch ---

    def train_epoch(self) -> dict:
        """Trains the rest of the current epoch, evaluates, and saves. Returns the row of the history."""
        config, session, record = self._config, self.session, self.session.record
        batches = train_batches(
            self._tiles,
            self._data.splits["train"],
            batch_size=config.batch_size,
            seed=config.seed,
            epoch=record.epoch,
            start_step=record.step_in_epoch,
            augmentation=self._augmentation,
            draws=None if self._weights is None else draws(self._weights, config.seed, record.epoch),
            **self._pipeline,
        )
        on_features = self._feature_cache is not None and self._keeps_training_features()
        steps = self._steps.on_features if on_features else None
        compiled = steps.train if steps else self._steps.train_step(record.epoch)
        session.state = self._steps.at_start_of_epoch(session.state, record.epoch / config.epochs, self._mesh)

        def train_step(state, batch):
            index = batch["index"].astype(np.int32)
            placed = place_batch({"image": batch["image"], "label": batch["label"], "index": index}, self._mesh)
            pair = placed["image"], placed["label"]
            if self._steps.augment:
                pair = self._steps.augment(*pair, placed["index"], record.epoch)
            features = self._features(state, batch["image"]) if on_features else ()
            state, report = compiled(state, *pair, *features)
            return state, report | {"index": batch["index"]}

        with session.progress_line(f"epoch {record.epoch + 1}") as line:
            report = session.run_epoch(batches, train_step, self._record_step, line)
            validation = self.evaluate(session.state)
            row = epoch_row(
                record,
                validation.loss,
                validation.scores,
                self._steps.objective,
                step=record.epoch * session.settings.steps_per_epoch + record.step_in_epoch,
                learning_rate=config.optimizer.learning_rate * float(session.state.schedule.scale),
                grad_norm=report.grad_norm,
                input_wait=report.input_wait,
                images_per_second=report.steps * config.batch_size / report.seconds,
                seconds=record.tick(),
                **record.loss_scale_columns(session.state.loss_scale),
            )
            session.end_epoch(row, self._steps.schedule, self._mesh)
            line.print(_table_line(record.history[-1]))
        return row

    def _record_step(self, step: int, report: dict) -> float:
        """Adds the report of a finished step to the record. Returns its loss."""
        record, loss = self.session.record, float(report["loss"])
        if report["skipped_by_loss_scale"]:
            record.skipped_by_loss_scale += 1
        elif not report["finite"]:
            table = self._data.table("train")
            names = ", ".join(table[i % len(table)]["key"] for i in report["index"] if i >= 0)
            self.session.record_non_finite_step(step, report, names, self._config.dtype)
            return loss
        record.empty_steps += not report["has_truth"]
        record.totals.add(report["sums"], report["confusion"])
        return loss

    def write_progress(self, row: dict) -> None:
        """Writes what is to be seen while the run is trained: TensorBoard, history.csv and curves.png."""
        if not is_main_process():
            return
        scalars = {k: v for k, v in row.items() if isinstance(v, float) and math.isfinite(v)}
        self.tensorboard.write_scalars(row["step"], scalars)
        write_text(self._workdir / "history.csv", history_csv(self.session.record.history))
        if time.perf_counter() - self._curves_drawn > CURVES_SECONDS:  # drawing takes half a second
            figures.curves(self.session.record.history, self._workdir / "curves.png", title=self._config.name)
            self._curves_drawn = time.perf_counter()

    # --- Evaluation ---

    def evaluate(
        self,
        weights,
        split: str = "val",
        examples: frozenset[int] = frozenset(),
        between_batches: Callable[[], None] = lambda: None,
    ) -> Evaluation:
        """Evaluates a split.

        Args:
          weights: has `params` and `model_state`.
          split: "val" or "test".
          examples: positions of examples in the split. If given, only the batches that hold them are evaluated, and
            their images, labels and predictions are returned.
          between_batches: called after each batch.

        Raises:
          NumericalError: the loss is not finite.
        """
        batch_size, count = self._config.eval_batch_size, self._data.splits[split]
        totals, losses, per_image, kept = SplitTotals(), [], [], {}
        batches = eval_batches(self._data.load(split), count, batch_size=batch_size, **self._pipeline)
        for number, batch in enumerate(batches):
            positions = range(number * batch_size, (number + 1) * batch_size)
            if examples and examples.isdisjoint(positions):
                continue
            placed = place_batch({"image": batch["image"], "label": batch["label"]}, self._mesh)
            features = self._features(weights, batch["image"])
            step = self._steps.on_features.evaluate if features and self._steps.on_features else self._steps.evaluate
            report = jax.device_get(
                step(weights.params, weights.model_state, placed["image"], placed["label"], *features)
            )
            totals.add(report["sums"], report["confusion"].sum(0))
            losses.append(float(loss_from_sums(report["sums"], self._steps.objective)))
            per_image.append(report["confusion"][: count - number * batch_size])  # without padding
            for row, index in enumerate(batch["index"]):
                if positions[row] in examples:
                    kept[int(index)] = batch["image"][row], batch["label"][row], report["predictions"][row]
            between_batches()
        if not all(np.isfinite(value).all() for value in totals.sums.values()):
            raise NumericalError(
                f"{split}: the loss is not finite at step {int(self.session.state.step)}, so there are no predictions; "
                "try a lower --config.optimizer.learning_rate"
            )
        scores = metrics.scores(np.concatenate(per_image), batch_size, self._scheme.class_names, self._scheme.evaluated)
        by_batches = self._config.validation_loss == "batches"
        loss = float(np.mean(losses)) if by_batches else totals.loss(self._steps.objective)
        return Evaluation(totals, loss, scores, kept)

    # --- Report ---

    def evaluate_finished_run(self) -> dict:
        """Draws samples.png with the best weights, and evaluates the test split.

        Returns:
          The scores of the test split with the "best" and the "last" weights; empty if it has no masks, as in the
          published Kaggle data set. Without "best" if its checkpoint is damaged.

        Raises:
          NumericalError: the output of the network is not finite.
        """
        config, session = self._config, self.session
        best = load_trained(session.checkpoints.folder, self._mesh, "best")
        # Evenly spread over the examples whose images the main process has.
        rows = config.eval_batch_size // jax.process_count()
        own = [i for i in range(self._data.splits["val"]) if i % config.eval_batch_size < rows]
        chosen = frozenset(own[i] for i in np.linspace(0, len(own) - 1, min(SAMPLE_PICTURES, len(own))).astype(int))
        stop = functools.partial(safe_point, TRAINED)
        examples = self.evaluate(best, examples=chosen, between_batches=stop).examples
        # If the best checkpoint is damaged, the last one is drawn in its place, and no scores are called the best.
        each = [(best.which.replace("latest", "last"), best), ("last", session.state)]
        test_scores = {}
        if self._data.splits.get("test"):
            print_main(f"evaluating the {self._data.splits['test']} test images")
            for which, weights in each:
                test_scores[which] = self.evaluate(weights, "test", between_batches=stop).scores
        if is_main_process():
            table, file = self._data.table("val"), self._workdir / "samples.png"
            images, truth, predictions = (
                np.stack(arrays) for arrays in zip(*(examples[i] for i in sorted(examples)), strict=True)
            )
            names = [table[i]["key"] for i in sorted(examples)]
            title = f"{config.name}: validation images, {each[0][0]} epoch"
            figures.samples(images, truth, predictions, self._scheme, file, names=names, title=title)
            picture = np.asarray(Image.open(file).convert("RGB"))
            self.tensorboard.write_image(int(session.state.step), "samples", picture)
        return test_scores

    def write_report(self, test_scores: dict) -> None:
        """Writes history.csv, curves.png and summary.json, and prints where they are."""
        config, workdir, session, record = self._config, self._workdir, self.session, self.session.record
        write_text(workdir / "history.csv", history_csv(record.history))
        figures.curves(record.history, workdir / "curves.png", title=config.name)
        stopped_early = record.epoch < config.epochs
        result = summary(
            name=config.name,
            metadata=session.metadata,
            record=record,
            scheme=self._scheme,
            params=jax.device_get(session.state.params),
            stopped_early=stopped_early,
            test=test_scores,
        )
        write_text(workdir / "summary.json", json.dumps(result, indent=2, allow_nan=False) + "\n")

        why = f"no better validation loss for {record.stalled_epochs()} epochs" if stopped_early else "all epochs done"
        dice = ", ".join(f"{name} {format_score(value)}" for name, value in result["dice_global"].items())
        print_main(f"finished after epoch {record.epoch} ({why}) in {duration(record.seconds)}")
        report = self._data.report
        if report.missing or report.bad:
            print_main(
                f"left out of the data: {len(report.missing)} files whose image or mask is missing, {len(report.bad)} "
                "unusable pairs"
            )
        print_main(f"best epoch {result['best_epoch']}: Dice over the validation split: {dice}")
        print_main(f"look at:   {workdir / 'curves.png'}  {workdir / 'samples.png'}")
        print_main(f"scores:    {workdir / 'summary.json'}  {workdir / 'history.csv'}")
        python = os.path.relpath(sys.executable) if Path(sys.executable).is_relative_to(Path.cwd()) else sys.executable
        print_main(f"next:      {python} -m tensorboard.main --logdir={workdir / 'tensorboard'}")
        if config.data.layout == "sample":
            layout = f"--config=configs/{config.name}.py:kaggle224"
            print_main(f"on BCSS:   {python} -m bcss_jax.main {layout} --config.data.dir=FOLDER")


def prepare_data(config: Any, scheme: labels.LabelScheme) -> tfrecords.PreparedData:
    """Returns the data set of a run, prepared, and divided as its config says. Raises UserError as `train`."""
    settings = DataSettings(
        config.data.layout,
        config.data.dir or None,
        config.data.split,
        config.data.mpp,
        config.data.patch_size,
        config.data.stride,
        config.data.allow_missing,
        config.data.max_bad,
        config.data.list or None,
        config.data.region,
    )
    prepared_dir, folds = Path(config.data.prepared_dir).expanduser(), config.data.folds
    data = tfrecords.prepare(settings, prepared_dir=prepared_dir, scheme=scheme, log_report=not folds)
    if folds:
        data = hold_out(data, folds, int(config.data.fold), scheme)
    print_main(
        f"{config.data.layout}: {data.splits['train']} training and {data.splits['val']} validation images, "
        f"classes {', '.join(scheme.evaluated_names)}"
    )
    return data


def draw_weights(
    config: Any, data: tfrecords.PreparedData, scheme: labels.LabelScheme, table: np.ndarray
) -> np.ndarray | None:
    """Returns how often each training tile is drawn, with mean 1; None: all equally often. `table`: code -> label."""
    of_slides = data.slide_weights
    weights = None
    if config.data.balance == "classes":
        counts = data.code_counts("train")
        weights = class_weights(np.stack([counts[:, table == label].sum(1) for label in scheme.evaluated], axis=1))
    if of_slides:
        rows = data.table("train")
        weights = np.ones(len(rows)) if weights is None else weights
        weights = with_slide_weights(weights, [of_slides[row["barcode"]] for row in rows])
    if weights is not None:
        print_main(f"training images are drawn {weights.min():.2g} to {weights.max():.2g} times an epoch on average")
    return weights


def _another_content(file: Path, sha256: str) -> bool:
    """Returns whether a file can be read and has another SHA-256."""
    try:
        return file.is_file() and sha256_of_file(file) != sha256
    except OSError:
        return False


def _stalled(record: RunRecord, patience: int) -> bool:
    """Returns whether early stopping ends the run."""
    return bool(patience) and record.stalled_epochs() >= patience


def _table_line(row: dict) -> str:
    return (
        f"{row['epoch']:5d}  {format_score(row['train_loss']):>10}  {format_score(row['val_loss']):>8}  "
        f"{format_score(row['val_dice']):>8}  {format_score(row['val_iou']):>8}  {row['learning_rate']:13.2e}  "
        f"{row['images_per_second']:8.2f}  {row['input_wait']:10.1%}  "
        f"{duration(row['seconds']):>6}{'  best' if row['best'] else ''}{skipped_text(row)}"
    )
