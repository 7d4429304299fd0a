"""Trains a system: `python -m bcss_jax.main --config=configs/unet.py [--workdir=runs/unet]`.

The same command resumes a run that was interrupted. Exit codes: 0 done, 2 settings, 3 data, 4 numbers, 5 storage,
75 stopped on request (run the same command again).
"""

import contextlib
import json
import re
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags
from jax.experimental import multihost_utils
from ml_collections import ConfigDict, config_flags

from bcss_jax.accelerators.remedies import remedy_for_training
from bcss_jax.common import command, files
from bcss_jax.common.device_memory import out_of_memory_errors
from bcss_jax.common.interruption import Interruption, act_together
from bcss_jax.common.outputs.distinct_paths import refuse_inputs
from bcss_jax.common.processes import is_main_process, print_main
from bcss_jax.common.regular_file import check_regular_file
from bcss_jax.config import ALL, default, field_names, set_image_statistics, unknown_field, validate
from bcss_jax.config_file import find_config_file
from bcss_jax.data.discovery import read_folders
from bcss_jax.errors import ConfigError, Preempted, UserError
from bcss_jax.labels import LabelScheme, find_scheme
from bcss_jax.nnunet import config as nnunet_config
from bcss_jax.training import workdir as workdirs

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Settings, such as configs/unet.py or configs/unet.py:kaggle224."
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run; runs/<config name> if not given.")
_FRESH = flags.DEFINE_bool("fresh", False, "Delete what an earlier run left in the folder, and start over.")
flags.DEFINE_bool("debug", False, "Show the traceback of errors.")
_DISTRIBUTED = flags.DEFINE_bool(
    "distributed", False, "Run as one of several processes; SLURM, GKE and Cloud TPU are detected."
)
_COORDINATOR = flags.DEFINE_string("coordinator", None, "host:port of process 0, if it is not detected.")
_PROCESSES = flags.DEFINE_integer(
    "processes", None, "Number of processes, if it is not detected.", lower_bound=1, upper_bound=65536
)
_PROCESS = flags.DEFINE_integer(
    "process", None, "Index of this process, from 0, if it is not detected.", lower_bound=0, upper_bound=65535
)


def main() -> int:
    """Parses the command line and trains. Returns the exit code."""
    command.log_progress()
    if {"--help", "-h"} & set(sys.argv[1:]):
        print(f"{__doc__}\n{flags.FLAGS.module_help(__name__)}\nSettings (--config.NAME=VALUE): bcss_jax/config.py")
        return 0

    def parse_and_train(interruption):
        _parse()
        _run(interruption)

    debug = bool({"--debug", "--debug=true", "--debug=1"} & {argument.lower() for argument in sys.argv[1:]})
    return command.run_interruptible(parse_and_train, debug=debug)


def _parse() -> None:
    """Parses sys.argv, which ml_collections reads as well.

    Raises:
      ConfigError: one line that says what is wrong with the command line.
    """
    _replace_config_names()
    for given in filter(None, _given("config")):
        check_regular_file(
            given.partition(":")[0], "a config file", "try --config=configs/unet.py", error_type=ConfigError
        )
    try:
        positional = flags.FLAGS(sys.argv)[1:]
        missing = _CONFIG.value is None
        if not missing:
            _CONFIG.value.to_dict()  # raises if the file could not be read
    except flags.UnrecognizedFlagError as error:
        flags.FLAGS.mark_as_parsed()
        if error.flagname.startswith("config.") and not _given("config"):
            raise ConfigError("--config is missing; try --config=configs/unet.py") from error
        raise ConfigError(f"--{error.flagname}: no such option; see --help") from error
    except Exception as error:
        flags.FLAGS.mark_as_parsed()
        raise ConfigError(_describe(error)) from error
    if positional:
        raise ConfigError(f"{positional[0]}: options start with --; see --help")
    if missing:
        raise ConfigError("--config is missing; try --config=configs/unet.py")
    if (_PROCESSES.value is not None or _PROCESS.value is not None) and not (_COORDINATOR.value or _DISTRIBUTED.value):
        raise ConfigError(
            "--processes and --process need --coordinator=HOST:PORT of process 0, the same in all processes"
        )


def _describe(error: Exception) -> str:
    """Returns one line for an error of absl, ml_collections, or the config file, which is a Python program."""
    known = _file_settings()
    settings = [name.removeprefix("config.") for name in _given("config.", prefix=True)]
    unknown = [field for field in settings if field not in field_names(known)]
    message = " ".join(str(error).split())
    if isinstance(error, flags.Error):
        return message
    if isinstance(error, AttributeError) and unknown:
        return unknown_field(known, unknown[0])
    return f"the config file cannot be used: {type(error).__name__}: {message}"


def _file_settings() -> ConfigDict:
    """Returns the settings of the config file, without those of the command line; the defaults if it fails."""
    path, _, argument = (_given("config") or [""])[-1].partition(":")
    try:
        return runpy.run_path(path)["get_config"](*[argument] if argument else [])
    except Exception:  # the file may raise anything; the caller reports it
        return default()


def _replace_config_names() -> None:
    """Replaces the name of a config file of the package in sys.argv, because ml_collections reads it there."""
    for i, argument in enumerate(sys.argv):
        if re.match("--?config=", argument):
            option, _, value = argument.partition("=")
            sys.argv[i] = f"{option}={find_config_file(value)}"
        elif i and sys.argv[i - 1] in ("--config", "-config"):
            sys.argv[i] = find_config_file(argument)


