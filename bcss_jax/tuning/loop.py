"""Training of SAM with simulated prompts: epochs with validation and checkpoints, and the file of the tuned SAM."""

import contextlib
import functools
import json
import math
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from bcss_jax import labels
from bcss_jax.common.files import write_text
from bcss_jax.common.formatting import format_score
from bcss_jax.common.interruption import Interruption, safe_point, work_has_ended
from bcss_jax.common.processes import is_main_process, print_main
from bcss_jax.common.progress import duration
from bcss_jax.common.startup import compilation_cache, start_clock
from bcss_jax.data.augmentation.settings import Augmentation
from bcss_jax.data.decoded_tiles import decoded_bytes, free_memory, holds
from bcss_jax.data.input_pipeline import decode_tiles, eval_batches, image_size, train_batches
from bcss_jax.data.sampling.balance import draws
from bcss_jax.errors import DataError, NumericalError
from bcss_jax.models.sam.promptable import PromptableSam
from bcss_jax.models.sam.weights.description import SAM_FILE, write_sam
from bcss_jax.models.weights.pretrained import load_pretrained, to_torch_state, what_was_loaded
from bcss_jax.prompting.simulation.click_protocol import regions_of
from bcss_jax.prompting.simulation.training_prompts import MIN_AREA
from bcss_jax.training.checkpoint import Checkpoints, load_trained
from bcss_jax.training.device_advice import advice_on_dtype
from bcss_jax.training.epoch import LoopSettings, TrainingSession
from bcss_jax.training.frozen.feature_cache import FeatureCache, cache_in_share, images_recur
from bcss_jax.training.history import RunRecord, RunRecordJson, history_csv, restored_record, skipped_text
from bcss_jax.training.loop import draw_weights, prepare_data
from bcss_jax.training.loss_scale import loss_scale_for
from bcss_jax.training.resumed import check_same_data, check_same_run
from bcss_jax.training.sharding import check_batch_size, make_mesh, place_batch, place_replicated
from bcss_jax.training.step import TrainState
from bcss_jax.training.step_folder import step_numbers
from bcss_jax.training.summary import device, params_sha256, versions
from bcss_jax.tuning import build
from bcss_jax.tuning.start_from_run import start_from_run

COLUMNS = (
    "epoch", "step", "train_loss", "val_loss", "train_iou_first", "val_iou_first", "train_iou_last", "val_iou_last",
    "val_objects", "learning_rate", "grad_norm", "input_wait", "images_per_second", "seconds", "best",
)  # fmt: skip
BEFORE = "stopped before the first step; the same command starts again"
TRAINED = "stopped after the training; the same command writes the tuned SAM"
TABLE = "epoch  train loss  val loss  IoU of first prompt  and of last  learning rate  images/s  input wait    time"


def tune(config: Any, workdir: Path, interruption: Interruption) -> None:
    """Trains the run in `workdir`, or resumes it, and writes its SAM.

    Args:
      config: a ConfigDict, valid (`tuning.config.validate`), and the one that `workdir` is claimed for.
      workdir: gets checkpoints/, history.csv, sam.safetensors and summary.json.
      interruption: active; tells when to save and stop.

    Raises:
      UserError: of the kinds in `errors`; the message says what to do.
    """
    compilation_cache.enable()
    run = TuningRun(config, workdir, interruption)
    session = run.session
    interruption.begin()
    with contextlib.closing(session.checkpoints):
        print_main(TABLE)
        while session.record.epoch < config.epochs and not run.stalled():
            run.train_epoch()
            session.stop_if_asked(config.epochs)
        session.checkpoints.wait()
        work_has_ended()
    if is_main_process():
        safe_point(TRAINED)
        run.write_results()


