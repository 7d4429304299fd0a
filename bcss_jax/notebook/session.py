"""Training that is longer than a session of the host: each session goes on from the saved output of the last one."""

import contextlib
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from bcss_jax.api.run import Run
from bcss_jax.api.training import train
from bcss_jax.common.files import storage_errors
from bcss_jax.config_file import load_config
from bcss_jax.errors import ConfigError, Preempted, printable
from bcss_jax.notebook.host import Host, folders_below, hours_left, precision
from bcss_jax.training.step_folder import step_numbers

RUNS = "runs"  # folder of all runs in the output
DEPTH = 5  # folders below the inputs: notebooks/OWNER/NAME/runs/RUN


def published_recipe(system: str, layout: str, folder: Path, devices: Sequence[Any]) -> ConfigDict:
    """Returns the published recipe for a data set, in the precision that suits the devices.

    Args:
      system: name of a config of the package, such as "unet" or "transunet".
      layout: of the data set.
      folder: of the data set.
      devices: of JAX.
    """
    dtype = precision(devices)
    if dtype == "float16":  # the recipe for T4s divides a batch into parts that fit their memory, too
        return load_config(f"{system}:{layout},kaggle_t4", {"data.dir": str(folder)})
    return load_config(f"{system}:{layout}", {"data.dir": str(folder), "dtype": dtype})


def train_in_sessions(config: ConfigDict, host: Host, hours: float | None = None) -> Run:
    """Trains a run until it is finished, or until the session has to end; the next session goes on from there.

    A notebook whose cell raises an error counts as failed and its output may be lost, so the end of the time is no
    error here: the returned run says that it is not finished.

    Args:
      config: the settings.
      host: of the notebook; the run is written to runs/<config.name> in its output.
      hours: that may be used; by default what the host leaves.

    Returns:
      The run; `finished` tells whether it is done.

    Raises:
      UserError: as `bcss_jax.train`, except `Preempted`.
    """
    workdir = host.output / RUNS / str(config.name)
    source = restore(workdir, host.inputs)
    if source:
        print(f"going on with the run in {source}", flush=True)
    try:
        train(config, workdir, hours=hours_left(host) if hours is None else hours)
    except Preempted as stopped:
        print(
            f"{stopped}\nThe run is not finished. Save this notebook's output, attach it to the next session, and run "
        )
        print("the same cells again.", flush=True)
    return Run(workdir)


def restore(workdir: Path, inputs: Path | None) -> Path | None:
    """Copies the run that was saved last from the inputs, unless the folder holds the run already.

    Args:
      workdir: folder of the run.
      inputs: folder in which the output of earlier sessions is mounted, for reading only; None if there is none.

    Returns:
      The folder that was copied; None if there was nothing to copy.

    Raises:
      ConfigError: the folder holds the run, but not as far as it is in the inputs.
      StorageError: it cannot be copied.
    """
    if inputs is None or not inputs.is_dir():
        return None
    saved = [
        folder
        for folder in folders_below(inputs, DEPTH, ("checkpoints",))
        if folder.name == workdir.name and folder.parent.name == RUNS and folder.resolve() != workdir.resolve()
    ]
    latest = max(saved, key=_last_step, default=None)
    if latest is None or _last_step(latest) <= _last_step(workdir):
        return None
    if workdir.exists():
        raise ConfigError(
            f"{printable(workdir)}: expected no run, because {printable(latest)} is further; move or delete the folder"
        )
    copy = workdir.with_name(f".{workdir.name}.copy")  # left by a session that ended while it copied
    with storage_errors(workdir):
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(latest, copy, copy_function=shutil.copyfile)  # without the permissions, which allow no writing
        for folder, _, _ in os.walk(copy):
            os.chmod(folder, 0o755)
        os.rename(copy, workdir)
    return latest


def _last_step(folder: Path) -> int:
    """Returns the step of the last checkpoint of a run; -1 if there is none."""
    with contextlib.suppress(OSError):
        return max(step_numbers(folder / "checkpoints"), default=-1)
    return -1