def _given(name: str, prefix: bool = False) -> list[str]:
    """Returns the values of an option on the command line, written --name=value or --name value.

    Args:
      name: of the option.
      prefix: return the names of all options that begin with `name` instead.
    """
    found = []
    for argument, following in zip(sys.argv[1:], [*sys.argv[2:], ""], strict=True):
        option, equals, value = argument.lstrip("-").partition("=")
        if argument.startswith("--") and (option.startswith(name) if prefix else option == name):
            found.append(option if prefix else value if equals else following)
    return found


def _run(interruption: Interruption) -> None:
    config: Any = _CONFIG.value
    nnunet = config.get("method") == "nnunet"
    scheme = find_scheme(config.labels)
    if not nnunet:
        set_image_statistics(config)
    (nnunet_config.validate if nnunet else validate)(config, scheme)
    if _DISTRIBUTED.value or _COORDINATOR.value:
        try:
            jax.distributed.initialize(_COORDINATOR.value, _PROCESSES.value, _PROCESS.value)
        except (RuntimeError, ValueError) as error:
            raise ConfigError(f"cannot join the other processes: {' '.join(str(error).split())[:300]}") from error
        interruption.begin()  # JAX has installed a handler of its own
        if jax.process_count() > 1:
            act_together()
    workdir = Path(_WORKDIR.value or f"runs/{config.name}")
    for of_fold, folder in _folds(config, workdir):
        _train(of_fold, folder, scheme, interruption)
    if config.data.get("folds") and config.data.fold == ALL:
        print_main(f"next:      python -m bcss_jax.evaluate --checkpoints={workdir} --output={workdir}_evaluation")


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


def _train(config: Any, workdir: Path, scheme: LabelScheme, interruption: Interruption) -> None:
    """Trains one run in its folder, or resumes it."""
    with contextlib.ExitStack() as locks:
        _in_main_process(lambda: _refuse_inputs(workdir, config))
        _in_main_process(lambda: _claim(workdir, config, scheme, locks))
        # Here, because TensorFlow takes seconds to import, and a mistake on the command line should show at once.
        if config.get("method") == "nnunet":
            from bcss_jax.nnunet.run import run as train
        else:
            from bcss_jax.training.loop import train

        with out_of_memory_errors(
            f"a batch in {config.micro_batches} micro-batch(es)",
            lambda: (
                f"{remedy_for_training(config, jax.devices())}; "
                "python -m bcss_jax.compile_for says before a run what fits"
            ),
        ):
            train(config, workdir, interruption)


def _refuse_inputs(workdir: Path, config: Any) -> None:
    """Raises ConfigError if the run would write, or with --fresh delete, where it reads."""
    given = ("plan",) if _FRESH.value else ()  # without --fresh, the plan of a run stays as it is
    inputs = [(f"--config.{name}", Path(config[name]).expanduser()) for name in given if config.get(name)]
    if config.get("pretrained"):
        inputs.append(("--config.pretrained", Path(config.pretrained).expanduser()))
    if config.data.get("list"):
        inputs.append(("--config.data.list", Path(config.data.list).expanduser()))
    folders = read_folders("--config.data.dir", Path(config.data.dir).expanduser()) if config.data.dir else []
    parts = [path for name in workdirs.OUTPUTS for path in workdir.glob(name)]
    parts += [workdir / name for name in workdirs.OUTPUTS if "*" not in name]
    refuse_inputs("--workdir", workdir, [*inputs, *folders[:1]], parts=parts, data_folders=folders[1:])
    prepared_dir = Path(config.data.prepared_dir).expanduser()
    refuse_inputs("--config.data.prepared_dir", prepared_dir, folders[:1], data_folders=folders[1:])


def _claim(workdir: Path, config: ConfigDict, scheme: LabelScheme, locks: contextlib.ExitStack) -> None:
    """Locks the folder of the run and claims it for the config.

    The folds of nnU-Net may be trained by separate jobs in one folder, so each fold has its own lock.
    """
    folds = config.get("method") == "nnunet"
    if not folds:
        locks.enter_context(files.locked(workdir))
    elif _FRESH.value:  # a fold that another job trains must not be deleted
        for fold in sorted(workdir.glob("fold_*")):
            locks.enter_context(files.locked(fold))
    with files.storage_errors(workdir), files.wait_for_lock(workdir / "claim"):
        settings = json.loads(config.to_json()) | {"label_scheme": scheme.to_json()}
        workdirs.claim(workdir, settings, _FRESH.value)
    if folds:
        if _FRESH.value:
            locks.close()  # the locked folders were deleted
        for name in nnunet_config.fold_names(config):
            locks.enter_context(files.locked(workdir / f"fold_{name}"))


def _in_main_process(action: Callable[[], None]) -> None:
    """Runs `action` in the main process. If it fails or is stopped, all processes end with the same exit code."""
    failure = None
    if is_main_process():
        try:
            action()
        except (UserError, Preempted) as error:
            failure = error
    if jax.process_count() > 1:
        code = multihost_utils.broadcast_one_to_all(np.int32(failure.exit_code if failure else 0))
        if code and not failure:
            failure = UserError("the main process failed; see its message")
            failure.exit_code = int(code)
    if failure:
        raise failure
