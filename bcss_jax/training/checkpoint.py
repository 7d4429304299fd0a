"""Checkpoints of a run: the latest and the best, written asynchronously and atomically by Orbax.

A checkpoint has these items:

* `params`: the parameters.
* `rest`: the other state of the model (BatchNorm statistics), `model_state` in the code.
* `optimizer`: the state of the optimizer, of the learning-rate schedule and, in float16, of the loss scale, and the
  step.
* `progress`: the position in the run and its history so far (JSON).
* `about`: config, label scheme, data, versions (JSON), `metadata` in the code.

Evaluation needs only `params`, `rest` and `about`, and no config file. Nothing in a checkpoint is pickled.

Every checkpoint holds the SHA-256 of its files (`step_folder`), which are compared when it is read. If a checkpoint is
damaged, another one of the run is taken, and one line says so.
"""

import contextlib
import dataclasses
import functools
import logging
import math
import sys
import time
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from flax import nnx
from jax.experimental import multihost_utils
from orbax.checkpoint import checkpoint_managers as policies

from bcss_jax import models
from bcss_jax.common.processes import is_main_process
from bcss_jax.common.regular_file import real_path
from bcss_jax.errors import ConfigError, DataError, NumericalError, StorageError, UserError, first_line
from bcss_jax.models.apply import split_model
from bcss_jax.models.weights.torch_layout import HasAdapters
from bcss_jax.training import step_folder
from bcss_jax.training.sharding import make_mesh, replicated
from bcss_jax.training.step import TrainState

# Stored in the metadata. Raised when older code cannot read what newer code writes, or the reverse.
FORMAT_VERSION = 2
_Read = TypeVar("_Read")
_LISTED = 20  # arrays that do not fit, in a message
log = logging.getLogger(__name__)


