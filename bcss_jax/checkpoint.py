"""Checkpoints of a run: the latest and the best, written asynchronously and atomically by Orbax.

A checkpoint holds `params`, `rest` (BatchNorm statistics), `optimizer` (its state, the plateau's and the step),
`progress` (where in the run, history so far; JSON) and `about` (config, label scheme, versions; JSON). Evaluation needs
`params`, `rest` and `about` alone, and no config file. Nothing in it is pickled.
"""

import contextlib
import dataclasses
import logging
from pathlib import Path

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from bcss_jax.errors import DataError, StorageError
from bcss_jax.sharding import replicated
from bcss_jax.step import TrainState

FORMAT_VERSION = 1  # in `about`; raised when older code could not read what newer code writes
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
        options = ocp.CheckpointManagerOptions(preservation_policy=keep, cleanup_tmp_directories=True)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._manager = ocp.CheckpointManager(self.folder, options=options)
        except OSError as error:
            raise StorageError(
                f"{self.folder}: cannot keep checkpoints here ({error.strerror}); choose another --workdir"
            ) from error

    def save(self, state: TrainState, progress: dict, about: dict, improved_at: int | None = None) -> None:
        """Starts saving; training may go on while it is written.

        Args:
          state: copied to the host before this returns.
          progress: JSON.
          about: JSON.
          improved_at: the epoch that just ended with the lowest validation loss so far, else None. The checkpoint with
            the highest is kept as the best.

        Raises:
          StorageError: this save could not start or the one before it failed.
        """
        items = ocp.args.Composite(
            params=ocp.args.StandardSave(state.params),
            rest=ocp.args.StandardSave(state.rest),
            optimizer=ocp.args.StandardSave(_optimizer_item(state)),
            progress=ocp.args.JsonSave(progress),
            about=ocp.args.JsonSave({"format_version": FORMAT_VERSION, **about}),
        )
        metrics = {"improved_at": -1 if improved_at is None else improved_at}
        with self._storage_errors():
            self._manager.save(int(state.step), args=items, metrics=metrics)

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
                f"{self.folder}: checkpoint not saved ({_first_line(error)}); the one before it is kept"
            ) from error

    def steps(self) -> list[int]:
        """Steps that have a complete checkpoint, ascending."""
        return sorted(self._manager.all_steps())

    def restore(self, abstract: TrainState) -> tuple[TrainState, dict, dict] | None:
        """The latest checkpoint that can be read; a damaged one is reported and the one before it taken.

        Args:
          abstract: shapes, dtypes and shardings to restore to (another number of devices than it was saved on is fine).

        Returns:
          (state, progress, about), or None where there is no checkpoint at all.

        Raises:
          DataError: there are checkpoints and none can be read.
        """
        steps = self.steps()
        for step in reversed(steps):
            items = ocp.args.Composite(
                params=ocp.args.StandardRestore(abstract.params),
                rest=ocp.args.StandardRestore(abstract.rest),
                optimizer=ocp.args.StandardRestore(_optimizer_item(abstract)),
                progress=ocp.args.JsonRestore(),
                about=ocp.args.JsonRestore(),
            )
            try:
                got = self._manager.restore(step, args=items)
            except Exception as error:  # Orbax raises many kinds for a damaged file; all mean: not readable
                log.warning("%s: checkpoint cannot be read (%s)", self.folder / str(step), _first_line(error))
                continue
            for newer in steps[steps.index(step) + 1 :]:  # or the run could not save under that step again
                self._manager.delete(newer)
            optimizer = got.optimizer
            state = TrainState(optimizer["step"], got.params, got.rest, optimizer["opt_state"], optimizer["plateau"])
            return state, got.progress, got.about
        if steps:
            raise DataError(f"{self.folder}: none of the checkpoints {steps} can be read; start over with --fresh")
        return None


@dataclasses.dataclass(frozen=True)
class Trained:
    """A model's weights as read from a checkpoint: nested dicts of arrays, and what the checkpoint says of itself."""

    params: dict
    rest: dict
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
    folder = Path(folder).resolve()
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; expected the checkpoints of a run")
    with ocp.CheckpointManager(folder, options=ocp.CheckpointManagerOptions(read_only=True)) as manager:
        steps = sorted(manager.all_steps())
        if not steps:
            raise DataError(f"{folder}: holds no checkpoint; train first, or name the run's checkpoints folder")
        step = steps[-1]
        try:
            if which == "best":
                step = max(steps, key=lambda s: (_improved_at(manager.metrics(s) or {}), s))
            about = manager.restore(step, args=ocp.args.Composite(about=ocp.args.JsonRestore())).about
            version = about.get("format_version")
            if version != FORMAT_VERSION:
                raise DataError(
                    f"{folder}/{step}: checkpoint format {version}, this program reads {FORMAT_VERSION}; update bcss_jax"
                )
            shapes = {name: manager.item_metadata(step)[name] for name in ("params", "rest")}
            arrays = {
                name: ocp.args.StandardRestore(
                    jax.tree.map(
                        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=replicated(mesh)), meta.tree
                    )
                )
                for name, meta in shapes.items()
            }
            got = manager.restore(step, args=ocp.args.Composite(**arrays))
        except DataError:
            raise
        except Exception as error:
            raise DataError(f"{folder}/{step}: checkpoint cannot be read ({_first_line(error)})") from error
    return Trained(got.params, got.rest, about, step)


def _optimizer_item(state: TrainState) -> dict:
    return {"step": state.step, "opt_state": state.opt_state, "plateau": state.plateau}


def _improved_at(metrics: dict) -> float:
    return float(metrics.get("improved_at", -1))


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0][:200] if text else type(error).__name__
