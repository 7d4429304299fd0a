"""Pretraining of a run: tiles and compiled step, epochs with checkpoints, and what is written at the end."""

import contextlib
import json
import math
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from bcss_jax.common import figures
from bcss_jax.common.digests import sha256_of_json
from bcss_jax.common.files import write_text
from bcss_jax.common.formatting import format_score
from bcss_jax.common.interruption import Interruption, safe_point, work_has_ended
from bcss_jax.common.processes import is_main_process, print_main
from bcss_jax.common.progress import duration
from bcss_jax.common.startup import compilation_cache, start_clock
from bcss_jax.errors import ConfigError, NumericalError
from bcss_jax.models.encoders.vision_transformer.presets import preset_of
from bcss_jax.models.weights.pretrained import load_pretrained
from bcss_jax.pretraining import build
from bcss_jax.pretraining.collapse import collapse
from bcss_jax.pretraining.distillation.patch_masks import patch_masks
from bcss_jax.pretraining.distillation.step import new_state
from bcss_jax.pretraining.encoder_file import write_encoder
from bcss_jax.pretraining.knn import knn_accuracy
from bcss_jax.pretraining.local_attention import start_with_local_attention
from bcss_jax.pretraining.pictures.curves import curves
from bcss_jax.pretraining.pictures.write_pictures import write_pictures
from bcss_jax.pretraining.record import COLUMNS, PretrainingRecord, PretrainingRecordJson
from bcss_jax.pretraining.teacher import ClassFeatures, encoder_of, parameters_of
from bcss_jax.pretraining.tiles.batches import batches, steps_per_epoch
from bcss_jax.pretraining.visual_words import CLUSTERS, WORDS, Words, empty_words, learn_words
from bcss_jax.pretraining.whitening import whiten_patch_embedding
from bcss_jax.training.checkpoint import Checkpoints
from bcss_jax.training.device_advice import advice_on_dtype
from bcss_jax.training.epoch import LoopSettings, TrainingSession
from bcss_jax.training.history import history_csv, restored_record
from bcss_jax.training.loss_scale import loss_scale_for
from bcss_jax.training.resumed import check_same_run
from bcss_jax.training.sharding import check_batch_size, make_mesh, place_batch, place_replicated
from bcss_jax.training.step import TrainState
from bcss_jax.training.step_folder import step_numbers
from bcss_jax.training.summary import device, versions

KNN_BATCH = 32
CURVES_SECONDS = 10.0  # between two drawings of curves.png
BEFORE = "stopped before the first step; the same command starts again"
TRAINED = "stopped after the pretraining; the same command writes the encoder"
ENCODER = "encoder.safetensors"
TABLE = "epoch     loss  teacher entropy      KL  deviation  k-NN    learning rate  images/s  input wait    time"


def pretrain(config: Any, workdir: Path, interruption: Interruption) -> None:
    """Pretrains the run in `workdir`, or resumes it, and writes its encoder.

    Args:
      config: a ConfigDict, valid (`pretraining.config.validate`), and the one that `workdir` is claimed for.
      workdir: gets checkpoints/, history.csv, curves.png, encoder.safetensors, pictures and summary.json.
      interruption: active; tells when to save and stop.

    Raises:
      UserError: of the kinds in `errors`; the message says what to do.
    """
    compilation_cache.enable()
    run = PretrainingRun(config, workdir, interruption)
    session = run.session
    interruption.begin()
    with contextlib.closing(session.checkpoints):
        print_main(TABLE)
        while session.record.epoch < config.epochs:
            run.train_epoch()
            run.write_progress()
            run.refuse_collapse()
            session.stop_if_asked(config.epochs)
        session.checkpoints.wait()
        work_has_ended()
    run.refuse_collapse()  # the run may have ended with it before
    if is_main_process():
        safe_point(TRAINED)
        run.write_results()