class Checkpoints:
    """The checkpoints of one run, in `folder`."""

    def __init__(self, folder: Path):
        """Opens the folder, which is created if necessary, and removes what a killed save left behind.

        Raises:
          StorageError: the folder cannot be created or written.
        """
        self.folder = real_path(folder)
        # `max_to_keep` with a best function would delete the latest checkpoint, and a resumed run would lose steps.
        keep = policies.AnyPreservationPolicy(
            [
                policies.LatestN(1),
                policies.BestN(get_metric_fn=_metric, n=1, keep_checkpoints_without_metrics=False),
            ]
        )
        # `best_fn` only makes the manager write the metric, so that a resumed run knows the best checkpoint.
        options = ocp.CheckpointManagerOptions(
            preservation_policy=keep,
            best_fn=_metric,
            best_mode="max",
            cleanup_tmp_directories=True,
            # Called in the main process when all files are written, before the folder gets its name.
            async_options=ocp.AsyncOptions(post_finalization_callback=self._write_digests),
        )
        self._saved_step: int | None = None  # the step that is being saved
        if not isinstance(sys.unraisablehook, _LeavesOutEndedLoops):
            sys.unraisablehook = _LeavesOutEndedLoops(sys.unraisablehook)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if is_main_process():
                _set_damaged_aside(self.folder)
            self._manager = ocp.CheckpointManager(self.folder, options=options)
        except OSError as error:
            raise StorageError(
                f"{self.folder}: checkpoints cannot be kept here ({error.strerror}); choose another --workdir"
            ) from error

    def save(self, state: TrainState, progress: dict, metadata: dict, improved_at: int | None = None) -> None:
        """Starts to save; training may continue while the checkpoint is written.

        Args:
          state: copied before this returns, so its memory may be donated.
          progress: JSON.
          metadata: JSON.
          improved_at: the epoch that just ended with the lowest validation loss so far, else None. The checkpoint with
            the highest value is kept as the best.

        Raises:
          StorageError: this save could not start, or the one before it failed.
        """
        # The training step gives the memory of the state to the next state while this one is still being written.
        state = _copy(state)
        arrays = {name: ocp.args.StandardSave(tree) for name, tree in _array_items(state).items()}
        items = ocp.args.Composite(
            **arrays,
            progress=ocp.args.JsonSave(progress),
            about=ocp.args.JsonSave(
                {**metadata, "format_version": FORMAT_VERSION, step_folder.DIGESTS_FIELD: "sha256"}
            ),
        )
        metrics = {"improved_at": -1 if improved_at is None else improved_at}
        self.wait()  # the digests of the save before belong to its step
        self._saved_step = int(state.step)
        with self._storage_errors():
            saved = self._manager.save(int(state.step), args=items, metrics=metrics)
        assert saved, f"a checkpoint of step {int(state.step)} exists already: the loop saved one step twice"

    def _write_digests(self) -> None:
        (unfinished,) = self.folder.glob(f"{self._saved_step}.orbax-checkpoint-tmp*")
        step_folder.write_digests(unfinished)

    def check(self) -> None:
        """Raises StorageError if a save in the background has failed."""
        with self._storage_errors():
            self._manager.check_for_errors()

    def wait(self) -> None:
        """Returns when the last save is complete on disk; raises StorageError if it failed."""
        with self._storage_errors():
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits for the last save and releases the manager's threads."""
        with self._storage_errors():
            self._manager.close()

    @contextlib.contextmanager
    def _storage_errors(self) -> Iterator[None]:
        """Turns any error of saving into a StorageError of one line that names the folder."""
        try:
            yield
        except Exception as error:  # tensorstore reports a full disk as ValueError, the file system as OSError
            raise StorageError(
                f"{self.folder}: checkpoint not saved ({first_line(error)}); the one before it is kept"
            ) from error

    def steps(self) -> list[int]:
        """Returns the steps that have a complete checkpoint, ascending."""
        return sorted(self._manager.all_steps())

    def restore(self, like: TrainState) -> tuple[TrainState, dict, dict] | None:
        """Reads the latest checkpoint that can be read; warns of damaged ones and sets them aside.

        Args:
          like: gives the shapes, dtypes and shardings to restore to; arrays, or `jax.ShapeDtypeStruct`. The number of
            devices may differ from that of the saved run.

        Returns:
          (state, progress, metadata), or None if there is no checkpoint at all.

        Raises:
          DataError: there are checkpoints, and none can be read.
        """
        steps = self.steps()
        abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), like)
        for step in reversed(steps):
            where = self.folder / str(step)
            restored, problem = _read_checked(where, None, lambda step=step: self._restore_step(step, abstract))
            if restored is not None and problem is None:
                problem = _not_finite(restored[0].params, restored[0].model_state)
            if restored is None or problem is not None:
                log.warning("%s: checkpoint cannot be read (%s); the one before it is taken", where, problem)
                continue
            _note_missing_digests(where)
            self._set_newer_aside(steps[steps.index(step) + 1 :])
            return restored
        found = ", ".join(map(str, steps)) or ", ".join(sorted(path.name for path in self.folder.glob("damaged-*")))
        if found:
            raise DataError(f"{self.folder}: none of the checkpoints can be read ({found}); start over with --fresh")
        return None

    def _restore_step(self, step: int, abstract: TrainState) -> tuple[TrainState, dict, dict]:
        arrays = {name: ocp.args.StandardRestore(tree) for name, tree in _array_items(abstract).items()}
        items: Any = self._manager.restore(step, args=ocp.args.Composite(about=ocp.args.JsonRestore()))
        metadata = items.about
        _check_version(self.folder / str(step), metadata)
        restored: Any = self._manager.restore(step, args=ocp.args.Composite(**arrays, progress=ocp.args.JsonRestore()))
        optimizer, model_state = restored.optimizer, restored.rest if "rest" in arrays else {}
        state = TrainState(
            optimizer["step"],
            restored.params,
            model_state,
            optimizer["opt_state"],
            optimizer["schedule"],
            optimizer.get("loss_scale"),
        )
        return state, restored.progress, metadata

    def _set_newer_aside(self, unreadable: list[int]) -> None:
        """Renames unreadable checkpoints; otherwise the run could not save under those steps again."""
        if not unreadable:
            return
        if is_main_process():
            for step in unreadable:
                _set_aside(self.folder / str(step))
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("unreadable checkpoints set aside")
        self._manager.reload()


