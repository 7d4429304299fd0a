"""`bcss_jax.train`: trains a system, or resumes its run."""

import contextlib
import json
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from bcss_jax.accelerators.remedies import remedy_for_training
from bcss_jax.api.arguments import PathLike, user_errors
from bcss_jax.api.run import Run
from bcss_jax.common import files
from bcss_jax.common.device_memory import out_of_memory_errors
from bcss_jax.common.interruption import Interruption
from bcss_jax.common.outputs.distinct_paths import refuse_inputs
from bcss_jax.common.processes import in_main_process, print_main
from bcss_jax.common.ranges import Range
from bcss_jax.config import ALL, set_image_statistics, validate
from bcss_jax.data.discovery import read_folders
from bcss_jax.errors import ConfigError
from bcss_jax.labels import LabelScheme, find_scheme
from bcss_jax.nnunet import config as nnunet_config
from bcss_jax.training import workdir as workdirs
from bcss_jax.tuning import config as tuning_config

HOURS = Range(0, 10_000)


def train(
    config: ConfigDict, workdir: PathLike | None = None, *, fresh: bool = False, hours: float | None = None
) -> Run:
    """Trains a system, or resumes its run, and writes curves, pictures, scores and checkpoints.

    Args:
      config: the settings, as `bcss_jax.load_config` returns them.
      workdir: folder of the run, by default runs/<config.name>; `config.data.folds` makes a folder in it for each fold.
      fresh: delete what an earlier run left in the folder, and start over.
      hours: after this time the run is saved and `Preempted` raised; the same call goes on from there.

    Returns:
      The run.

    Raises:
      ConfigError: the settings cannot work together, or the folder holds a run of other settings.
      DataError: the data set cannot be used.
      NumericalError: training produced non-finite numbers too often.
      StorageError: the run cannot be written, another process trains it, or there is not enough memory.
      Preempted: the time is over, or the process was asked to stop; the run is saved.
    """
    if hours is not None and hours not in HOURS:
        raise ConfigError(f"--hours={hours}: must be {HOURS}")
    with user_errors():
        config = config.copy_and_resolve_references()
        scheme = check_config(config)
        interruption = Interruption(None if hours is None else hours * 3600)
        folder = Path(workdir or f"runs/{config.name}")
        for of_fold, folder_of_fold in _folds(config, folder):
            _train(of_fold, folder_of_fold, fresh, scheme, interruption)
        data: Any = config.data
        if data.get("folds") and data.fold == ALL:
            scored = "--clicks " if config.get("method") == tuning_config.METHOD else ""
            results = f"{folder}_clicks" if scored else f"{folder}_evaluation"
            print_main(f"next:      python -m bcss_jax.evaluate {scored}--checkpoints={folder} --output={results}")
        return Run(folder)


def check_config(config: Any) -> LabelScheme:
    """Completes the settings of a run that depend on others, checks all of them, and returns the label scheme.

    Raises:
      ConfigError: a setting, or a combination of settings, cannot work.
    """
    if config.get("method") == "dino":
        raise ConfigError(
            f"config.method=dino: {config.name} is a pretraining; run it with python -m bcss_jax.pretrain"
        )
    method = config.get("method")
    scheme = find_scheme(config.labels)
    if method != "nnunet":
        set_image_statistics(config)
    by_method = {"nnunet": nnunet_config.validate, tuning_config.METHOD: tuning_config.validate}
    by_method.get(method, validate)(config, scheme)
    return scheme


def _folds(config: Any, workdir: Path) -> list[tuple[Any, Path]]:
    """Returns the config and the folder of each run to train: one, or one for each fold of a cross-validation.

    nnU-Net's method has folds of its own, which it trains in one run.
    """
    if not config.data.get("folds"):
        return [(config, workdir)]
    runs = []
    for fold in range(config.data.folds) if config.data.fold == ALL else [config.data.fold]:
        of_fold = config.copy_and_resolve_references()
        of_fold.data.fold = str(fold)
        runs.append((of_fold, workdir / f"fold_{fold}"))
    return runs


def _train(config: Any, workdir: Path, fresh: bool, scheme: LabelScheme, interruption: Interruption) -> None:
    """Trains one run in its folder, or resumes it."""
    with contextlib.ExitStack() as locks:
        in_main_process(lambda: _refuse_inputs(workdir, config, fresh))
        in_main_process(lambda: _claim(workdir, config, fresh, scheme, locks))
        # Here, because TensorFlow takes seconds to import, and a mistake on the command line should show at once.
        if config.get("method") == "nnunet":
            from bcss_jax.nnunet.run import run as train_run
        elif config.get("method") == tuning_config.METHOD:
            from bcss_jax.tuning.loop import tune as train_run
        else:
            from bcss_jax.training.loop import train as train_run

        with out_of_memory_errors(
            f"a batch in {config.micro_batches} micro-batch(es)",
            lambda: (
                f"{remedy_for_training(config, jax.devices())}; "
                "python -m bcss_jax.compile_for says before a run what fits"
            ),
        ):
            train_run(config, workdir, interruption)


def _refuse_inputs(workdir: Path, config: Any, fresh: bool) -> None:
    """Raises ConfigError if the run would write, or with --fresh delete, where it reads."""
    given = ("plan",) if fresh else ()  # without --fresh, the plan of a run stays as it is
    inputs = [(f"--config.{name}", Path(config[name]).expanduser()) for name in given if config.get(name)]
    if config.get("pretrained"):
        inputs.append(("--config.pretrained", Path(config.pretrained).expanduser()))
    if config.data.get("list"):
        inputs.append(("--config.data.list", Path(config.data.list).expanduser()))
    folders = read_folders("--config.data.dir", Path(config.data.dir).expanduser()) if config.data.dir else []
    parts = workdirs.written_parts(workdir)
    refuse_inputs("--workdir", workdir, [*inputs, *folders[:1]], parts=parts, data_folders=folders[1:])
    prepared_dir = Path(config.data.prepared_dir).expanduser()
    refuse_inputs("--config.data.prepared_dir", prepared_dir, folders[:1], data_folders=folders[1:])


def _claim(workdir: Path, config: ConfigDict, fresh: bool, scheme: LabelScheme, locks: contextlib.ExitStack) -> None:
    """Locks the folder of the run and claims it for the config.

    The folds of nnU-Net may be trained by separate jobs in one folder, so each fold has its own lock.
    """
    folds = config.get("method") == "nnunet"
    if not folds:
        locks.enter_context(files.locked(workdir))
    elif fresh:  # a fold that another job trains must not be deleted
        for fold in sorted(workdir.glob("fold_*")):
            locks.enter_context(files.locked(fold))
    with files.storage_errors(workdir), files.wait_for_lock(workdir / "claim"):
        settings = json.loads(config.to_json()) | {"label_scheme": scheme.to_json()}
        workdirs.claim(workdir, settings, fresh)
    if folds:
        if fresh:
            locks.close()  # the locked folders were deleted
        for name in nnunet_config.fold_names(config):
            locks.enter_context(files.locked(workdir / f"fold_{name}"))