class TuningRun:
    """A training with prompts: its compiled steps, its data, and its state.

    Attributes:
      session: state, record and checkpoints; new, or as they were when the run was interrupted.
    """

    def __init__(self, config: Any, workdir: Path, interruption: Interruption):
        """Builds the run; mistakes in the settings show before any data are read. Errors as `tune`."""
        clock = start_clock.current()
        clock.lap("imports")
        self._config, self._workdir, self._scheme = config, workdir, labels.find_scheme(config.labels)
        self._augmentation, self._mesh = Augmentation(**config.augment), make_mesh()
        check_batch_size("config.batch_size", config.batch_size, config.micro_batches, self._mesh)
        check_batch_size("config.eval_batch_size", config.eval_batch_size, 1, self._mesh)
        self._network = build.create_network(config)
        self._steps = build.make_steps(config, self._scheme, self._network, self._mesh)
        pretrained = self._load_pretrained()
        start = TrainState.create(self._network, self._steps.tx, self._steps.schedule, loss_scale_for(config.dtype))
        state = place_replicated(start, self._mesh)
        clock.lap("network")
        safe_point(BEFORE)
        self._data = prepare_data(config, self._scheme)
        clock.lap("data")
        self._pipeline = {
            "table": labels.lookup_table(self._scheme, self._data.codes),
            "ignore_index": self._scheme.ignore_index,
            "process_index": jax.process_index(),
            "process_count": jax.process_count(),
            "threads": config.data.threads or None,
        }
        self._weights = draw_weights(config, self._data, self._scheme, self._pipeline["table"])
        for split in ("train", "val"):
            self._check_objects(split)
        self._tiles = self._load_training_tiles()
        self._feature_cache = self._make_feature_cache()
        self.session = self._start_or_resume(state, pretrained, interruption)

    def stalled(self) -> bool:
        """Returns whether early stopping ends the run."""
        patience = self._config.early_stopping
        return bool(patience) and self.session.record.stalled_epochs() >= patience

    def _load_pretrained(self) -> dict | None:
        """Loads a file of weights, or those of a run, into the network of a run that has no checkpoint.

        Returns what is known of them.
        """
        config = self._config
        if step_numbers(self._workdir / "checkpoints") or not config.pretrained:
            return None
        path = Path(config.pretrained).expanduser()
        pretrained = (start_from_run if path.is_dir() else load_pretrained)(self._network, path)
        print_main(f"{config.pretrained}: {what_was_loaded(pretrained)}")
        return pretrained

    def _check_objects(self, split: str) -> None:
        """Raises DataError if no tile of a split has a region to prompt."""
        for batch in eval_batches(self._data.load(split), self._data.splits[split], batch_size=1, **self._pipeline):
            safe_point(BEFORE)
            if regions_of(batch["label"][0], self._scheme.evaluated):
                return
        config = self._config
        raise DataError(
            f"{config.data.list or config.data.dir or 'the built-in sample'}: no tile of the split {split} has a "
            f"connected region of at least {MIN_AREA} pixels of {' or '.join(self._scheme.evaluated_names)}, which a "
            "prompt could mean; add tiles, or choose another --config.labels"
        )

    def _load_training_tiles(self):
        """Returns the training tiles, decoded if they fit the memory, or as a data set of encoded ones."""
        encoded, count = self._data.load("train"), self._data.splits["train"]
        needed = decoded_bytes(count, image_size(encoded))
        if not holds(needed, self._config.data.memory_share, jax.process_count(), free_memory())[0]:
            return encoded
        table, threads = self._pipeline["table"], self._pipeline["threads"]
        stop = functools.partial(safe_point, BEFORE)
        return decode_tiles(encoded, count, table=table, threads=threads, between_batches=stop)

    def _make_feature_cache(self) -> FeatureCache | None:
        """Returns where the features of an encoder that is not trained are kept; None: they are computed each time."""
        if self._steps.encode is None:
            return None
        recur = images_recur(self._augmentation)
        return cache_in_share(self._steps.encode, self._mesh, self._config.data.memory_share, training=recur)

    def _start_or_resume(
        self, state: TrainState, pretrained: dict | None, interruption: Interruption
    ) -> TrainingSession[RunRecord]:
        """Returns the session of a new run, which begins with `state`, or of the run that the last checkpoint holds."""
        config, data, fixed = self._config, self._data, self._steps.never_trained
        count, kept = (
            sum(math.prod(p.shape) for p in jax.tree.leaves(parts))
            for parts in (state.params, {name: state.params[name] for name in fixed})
        )
        trained = f", of which {count - kept:,} are trained" if fixed else ""
        print_main(
            f"SAM with {config.encoder}: {count:,} parameters{trained}, {self._mesh.size} "
            f"{jax.devices()[0].device_kind} device(s)"
        )
        if advice := advice_on_dtype(config.dtype, jax.local_devices()):
            print_main(advice)
        checkpoints, record = Checkpoints(self._workdir / "checkpoints"), RunRecord()
        metadata = {
            "config": config.to_dict(),
            "pretrained": pretrained,
            "label_scheme": self._scheme.to_json(),
            "data": data.describe(),
            "device": device(),
            "versions": versions(),
        }
        restored = checkpoints.restore(state)
        if restored:
            state, record_json, saved = restored
            check_same_run(checkpoints.folder, saved, metadata)
            check_same_data(self._workdir, saved, metadata)
            record = restored_record(RunRecord.from_json, RunRecordJson, record_json, checkpoints.folder)
            metadata["pretrained"] = saved["pretrained"]
            print_main(f"resuming after epoch {record.epoch}, batch {record.step_in_epoch} (step {int(state.step)})")
        settings = LoopSettings(
            steps_per_epoch=math.ceil(data.splits["train"] / config.batch_size),
            checkpoint_steps=config.checkpoint_steps,
            log_seconds=config.log_seconds,
            max_bad_steps=config.max_bad_steps,
        )
        return TrainingSession(state, record, checkpoints, metadata, settings, interruption)

    def train_epoch(self) -> None:
        """Trains the rest of the current epoch, validates, and saves."""
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
        with session.progress_line(f"epoch {record.epoch + 1}") as line:
            report = session.run_epoch(batches, self._train_step, self._record_step, line)
            row = {
                "epoch": record.epoch + 1,
                "step": record.epoch * session.settings.steps_per_epoch + record.step_in_epoch,
                **_figures("train", record.totals.sums),
                **self._validate(),
                "learning_rate": config.optimizer.learning_rate * float(session.state.schedule.scale),
                "grad_norm": report.grad_norm,
                "input_wait": report.input_wait,
                "images_per_second": report.steps * config.batch_size / report.seconds,
                "seconds": record.tick(),
                **record.loss_scale_columns(session.state.loss_scale),
            }
            session.end_epoch(row, self._steps.schedule, self._mesh)
            line.print(_table_line(record.history[-1]))
        if is_main_process():
            write_text(self._workdir / "history.csv", history_csv(record.history, COLUMNS))

    def _placed(self, weights, batch, recur: bool) -> tuple[tuple, bool]:
        """Returns the arguments of a step that a batch gives, and whether features of the encoder are among them."""
        placed = place_batch(
            {"image": batch["image"], "label": batch["label"], "index": batch["index"].astype(np.int32)}, self._mesh
        )
        arguments = placed["image"], placed["label"], placed["index"]
        if self._feature_cache is None or not recur:
            return arguments, False
        arrays = self._feature_cache.features(weights.params, weights.model_state, batch["image"])
        maps = place_batch({str(i): array for i, array in enumerate(arrays)}, self._mesh)
        return (*arguments, tuple(maps.values())), True

    def _train_step(self, state: TrainState, batch) -> tuple[TrainState, dict]:
        arguments, on_features = self._placed(state, batch, images_recur(self._augmentation))
        state, report = (self._steps.train_on_features if on_features else self._steps.train)(state, *arguments)
        return state, report | {"index": batch["index"]}

    def _record_step(self, step: int, report: dict) -> float:
        """Adds the report of a finished step to the record. Returns its loss."""
        record, loss = self.session.record, float(report["loss"])
        if report["skipped_by_loss_scale"]:
            record.skipped_by_loss_scale += 1
        elif not report["finite"]:
            table = self._data.table("train")
            names = ", ".join(table[i % len(table)]["key"] for i in report["index"] if i >= 0)
            self.session.record_non_finite_step(step, report, names, self._config.dtype)
        else:
            record.empty_steps += not report["has_truth"]
            record.totals.add(report["sums"], np.zeros(()))
        return loss

    def _validate(self) -> dict[str, float]:
        """Returns the columns of the validation split; raises NumericalError if its loss is not finite."""
        config, state, totals = self._config, self.session.state, {}
        batches = eval_batches(
            self._data.load("val"), self._data.splits["val"], batch_size=config.eval_batch_size, **self._pipeline
        )
        for batch in batches:
            arguments, on_features = self._placed(state, batch, True)
            step = self._steps.evaluate_on_features if on_features else self._steps.evaluate
            sums = jax.device_get(step(state.params, state.model_state, *arguments))
            totals = {name: np.asarray(totals.get(name, 0) + value, np.float64) for name, value in sums.items()}
        found = _figures("val", totals)
        if totals["objects"] and not math.isfinite(found["val_loss"]):
            raise NumericalError(
                f"val: the loss is not finite at step {int(state.step)}; try a lower --config.optimizer.learning_rate"
            )
        return found | {"val_objects": float(totals["objects"])}

    def write_results(self) -> None:
        """Writes the tuned SAM of the best epoch and summary.json, and prints where they are."""
        config, workdir, session, record = self._config, self._workdir, self.session, self.session.record
        write_text(workdir / "history.csv", history_csv(record.history, COLUMNS))
        best = load_trained(session.checkpoints.folder, self._mesh, "best")
        network = with_weights(self._network, best.params, best.model_state)
        row = record.best() or record.history[-1]
        description = {
            "image_size": config.image_size,
            "encoder": config.encoder,
            "mpp": float(config.data.mpp),
            "labels": config.labels,
            "classes": list(self._scheme.evaluated_names),
            "step": best.step,
            "pretrained": session.metadata["pretrained"],
        }
        write_sam(workdir / SAM_FILE, to_torch_state(network), description)
        result = {
            "name": config.name,
            "encoder": config.encoder,
            "best_epoch": row["epoch"],
            **{name: row[name] for name in COLUMNS[2:9]},
            "steps": int(session.state.step),
            "seconds": round(record.seconds, 3),
            "bad_steps": record.bad_steps,
            "empty_steps": record.empty_steps,
            "params_sha256": params_sha256(jax.device_get(session.state.params)),
            **session.metadata,
        }
        write_text(workdir / "summary.json", json.dumps(result, indent=2, allow_nan=False, default=str) + "\n")
        print_main(f"finished after epoch {record.epoch} in {duration(record.seconds)}")
        print_main(f"tuned SAM: {workdir / SAM_FILE} (epoch {row['epoch']})")
        print_main(f"scores:    {workdir / 'summary.json'}  {workdir / 'history.csv'}")
        print_main(f"next:      python -m bcss_jax.evaluate --clicks --checkpoints={workdir} --output={workdir}_clicks")