@dataclasses.dataclass(frozen=True)
class TrainedWeights:
    """The weights of a model as read from a checkpoint.

    Attributes:
      folder: of the checkpoints.
      params: nested dict of arrays.
      model_state: nested dict of arrays.
      metadata: config, label scheme, data, versions.
      step: of the checkpoint.
      which: "best" or "latest": what was asked for or, if that checkpoint is damaged, what the one taken instead is.
    """

    folder: Path
    params: dict
    model_state: dict
    metadata: dict
    step: int
    which: str


def load_trained(
    folder: Path, mesh: jax.sharding.Mesh, which: str = "best", *, step: int | None = None
) -> TrainedWeights:
    """Reads weights for evaluation: without a config file or the optimizer state, onto any devices.

    If the checkpoint is damaged, the next best or the one before is taken, and a warning says so.

    Args:
      folder: of the checkpoints (`<workdir>/checkpoints`).
      mesh: the weights are placed on all of its devices.
      which: "best" (lowest validation loss) or "latest".
      step: read the checkpoint of this step and no other.

    Raises:
      DataError: there is no checkpoint, or none can be read, or a newer version wrote it.
      NumericalError: weights are not finite.
    """
    if which not in ("best", "latest"):
        raise ValueError(f"which must be best or latest, not {which}")
    folder = real_path(folder)
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; expected the checkpoints of a run")
    numbers = _in_order(folder, which) if step is None else [step]
    if not numbers:
        raise DataError(f"{folder}: holds no checkpoint; train first, or name the run's checkpoints folder")
    damaged = []
    for number in numbers:
        where = folder / str(number)
        trained, problem = _read_checked(
            where, step_folder.WEIGHTS, lambda where=where: _read_weights(where, mesh, which)
        )
        if trained is not None:
            if damaged:
                log.warning("%s; the checkpoint of step %d is taken instead", "; ".join(damaged), number)
                taken = "best" if step_folder.improved_at(where) >= 0 else "latest"
                trained = dataclasses.replace(trained, which=taken)
            _note_missing_digests(where)
            return trained
        damaged.append(f"{where}: checkpoint cannot be read ({problem})")
    raise DataError(f"{'; '.join(damaged)}; copy the run again, or train it again")


def _in_order(folder: Path, which: str) -> list[int]:
    """Returns the steps in the order in which they are tried."""

    def rank(step: int) -> tuple[float, int]:
        if which == "latest":
            return 0, step
        try:
            return step_folder.improved_at(folder / str(step)), step
        except DataError:  # may have been the best: it is named as damaged
            return math.inf, step

    return sorted(step_folder.step_numbers(folder), key=rank, reverse=True)


def _read_weights(where: Path, mesh: jax.sharding.Mesh, which: str) -> TrainedWeights:
    """Reads the weights of one checkpoint. Raises errors as `load_trained`, and many of Orbax."""
    with ocp.Checkpointer(ocp.JsonCheckpointHandler()) as reader:
        metadata = reader.restore(where / "about")
    _check_version(where, metadata)
    params = _read_arrays(where / "params", mesh)
    model_state = _read_arrays(where / "rest", mesh) if (where / "rest").exists() else {}
    problem = _not_finite(params, model_state)
    if problem:
        raise NumericalError(
            f"{where}: {problem}, so the network cannot predict; name another checkpoint, or train again"
        )
    return TrainedWeights(where.parent, params, model_state, metadata, int(where.name), which)


def read_record(folder: Path, step: int | None = None) -> dict:
    """Reads the position of the run and its history from a checkpoint.

    Args:
      folder: of the checkpoints.
      step: of the checkpoint; None: the newest whose record can be read.

    Returns:
      JSON; {} if it cannot be read.
    """
    folder = real_path(folder)
    for number in reversed(step_folder.step_numbers(folder)) if step is None else (step,):
        if step_folder.damage(folder / str(number), ("about", "metrics", "progress")):
            continue
        with contextlib.suppress(Exception):  # Orbax raises many kinds for a damaged file
            with ocp.Checkpointer(ocp.JsonCheckpointHandler()) as reader:
                record = reader.restore(folder / str(number) / "progress")
            if isinstance(record, dict):
                return record
    return {}


