"""Checkpoints of a run: the latest and the best, written asynchronously and atomically by Orbax.

A checkpoint holds `params`, `model_state` (BatchNorm statistics), `optimizer` (its state, the learning-rate schedule's and the step),
`progress` (where in the run, history so far; JSON) and `about` (config, label scheme, versions; JSON). Evaluation needs
`params`, `model_state` and `about` alone, and no config file. Nothing in it is pickled.
"""

import contextlib
import dataclasses
import json
import logging
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from flax import nnx
from jax.experimental import multihost_utils
from orbax.checkpoint import checkpoint_managers as policies

from bcss_jax import models
from bcss_jax.errors import ConfigError, DataError, StorageError, UserError, first_line
from bcss_jax.models.apply import split_model
from bcss_jax.training.sharding import make_mesh, replicated
from bcss_jax.training.step import TrainState

FORMAT_VERSION = 2  # in `about`; raised when older code could not read what newer code writes, or newer code older
_LISTED = 20  # arrays that do not fit, in a message
log = logging.getLogger(__name__)


class Checkpoints:
    """The checkpoints of one run, in `folder`."""

    def __init__(self, folder: Path):
        """Opens the folder, makes it if need be, and clears what a killed save left behind.

        Raises:
          StorageError: the folder cannot be made or written.
        """
        self.folder = Path(folder).resolve()
        # `max_to_keep` with a best function would delete the latest and so set a resumed run back.
        keep = policies.AnyPreservationPolicy(
            [
                policies.LatestN(1),
                policies.BestN(get_metric_fn=_improved_at, n=1, keep_checkpoints_without_metrics=False),
            ]
        )
        # `best_fn` only makes the manager write the metric down, for a resumed run to know the best by.
        options = ocp.CheckpointManagerOptions(
            preservation_policy=keep, best_fn=_improved_at, best_mode="max", cleanup_tmp_directories=True
        )
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if jax.process_index() == 0:
                _set_damaged_aside(self.folder)
            self._manager = ocp.CheckpointManager(self.folder, options=options)
        except OSError as error:
            raise StorageError(
                f"{self.folder}: cannot keep checkpoints here ({error.strerror}); choose another --workdir"
            ) from error

    def save(self, state: TrainState, progress: dict, about: dict, improved_at: int | None = None) -> None:
        """Starts saving; training may go on while it is written.

        Args:
          state: copied before this returns; its memory may be given away.
          progress: JSON.
          about: JSON.
          improved_at: the epoch that just ended with the lowest validation loss so far, else None. The checkpoint with
            the highest is kept as the best.

        Raises:
          StorageError: this save could not start or the one before it failed.
        """
        # A copy: the training step gives the state's memory to its successor while this is still being written.
        state = _copy(state)
        arrays = {name: ocp.args.StandardSave(tree) for name, tree in _array_items(state).items()}
        items = ocp.args.Composite(
            **arrays,
            progress=ocp.args.JsonSave(progress),
            about=ocp.args.JsonSave({"format_version": FORMAT_VERSION, **about}),
        )
        metrics = {"improved_at": -1 if improved_at is None else improved_at}
        with self._storage_errors():
            saved = self._manager.save(int(state.step), args=items, metrics=metrics)
        assert saved, f"there is a checkpoint of step {int(state.step)} already: the loop has saved one step twice"

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
    def _storage_errors(self):
        """Whatever goes wrong while saving is said as one line, with the folder."""
        try:
            yield
        except Exception as error:  # tensorstore reports a full disk as ValueError, the file system as OSError
            raise StorageError(
                f"{self.folder}: checkpoint not saved ({first_line(error)}); the one before it is kept"
            ) from error

    def steps(self) -> list[int]:
        """Steps that have a complete checkpoint, ascending."""
        return sorted(self._manager.all_steps())

    def restore(self, like: TrainState) -> tuple[TrainState, dict, dict] | None:
        """The latest checkpoint that can be read; a damaged one is reported and the one before it taken.

        Args:
          like: gives the shapes, dtypes and shardings to restore to; arrays, or `jax.ShapeDtypeStruct`. The number of
            devices may differ from that of the saved run.

        Returns:
          (state, progress, about), or None where there is no checkpoint at all.

        Raises:
          DataError: there are checkpoints and none can be read.
        """
        steps = self.steps()
        abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), like)
        for step in reversed(steps):
            arrays = {name: ocp.args.StandardRestore(tree) for name, tree in _array_items(abstract).items()}
            try:
                about = self._manager.restore(step, args=ocp.args.Composite(about=ocp.args.JsonRestore())).about
                _check_version(self.folder / str(step), about)
                items = ocp.args.Composite(**arrays, progress=ocp.args.JsonRestore())
                got = self._manager.restore(step, args=items)
            except UserError:  # among them a request to stop
                raise
            except Exception as error:  # Orbax raises many kinds for a damaged file; all mean: not readable
                log.warning("%s: checkpoint cannot be read (%s)", self.folder / str(step), first_line(error))
                continue
            newer = steps[steps.index(step) + 1 :]
            if newer:  # out of the way, or the run could not save under that step again
                if jax.process_index() == 0:
                    for unreadable in newer:
                        _set_aside(self.folder / str(unreadable))
                if jax.process_count() > 1:
                    multihost_utils.sync_global_devices("unreadable checkpoints set aside")
                self._manager.reload()
            optimizer, model_state = got.optimizer, got.rest if "rest" in arrays else {}
            return (
                TrainState(optimizer["step"], got.params, model_state, optimizer["opt_state"], optimizer["schedule"]),
                got.progress,
                about,
            )
        if steps:
            raise DataError(f"{self.folder}: none of the checkpoints {steps} can be read; start over with --fresh")
        damaged = sorted(path.name for path in self.folder.glob("damaged-*"))
        if damaged:
            raise DataError(
                f"{self.folder}: none of the checkpoints can be read ({', '.join(damaged)}); start over with --fresh"
            )
        return None