def with_weights(network: PromptableSam, params: dict, model_state: dict) -> PromptableSam:
    """Returns the network with these weights."""
    graphdef, *variables = nnx.split(network, nnx.Param, ...)
    for each, values in zip(variables, (params, model_state), strict=True):
        nnx.replace_by_pure_dict(each, values)
    return nnx.merge(graphdef, *variables)


def _figures(split: str, sums: dict[str, Any]) -> dict[str, float]:
    """Returns the means over objects: loss, and IoU after the first and the last prompt. NaN without objects."""
    count = float(sums["objects"]) if sums else 0.0
    if not count:
        return dict.fromkeys((f"{split}_loss", f"{split}_iou_first", f"{split}_iou_last"), math.nan)
    iou = np.asarray(sums["iou"]) / count
    return {
        f"{split}_loss": float(sums["loss"]) / count,
        f"{split}_iou_first": float(iou[0]),
        f"{split}_iou_last": float(iou[-1]),
    }


def _table_line(row: dict) -> str:
    return (
        f"{row['epoch']:5d}  {format_score(row['train_loss']):>10}  {format_score(row['val_loss']):>8}  "
        f"{format_score(row['val_iou_first']):>19}  {format_score(row['val_iou_last']):>11}  "
        f"{row['learning_rate']:13.2e}  {row['images_per_second']:8.2f}  {row['input_wait']:10.1%}  "
        f"{duration(row['seconds']):>6}{'  best' if row['best'] else ''}{skipped_text(row)}"
    )