def network_of(trained: TrainedWeights) -> nnx.Module:
    """Returns the network that a checkpoint describes, with shapes in place of weights.

    Raises:
      DataError: there is no such network, or the weights of the checkpoint do not fit it; one line with up to 20 of
        the differences.
      ConfigError: the checkpoint is that of a SAM that takes prompts.
    """
    where = trained.folder / str(trained.step)
    if trained.metadata.get("config", {}).get("method") == "prompts":
        raise ConfigError(
            f"{trained.folder.parent}: its SAM takes prompts and is no semantic network; score it with python -m "
            "bcss_jax.evaluate --clicks"
        )
    try:
        config, scheme = trained.metadata["config"], trained.metadata["label_scheme"]
        arguments = {**config["model"], "num_classes": len(scheme["class_names"]), "dtype": config["dtype"]}
        # Only shapes: a damaged file may describe a network of any size.
        model = nnx.eval_shape(lambda: models.create(**arguments))
    except (ConfigError, KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise DataError(f"{where}: describes no network of this program ({first_line(error)})") from error
    _, params, model_state = split_model(model)
    expected = _shapes({"params": params, "rest": model_state})
    found = _shapes({"params": trained.params, "rest": trained.model_state})
    lines = [f"missing {name} {expected[name]}" for name in sorted(expected.keys() - found.keys())]
    lines += [f"unknown {name} {found[name]}" for name in sorted(found.keys() - expected.keys())]
    both = sorted(expected.keys() & found.keys())
    lines += [f"{name} is {found[name]}, expected {expected[name]}" for name in both if found[name] != expected[name]]
    if lines:
        more = f"; and {len(lines) - _LISTED} more" if len(lines) > _LISTED else ""
        raise DataError(
            f"{where}: the weights do not fit the network that the checkpoint describes "
            f"({config['model']['name']}, {len(scheme['class_names'])} classes); {len(lines)} of the arrays: "
            f"{'; '.join(lines[:_LISTED])}{more}"
        )
    return model


def load_model(folder: Path, which: str = "best") -> tuple[nnx.Module, dict]:
    """Returns the trained network, in evaluation mode, on this process's first device.

    Args:
      folder: of the checkpoints (`<workdir>/checkpoints`).
      which: "best" (lowest validation loss) or "latest".

    Returns:
      The model, and the metadata of the checkpoint: `config`, `label_scheme`, `pretrained` and more.

    Raises:
      DataError: as `load_trained`.
    """
    trained = load_trained(folder, make_mesh(jax.local_devices()[:1]), which)
    return trained_network(trained), trained.metadata


def trained_network(trained: TrainedWeights) -> nnx.Module:
    """Returns the network of a checkpoint with its weights, in evaluation mode. Errors as `network_of`."""
    model = network_of(trained)
    _, params, model_state = nnx.split(model, nnx.Param, ...)
    nnx.replace_by_pure_dict(params, trained.params)
    nnx.replace_by_pure_dict(model_state, trained.model_state)
    nnx.update(model, params, model_state)
    return model


def merged_weights(trained: TrainedWeights) -> tuple[dict, dict]:
    """Returns `params` and `model_state` of the network of a checkpoint without adapters. Errors as `network_of`."""
    if "adapters" not in trained.params:
        return trained.params, trained.model_state
    model = trained_network(trained)
    assert isinstance(model, HasAdapters)
    _, params, model_state = split_model(model.merged())
    return params, model_state


def _read_checked(
    step: Path, items: Collection[str] | None, read: Callable[[], _Read]
) -> tuple[_Read | None, str | None]:
    """Reads a checkpoint while a thread of the main process compares its digests.

    Args:
      step: folder of the checkpoint.
      items: as in `step_folder.damage`.
      read: reads it. Its errors, other than UserError, mean that the checkpoint cannot be read.

    Returns:
      (what was read, None), or (None, what is damaged), the same in all processes.

    Raises:
      UserError: `read` raised it, and the checkpoint is not damaged.
    """
    found, error = None, None
    with ThreadPoolExecutor(1) as pool:
        comparing = pool.submit(step_folder.damage, step, items) if is_main_process() else None
        try:
            found = read()
        except Exception as raised:  # Orbax raises many kinds for a damaged file; all mean: not readable
            error = raised
        problem = comparing.result() if comparing else None
    if jax.process_count() > 1:
        damaged = multihost_utils.broadcast_one_to_all(np.asarray(problem is not None))
        problem = problem or ("the main process found damage" if damaged else None)
    if problem is None and isinstance(error, UserError):
        raise error
    if problem is None and error is not None:
        problem = first_line(error)
    return (found, None) if problem is None else (None, problem)


@functools.cache  # once in a process
def _note_missing_digests(step: Path) -> None:
    """Logs that a checkpoint cannot be verified, if so."""
    if is_main_process() and not step_folder.has_digests(step):
        log.warning("%s: written by an earlier version, without digests: it is used, but not verified", step)


def _not_finite(params: dict, model_state: dict) -> str | None:
    """Returns which array holds numbers that are not finite, as text, or None."""
    for path, value in jax.tree.leaves_with_path({"params": params, "rest": model_state}):
        value = np.asarray(value)
        if not np.isfinite(value).all():
            return f"{jax.tree_util.keystr(path, simple=True, separator='/')} holds numbers that are not finite"
    return None


def _shapes(tree: dict) -> dict[str, str]:
    """Returns dtype and shape of each array by its path in the tree."""
    leaves = jax.tree.leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): f"{x.dtype}{list(x.shape)}" for path, x in leaves}


