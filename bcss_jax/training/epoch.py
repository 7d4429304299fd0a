"""One epoch of training, which both training loops run: steps, checkpoints, requests to stop, and progress."""

import contextlib
import dataclasses
import logging
import math
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any, Generic, TypeVar

import jax

from bcss_jax.common.interruption import Interruption, work_is_saved
from bcss_jax.common.processes import is_main_process
from bcss_jax.common.progress import FIRST_LINE_SECONDS, ProgressLine
from bcss_jax.common.startup import start_clock
from bcss_jax.common.timing import InputWait
from bcss_jax.errors import NumericalError, Preempted
from bcss_jax.training.checkpoint import Checkpoints
from bcss_jax.training.history import EpochRecord
from bcss_jax.training.optimizer import Plateau, Poly
from bcss_jax.training.sharding import place_replicated
from bcss_jax.training.step import TrainState

LONG_COMPILE_SECONDS = 60.0
LONG_COMPILE = (
    "the training step is still being compiled, which takes minutes for some networks; the next start is faster"
)
log = logging.getLogger(__name__)
Record = TypeVar("Record", bound=EpochRecord)


@dataclasses.dataclass(frozen=True)
class LoopSettings:
    """How long an epoch is, how often a run saves and prints, and when it gives up.

    Attributes:
      steps_per_epoch: number of training batches.
      checkpoint_steps: steps between checkpoints; there is always one at the end of an epoch.
      log_seconds: time before the first progress line where the output is not a terminal.
      max_bad_steps: number of steps with a non-finite loss after which training ends.
    """

    steps_per_epoch: int
    checkpoint_steps: int = 1000
    log_seconds: float = FIRST_LINE_SECONDS
    max_bad_steps: int = 3


@dataclasses.dataclass(frozen=True)
class EpochReport:
    """What the training steps of an epoch took.

    Attributes:
      steps: number of steps in this process; fewer than `steps_per_epoch` if the run was resumed within the epoch.
      seconds: time that they took.
      input_wait: share of that time spent waiting for batches.
      grad_norm: gradient norm of the last step.
    """

    steps: int
    seconds: float
    input_wait: float
    grad_norm: float