@dataclasses.dataclass(frozen=True)
class Trained:
    """A model's weights as read from a checkpoint: nested dicts of arrays, and what the checkpoint says of itself."""

    folder: Path  # of the checkpoints
    params: dict
    model_state: dict
    about: dict
    step: int


def load_trained(folder: Path, mesh: jax.sharding.Mesh, which: str = "best") -> Trained:
    """Reads weights for evaluation: no config file, no optimizer state, onto any devices.

    Args:
      folder: of the checkpoints (`<workdir>/checkpoints`).
      mesh: the weights are placed on all of its devices.
      which: "best" (lowest validation loss) or "latest".

    Raises:
      DataError: no checkpoint there, unreadable, or written by a newer version.
    """
    if which not in ("best", "latest"):
        raise ValueError(f"which must be best or latest, not {which}")
    folder = Path(folder).resolve()
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; expected the checkpoints of a run")
    steps = _steps(folder)
    if not steps:
        raise DataError(f"{folder}: holds no checkpoint; train first, or name the run's checkpoints folder")
    step = steps[-1]
    try:
        if which == "best":
            step = max(steps, key=lambda s: (_improved_at(_metrics(folder / str(s))), s))
        with ocp.Checkpointer(ocp.JsonCheckpointHandler()) as reader:
            about = reader.restore(folder / str(step) / "about")
        _check_version(folder / str(step), about)
        params = _read_arrays(folder / str(step) / "params", mesh)
        model_state = _read_arrays(folder / str(step) / "rest", mesh) if (folder / str(step) / "rest").exists() else {}
    except UserError:  # among them a request to stop
        raise
    except Exception as error:  # Orbax raises many kinds for a damaged file; all mean: not readable
        raise DataError(f"{folder}/{step}: checkpoint cannot be read ({first_line(error)})") from error
    return Trained(folder, params, model_state, about, step)


def read_record(folder: Path, step: int | None = None) -> dict:
    """Where the run was when a checkpoint was written, and its epochs so far: JSON, {} where that cannot be read.

    Args:
      folder: of the checkpoints.
      step: of the checkpoint; None: the newest whose record can be read.
    """
    folder = Path(folder).resolve()
    for number in reversed(_steps(folder)) if step is None else (step,):
        with contextlib.suppress(Exception):  # Orbax raises many kinds for a damaged file
            with ocp.Checkpointer(ocp.JsonCheckpointHandler()) as reader:
                record = reader.restore(folder / str(number) / "progress")
            if isinstance(record, dict):
                return record
    return {}


