"""`bcss_jax.pretrain`: pretrains a vision transformer on images without labels, or resumes its run."""

import contextlib
import json
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from bcss_jax.api.arguments import PathLike, user_errors
from bcss_jax.api.training import HOURS
from bcss_jax.common import files
from bcss_jax.common.device_memory import out_of_memory_errors
from bcss_jax.common.interruption import Interruption
from bcss_jax.common.outputs.distinct_paths import refuse_inputs
from bcss_jax.common.processes import in_main_process
from bcss_jax.errors import ConfigError
from bcss_jax.pretraining.build import split_by_commas
from bcss_jax.pretraining.config import METHOD, validate
from bcss_jax.pretraining.loop import ENCODER
from bcss_jax.pretraining.loop import pretrain as pretrain_run
from bcss_jax.training import workdir as workdirs


def pretrain(
    config: ConfigDict, workdir: PathLike | None = None, *, fresh: bool = False, hours: float | None = None
) -> Path:
    """Pretrains a vision transformer on images without labels, or resumes its run.

    Args:
      config: the settings, as `bcss_jax.load_config("dino:tiles")` returns them.
      workdir: folder of the run, by default runs/<config.name>.
      fresh: delete what an earlier run left in the folder, and start over.
      hours: after this time the run is saved and `Preempted` raised; the same call goes on from there.

    Returns:
      The encoder, a file of safetensors.

    Raises:
      ConfigError: the settings cannot work together, or the folder holds a run of other settings.
      DataError: the images cannot be used.
      NumericalError: there were non-finite numbers too often, or all images look alike to the network.
      StorageError: the run cannot be written, another process trains it, or there is not enough memory.
      Preempted: the time is over, or the process was asked to stop; the run is saved.
    """
    if hours is not None and hours not in HOURS:
        raise ConfigError(f"--hours={hours}: must be {HOURS}")
    with user_errors(), contextlib.ExitStack() as locks:
        config = config.copy_and_resolve_references()
        check_config(config)
        folder = Path(workdir or f"runs/{config.name}")
        in_main_process(lambda: _claim(folder, config, fresh, locks))
        with out_of_memory_errors(
            f"a batch in {config.micro_batches} micro-batch(es)",
            lambda: "more --config.micro_batches, or a smaller --config.batch_size in a new run",
        ):
            pretrain_run(config, folder, Interruption(None if hours is None else hours * 3600))
    return folder / ENCODER


def check_config(config: Any) -> None:
    """Raises ConfigError if a setting, or a combination of settings, cannot work."""
    if config.get("method") != METHOD:
        raise ConfigError(
            f"config.method: expected the settings of a pretraining, found those of {config.name}; use "
            "--config=configs/dino.py, or python -m bcss_jax.main for a segmentation"
        )
    validate(config)


def _claim(workdir: Path, config: Any, fresh: bool, locks: contextlib.ExitStack) -> None:
    """Locks the folder of the run and claims it for the config."""
    folders = [("--config.data.dir", Path(part).expanduser()) for part in split_by_commas(config.data.dir)]
    if config.labeled.dir:
        folders.append(("--config.labeled.dir", Path(config.labeled.dir).expanduser()))
    inputs = [
        (f"--config.{name}", Path(path).expanduser())
        for name, path in (("pretrained", config.pretrained), ("data.list", config.data.list))
        if path
    ]
    parts = workdirs.written_parts(workdir)
    refuse_inputs("--workdir", workdir, [*inputs, *folders], parts=parts)
    locks.enter_context(files.locked(workdir))
    with files.storage_errors(workdir), files.wait_for_lock(workdir / "claim"):
        workdirs.claim(workdir, json.loads(config.to_json()), fresh)