class TrainingSession(Generic[Record]):
    """A run while it is trained: its state, its record, and the checkpoints that both are saved in.

    Attributes:
      state: what the training step returned last.
      record: position in the run, and history.
      checkpoints: of the run.
      metadata: JSON that is stored in every checkpoint.
      settings: of the loop.
    """

    def __init__(
        self,
        state: TrainState,
        record: Record,
        checkpoints: Checkpoints,
        metadata: dict,
        settings: LoopSettings,
        interruption: Interruption,
        title: str = "",
    ):
        """Stores the arguments; `title` stands before messages where several trainings share one output."""
        self.state, self.record, self.checkpoints, self.metadata = state, record, checkpoints, metadata
        self.settings, self._interruption, self._prefix = settings, interruption, f"{title}: " if title else ""
        self._start_clock: start_clock.StartClock | None = start_clock.take()  # until the first step is done
        work_is_saved()

    def save(self, improved_at: int | None = None) -> None:
        """Saves state and record; arguments and errors as `Checkpoints.save`."""
        self.record.tick()
        self.checkpoints.save(self.state, self.record.to_json(), self.metadata, improved_at)
        work_is_saved()

    def progress_line(self, label: str) -> contextlib.closing[ProgressLine]:
        """Returns the context manager of the progress display of the current epoch."""
        total, done = self.settings.steps_per_epoch, self.record.step_in_epoch
        return contextlib.closing(ProgressLine(label, total, done, self.settings.log_seconds, is_main_process()))

    def run_epoch(
        self,
        batches: Iterable[Any],
        train_step: Callable[[TrainState, Any], tuple[TrainState, dict]],
        record_step: Callable[[int, dict], float],
        line: ProgressLine,
    ) -> EpochReport:
        """Trains on the remaining batches of the current epoch.

        The report of a step is read while the device computes the next one.

        Args:
          batches: the batches of the epoch from `record.step_in_epoch` on.
          train_step: `(state, batch) -> (state, report)`; the report has at least `grad_norm`.
          record_step: adds the report of a step to the record and returns its loss. The first argument is the number
            of the step in the run, counted from 1.
          line: shows the progress.

        Raises:
          Preempted: the run was asked to stop, and is saved.
          StorageError: a checkpoint could not be written.
          UserError: `record_step` raised it.
        """
        record, settings = self.record, self.settings
        first_step, start = record.step_in_epoch, time.perf_counter()
        batches = InputWait(batches)
        pending: tuple[int, dict] | None = None  # the step that the device is computing
        loss, grad_norm = None, math.nan
        for batch in batches:
            self.state, report = self._take_step(train_step, batch, line)
            record.step_in_epoch += 1
            step = record.epoch * settings.steps_per_epoch + record.step_in_epoch
            if pending:
                loss = record_step(*pending)
            pending = step, report
            self.checkpoints.check()
            if record.step_in_epoch == settings.steps_per_epoch:
                continue  # the end of the epoch saves, and stops if it was asked to
            stop = self._interruption.agreed(step)
            if stop or step % settings.checkpoint_steps == 0:
                loss, pending = record_step(*pending), None
                self.save()
            if loss is not None:
                waited = batches.seconds / (time.perf_counter() - start)
                done = record.step_in_epoch - (pending is not None)
                line.update(done, f"loss {loss:.4f}, input wait {waited:.1%}")
            if stop:
                raise Preempted(f"{self._prefix}stopped at step {step} and saved; the same command goes on from there")
        if pending:
            grad_norm = float(pending[1]["grad_norm"])
            record_step(*pending)
        seconds = time.perf_counter() - start
        return EpochReport(record.step_in_epoch - first_step, seconds, batches.seconds / seconds, grad_norm)

    def _take_step(self, train_step: Callable, batch: Any, line: ProgressLine) -> tuple[TrainState, dict]:
        """Takes a training step; after the first one, says how long the start took."""
        clock, self._start_clock = self._start_clock, None
        if clock is None:
            return train_step(self.state, batch)
        clock.lap("data")
        patience = threading.Timer(LONG_COMPILE_SECONDS, line.print, [f"{self._prefix}{LONG_COMPILE}"])
        patience.daemon = True
        patience.start()
        try:
            stepped = train_step(self.state, batch)
        finally:
            patience.cancel()
        clock.lap("compiling")
        jax.block_until_ready(stepped)
        clock.lap("step")
        line.print(f"{self._prefix}{clock.line()}")
        return stepped

    def record_bad_step(self, found: str, remedy: str) -> None:
        """Counts a step with a non-finite loss or gradient, and warns of it.

        Raises:
          NumericalError: there were too many of them.
        """
        self.record.bad_steps += 1
        log.warning("%s%s", self._prefix, found)
        if self.record.bad_steps < self.settings.max_bad_steps:
            return
        saved = (
            f"the last checkpoint is kept in {self.checkpoints.folder}"
            if self.checkpoints.steps()
            else "no checkpoint was saved yet"
        )
        raise NumericalError(
            f"{self._prefix}{found}. Training ends after {self.record.bad_steps} such steps (config.max_bad_steps); "
            f"{saved}. {remedy}"
        )

    def record_non_finite_step(self, step: int, report: dict, names: str, dtype: str) -> None:
        """Counts a step whose loss or gradient is not finite, and which changed nothing. Errors as `record_bad_step`.

        Args:
          step: its number.
          report: of the step, with `loss` and `grad_norm`.
          names: of the examples in its batch.
          dtype: type of the computation.
        """
        self.record_bad_step(
            f"step {step} (epoch {self.record.epoch + 1}): loss {float(report['loss'])}, gradient norm "
            f"{float(report['grad_norm'])}, left out; batch: {names}",
            "Try a lower --config.optimizer.learning_rate"
            + (", or --config.dtype=float32 in a new run" if dtype == "float16" else ""),
        )

    def end_epoch(self, row: dict, schedule: Plateau | Poly, mesh: jax.sharding.Mesh) -> None:
        """Ends the epoch: updates the learning rate by `row["val_loss"]`, adds the row to the history, and saves."""
        scale = schedule.update(jax.device_get(self.state.schedule), row["val_loss"])
        self.state.schedule = place_replicated(scale, mesh)
        improved = self.record.end_epoch(row)
        self.save(improved_at=self.record.epoch if improved else None)

    def stop_if_asked(self, epochs: int) -> None:
        """Raises Preempted between two epochs, after the checkpoint, if the run was asked to stop."""
        if self._interruption.agreed(0) and self.record.epoch < epochs:
            raise Preempted(
                f"{self._prefix}stopped after epoch {self.record.epoch} and saved; the same command goes on from there"
            )