def network_of(trained: Trained) -> nnx.Module:
    """The network that a checkpoint describes, with shapes in place of weights.

    Raises:
      DataError: there is no such network, or the checkpoint's weights are not its; one line with up to 20 of the
        differences.
    """
    where = trained.folder / str(trained.step)
    try:
        config, scheme = trained.about["config"], trained.about["label_scheme"]
        arguments = {**config["model"], "num_classes": len(scheme["class_names"]), "dtype": config["dtype"]}
        # Shapes alone: a damaged file may ask for a network of any size.
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
            f"{where}: the weights are not those of the network that the checkpoint describes "
            f"({config['model']['name']}, {len(scheme['class_names'])} classes); {len(lines)} of the arrays: "
            f"{'; '.join(lines[:_LISTED])}{more}"
        )
    return model


def load_model(folder: Path, which: str = "best") -> tuple[nnx.Module, dict]:
    """The trained network itself, in evaluation mode, on this process's first device.

    Args:
      folder: of the checkpoints (`<workdir>/checkpoints`).
      which: "best" (lowest validation loss) or "latest".

    Returns:
      The model, and what its checkpoint says of itself: `config`, `label_scheme`, `pretrained` and more.

    Raises:
      DataError: as `load_trained`.
    """
    trained = load_trained(folder, make_mesh(jax.local_devices()[:1]), which)
    model = network_of(trained)
    _, params, model_state = nnx.split(model, nnx.Param, ...)
    nnx.replace_by_pure_dict(params, trained.params)
    nnx.replace_by_pure_dict(model_state, trained.model_state)
    nnx.update(model, params, model_state)
    return model, trained.about


def _steps(folder: Path) -> list[int]:
    """Steps that have a folder, ascending. Not through a manager: it would also read the checkpoints and fail for one
    of them that is damaged."""
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdecimal())


def _shapes(tree: dict) -> dict[str, str]:
    """Shape and type of each array, by its place in the tree."""
    leaves = jax.tree.leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): f"{x.dtype}{list(x.shape)}" for path, x in leaves}


def _set_damaged_aside(folder: Path) -> None:
    """Renames checkpoints whose record of the metric is damaged: Orbax would refuse the whole folder for one of them."""
    for step in [path for path in folder.iterdir() if path.name.isdecimal()]:
        try:
            _metrics(step)
        except (ValueError, OSError):
            _set_aside(step)


def _set_aside(step: Path) -> None:
    aside = step.with_name(f"damaged-{time.time_ns()}-{step.name}")
    log.warning("%s: checkpoint is damaged, set aside as %s", step, aside.name)
    step.rename(aside)


def _check_version(step: Path, about: dict) -> None:
    version = about.get("format_version")
    if version != FORMAT_VERSION:
        remedy = "update bcss_jax" if not isinstance(version, int) or version > FORMAT_VERSION else "train again"
        raise DataError(f"{step}: checkpoint format {version}, this program reads {FORMAT_VERSION}; {remedy}")


def _read_arrays(folder: Path, mesh: jax.sharding.Mesh) -> dict:
    """A saved tree of arrays, in the shapes and types that it was saved in."""
    with ocp.StandardCheckpointer() as reader:
        saved = reader.metadata(folder).item_metadata.tree
        target = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=replicated(mesh)), saved)
        # Modules in lists have numbers for names; the files hold text.
        return nnx.restore_int_paths(reader.restore(folder, target))


@jax.jit
def _copy(tree):
    return jax.tree.map(jnp.copy, tree)


def _array_items(state: TrainState) -> dict:
    """The state as separate items, for evaluation to read some of them. Orbax does not take an empty one."""
    optimizer = {"step": state.step, "opt_state": state.opt_state, "schedule": state.schedule}
    items = {"params": state.params, "rest": state.model_state, "optimizer": optimizer}
    return {name: tree for name, tree in items.items() if jax.tree.leaves(tree)}


def _metrics(step_folder: Path) -> dict:
    return json.loads((step_folder / "metrics" / "metrics").read_text())


def _improved_at(metrics: dict) -> float:
    return float(metrics.get("improved_at", -1))