class PretrainingRun:
    """A pretraining: its compiled step, its tiles, and its state.

    Attributes:
      session: state, record and checkpoints; new, or as they were when the run was interrupted.
    """

    def __init__(self, config: Any, workdir: Path, interruption: Interruption):
        """Builds the run; mistakes in the settings show before any data are read. Errors as `pretrain`."""
        clock = start_clock.current()
        clock.lap("imports")
        self._config, self._workdir, self._preset = config, workdir, preset_of(config.encoder)
        self._mesh = make_mesh()
        check_batch_size("config.batch_size", config.batch_size, config.micro_batches, self._mesh)
        views = build.view_settings(config)
        self._network = build.create_network(config)
        self._optimizer = build.create_optimizer(config, self._network)
        self._step = build.create_step(config, self._network, self._optimizer, self._mesh)
        pretrained = self._load_pretrained()
        clock.lap("network")
        safe_point(BEFORE)
        self._tiles = build.open_tiles(config)
        for note in self._tiles.notes:
            print_main(note)
        views.check_tiles(self._tiles.size)
        steps = steps_per_epoch(self._tiles, config.batch_size)
        self._labeled = build.open_labeled_tiles(config)
        for note in () if self._labeled is None else self._labeled.notes:
            print_main(f"labeled tiles: {note}")
        self._improve_random_weights()
        words = self._learn_words()
        state = new_state(self._network, self._optimizer, loss_scale_for(config.dtype), words)
        state = place_replicated(state, self._mesh)
        clock.lap("data")
        safe_point(BEFORE)
        self._schedules = build.create_schedules(config, config.epoch_steps or steps)
        self._patches = (config.views.global_size // self._preset.architecture.patch) ** 2
        self._features = ClassFeatures(self._network, self._preset.statistics, KNN_BATCH)
        self._curves_drawn = -math.inf
        self.session = self._start_or_resume(state, pretrained, interruption, config.epoch_steps or steps)

    def _load_pretrained(self) -> dict | None:
        """Loads a file of weights into the encoder of a run that has no checkpoint. Returns what is known of them."""
        config = self._config
        if not config.pretrained or step_numbers(self._workdir / "checkpoints"):
            return None
        pretrained = load_pretrained(self._network, Path(config.pretrained).expanduser())
        print_main(f"{config.pretrained}: {pretrained['tensors']} tensors into the {pretrained['part']}")
        return pretrained

    def _improve_random_weights(self) -> None:
        """Whitens patches and makes attention local, in a run from random weights that has no checkpoint."""
        config = self._config
        if config.pretrained or step_numbers(self._workdir / "checkpoints"):
            return
        if config.local_attention:
            start_with_local_attention(self._network.encoder, config.seed)
            print_main("attention starts with like patches")
        if not config.whiten_patches:
            return
        count = whiten_patch_embedding(self._network.encoder, self._tiles, self._preset.statistics, config.seed)
        print_main(f"the patch embedding starts as the whitening of {count:,} patches of the tiles")

    def _learn_words(self) -> Words | None:
        """Returns visual words, empty ones if there is a checkpoint that holds them, None if there are none."""
        if not self._config.objective.words_weight:
            return None
        if step_numbers(self._workdir / "checkpoints"):
            return empty_words()
        words = learn_words(self._tiles, self._preset.architecture.patch, self._config.seed)
        print_main(f"{WORDS} visual words of the tiles, {CLUSTERS} clusters of what surrounds a patch")
        return words

    def _start_or_resume(
        self, state: TrainState, pretrained: dict | None, interruption: Interruption, epoch_steps: int
    ) -> TrainingSession[PretrainingRecord]:
        config = self._config
        print_main(
            f"{config.encoder}: {parameters_of(self._network):,} parameters, {self._mesh.size} "
            f"{jax.devices()[0].device_kind} device(s)"
        )
        if advice := advice_on_dtype(config.dtype, jax.local_devices()):
            print_main(advice)
        checkpoints, record = Checkpoints(self._workdir / "checkpoints"), PretrainingRecord()
        metadata = {
            "config": config.to_dict(),
            "pretrained": pretrained,
            "label_scheme": {},
            "data": {
                "tiles": len(self._tiles),
                "size": self._tiles.size,
                "names_sha256": sha256_of_json(list(self._tiles.names)),
                "notes": list(self._tiles.notes),
            },
            "device": device(),
            "versions": versions(),
        }
        restored = checkpoints.restore(state)
        if restored:
            state, record_json, saved = restored
            check_same_run(checkpoints.folder, saved, metadata)
            if any(saved["data"].get(name) != metadata["data"][name] for name in ("tiles", "size", "names_sha256")):
                raise ConfigError(
                    f"{self._workdir}: the tiles are not those that this run began with ({saved['data'].get('tiles')} "
                    f"then, {len(self._tiles)} now, or others); put them back, or use --fresh or another --workdir"
                )
            metadata["pretrained"] = saved["pretrained"]
            record = restored_record(
                PretrainingRecord.from_json, PretrainingRecordJson, record_json, checkpoints.folder
            )
            print_main(f"resuming after epoch {record.epoch}, batch {record.step_in_epoch} (step {int(state.step)})")
        settings = LoopSettings(
            steps_per_epoch=epoch_steps,
            checkpoint_steps=config.checkpoint_steps,
            log_seconds=config.log_seconds,
            max_bad_steps=config.max_bad_steps,
        )
        return TrainingSession(state, record, checkpoints, metadata, settings, interruption)

    def train_epoch(self) -> None:
        """Trains the rest of the current epoch, and saves."""
        config, session, record = self._config, self.session, self.session.record
        first = record.epoch * session.settings.steps_per_epoch
        numbers = range(first + record.step_in_epoch, first + session.settings.steps_per_epoch)
        with (
            contextlib.closing(
                batches(
                    self._tiles,
                    config.batch_size,
                    config.seed,
                    numbers.start,
                    process=jax.process_index(),
                    processes=jax.process_count(),
                )
            ) as source,
            session.progress_line(f"epoch {record.epoch + 1}") as line,
        ):
            report = session.run_epoch(zip(numbers, source, strict=False), self._train_step, self._record_step, line)
            step = numbers.stop
            values = self._schedules.at(step - 1)
            row = {
                "epoch": record.epoch + 1,
                "step": step,
                **record.means(),
                "knn_accuracy": self._knn_accuracy(),
                **{name: float(values[name]) for name in COLUMNS if name in values},
                "input_wait": report.input_wait,
                "images_per_second": report.steps * config.batch_size / report.seconds,
                "seconds": record.tick(),
                **record.loss_scale_columns(session.state.loss_scale),
            }
            record.end_epoch(row)
            session.save()
            line.print(_table_line(record.history[-1]))

    def _train_step(self, state: TrainState, numbered) -> tuple[TrainState, dict]:
        number, batch = numbered
        placed = {"image": batch.images}
        if self._config.objective.patch_weight:
            placed["mask"] = self._masks(number, len(batch.images))
        arrays = place_batch(placed, self._mesh)
        values = self._schedules.at(number)
        state, report = self._step(state, arrays["image"], arrays.get("mask"), values)
        return state, report | {"index": batch.indices}

    def _masks(self, step: int, rows: int) -> np.ndarray:
        """Returns the masks of this process's tiles, bool [rows, 2, P]."""
        side, size = round(self._patches**0.5), self._config.batch_size
        masks = patch_masks(2 * size, side, side, self._config.seed, step).reshape(size, 2, -1)
        return masks[jax.process_index() * rows : (jax.process_index() + 1) * rows]

    def _record_step(self, step: int, report: dict) -> float:
        """Adds the report of a finished step to the record. Returns its loss."""
        record, loss = self.session.record, float(report["loss"])
        if report["skipped_by_loss_scale"]:
            record.skipped_by_loss_scale += 1
        elif not report["finite"]:
            names = ", ".join(str(self._tiles.names[i]) for i in report["index"])
            self.session.record_non_finite_step(step, report, names, self._config.dtype)
        else:
            record.add(report)
        return loss

    def _knn_accuracy(self) -> float:
        """Returns the share of labeled tiles whose class the teacher's features tell; NaN if it is not measured."""
        every, epoch = self._config.knn_epochs, self.session.record.epoch + 1
        if self._labeled is None or (epoch % every and epoch != self._config.epochs):
            return math.nan
        features = self._features(self.session.state.model_state["teacher"], self._labeled.images)
        return knn_accuracy(features, self._labeled.labels, self._labeled.groups)

    def _collapse(self, *, words: bool) -> str | None:
        """Returns what has collapsed, or None; `words`: see `collapse`."""
        config = self._config
        first = max(config.optimizer.warmup_epochs, config.optimizer.frozen_last_layer_epochs)
        return collapse(
            self.session.record.history,
            after_epoch=min(first, config.epochs - 1),
            prototypes=config.head.prototypes,
            features=self._preset.architecture.width,
            words=words,
        )

    def refuse_collapse(self) -> None:
        """Raises NumericalError if student and teacher agree because all images look alike to them."""
        found = self._collapse(words=self._config.objective.words_weight > 0)
        if found:
            self.session.checkpoints.wait()
            raise NumericalError(
                f"{self._workdir}: collapsed by epoch {self.session.record.epoch}: {found}; start over with --fresh "
                "and a lower --config.objective.teacher_temperature or learning rate, or more tiles in a batch"
            )

    def write_progress(self, last: bool = False) -> None:
        """Writes history.csv and, if it was not drawn just before or the run has ended, curves.png."""
        if not is_main_process():
            return
        history = self.session.record.history
        write_text(self._workdir / "history.csv", history_csv(history, COLUMNS))
        if last or time.perf_counter() - self._curves_drawn > CURVES_SECONDS:
            figure = curves(
                history,
                f"{self._config.name}: {self._config.encoder}",
                prototypes=self._config.head.prototypes,
                features=self._preset.architecture.width,
                chance=None if self._labeled is None else self._labeled.chance,
            )
            figures.write(figure, self._workdir / "curves.png")
            self._curves_drawn = time.perf_counter()

    def write_results(self) -> None:
        """Writes the encoder, pictures and summary.json, and prints where they are."""
        config, workdir, session, record = self._config, self._workdir, self.session, self.session.record
        self.write_progress(last=True)
        encoder = encoder_of(self._network, session.state.model_state["teacher"])
        about = {"trained_on": f"{len(self._tiles)} tiles without labels", "steps": int(session.state.step)}
        mpp = config.data.mpp if config.data.layout == "slides" else None
        write_encoder(workdir / ENCODER, encoder, config.encoder, self._preset.statistics, mpp, about)
        last = record.history[-1]
        result = {
            "name": config.name,
            "encoder": config.encoder,
            "steps": int(session.state.step),
            "seconds": round(record.seconds, 3),
            "bad_steps": record.bad_steps,
            **{name: last[name] for name in COLUMNS[2:] if name in last},
            **session.metadata,
        }
        write_text(workdir / "summary.json", json.dumps(result, indent=2, allow_nan=False, default=str) + "\n")
        print_main(f"finished after epoch {record.epoch} in {duration(record.seconds)}")
        if unused := self._collapse(words=False):
            print_main(f"note: {unused}; what the encoder learned is from visual words alone")
        print_main(f"encoder:   {workdir / ENCODER}")
        print_main(f"scores:    {workdir / 'summary.json'}  {workdir / 'history.csv'}  {workdir / 'curves.png'}")
        pictures = write_pictures(
            workdir,
            encoder,
            self._preset.statistics,
            self._tiles,
            name=config.encoder,
            slide=build.first_slide(config, self._tiles),
            mpp=mpp,
        )
        print_main(f"pictures:  {'  '.join(map(str, pictures))}")
        print_main(
            f"next:      python -m bcss_jax.main --config=configs/vit.py --config.encoder={config.encoder} "
            f"--config.pretrained={workdir / ENCODER}"
        )


def _table_line(row: dict) -> str:
    return (
        f"{row['epoch']:5d}  {format_score(row['loss']):>7}  {format_score(row['teacher_entropy']):>15}  "
        f"{format_score(row['kl']):>6}  {format_score(row['feature_deviation']):>9}  "
        f"{format_score(row['knn_accuracy'], 3, '-'):>5}  {row['learning_rate']:13.2e}  "
        f"{row['images_per_second']:8.2f}  {row['input_wait']:10.1%}  {duration(row['seconds']):>6}"
    )