class _LeavesOutEndedLoops:
    """A `sys.unraisablehook` for failed saves, of which the first failed write is raised.

    tensorstore reports the other ones to an event loop of Orbax that has ended, each of which would print a traceback.
    """

    def __init__(self, report: Callable[[Any], Any]):
        self._report = report

    def __call__(self, unraisable: Any) -> None:
        if unraisable.object is not None or str(unraisable.exc_value) != "Event loop is closed":
            self._report(unraisable)


def _set_damaged_aside(folder: Path) -> None:
    """Renames incomplete checkpoints, and those with damaged descriptions: Orbax would refuse the whole folder."""
    for step in [folder / str(number) for number in step_folder.step_numbers(folder)]:
        if step_folder.damage(step, ("about", "metrics")):
            _set_aside(step)


def _set_aside(step: Path) -> None:
    aside = step.with_name(f"damaged-{time.time_ns()}-{step.name}")
    log.warning("%s: checkpoint is damaged, set aside as %s", step, aside.name)
    step.rename(aside)


def _check_version(step: Path, metadata: dict) -> None:
    version = metadata.get("format_version")
    if version != FORMAT_VERSION:
        remedy = "update bcss_jax" if not isinstance(version, int) or version > FORMAT_VERSION else "train again"
        raise DataError(f"{step}: checkpoint format {version}, this program reads {FORMAT_VERSION}; {remedy}")


def _read_arrays(folder: Path, mesh: jax.sharding.Mesh) -> dict:
    """Reads a saved tree of arrays in the shapes and types that it was saved in."""
    with ocp.StandardCheckpointer() as reader:
        saved = reader.metadata(folder).item_metadata.tree
        target = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=replicated(mesh)), saved)
        # Modules in lists have numbers as names; the files have text.
        return nnx.restore_int_paths(reader.restore(folder, target))


@jax.jit
def _copy(tree):
    return jax.tree.map(jnp.copy, tree)


def _array_items(state: TrainState) -> dict:
    """Returns the state as separate items, so that evaluation can read some of them. Orbax takes no empty item."""
    optimizer = {"step": state.step, "opt_state": state.opt_state, "schedule": state.schedule}
    if state.loss_scale is not None:  # checkpoints without one are as they were before there was one
        optimizer["loss_scale"] = state.loss_scale
    items = {"params": state.params, "rest": state.model_state, "optimizer": optimizer}
    return {name: tree for name, tree in items.items() if jax.tree.leaves(tree)}


def _metric(metrics: dict) -> float:
    return float(metrics.get("improved_at", -1))
