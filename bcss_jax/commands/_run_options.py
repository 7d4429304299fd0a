"""The options of the commands that train: a config file with its settings, the folder of the run, several processes."""

import itertools
import re
import runpy
import sys
from collections.abc import Callable
from typing import Any

import jax
from absl import flags
from ml_collections import ConfigDict, config_flags

from bcss_jax.common import command
from bcss_jax.common.interruption import Interruption, act_together
from bcss_jax.common.regular_file import check_regular_file
from bcss_jax.config import default, field_names, unknown_field
from bcss_jax.config_file import find_config_file
from bcss_jax.errors import ConfigError

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Settings, such as configs/unet.py or configs/unet.py:kaggle224."
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run; runs/<config name> if not given.")
_FRESH = flags.DEFINE_bool("fresh", False, "Delete what an earlier run left in the folder, and start over.")
_HOURS = flags.DEFINE_float(
    "hours", None, "Save and stop after this time, with exit code 75; the same command goes on.", lower_bound=0
)
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


def main(doc: str | None, settings: str, example: str, train: Callable[..., Any], check: Callable[[Any], Any]) -> int:
    """Parses the command line and trains. Returns the exit code.

    Args:
      doc: what --help prints before the options.
      settings: file that describes the settings.
      example: a config file, for messages.
      train: `(config, workdir, fresh=, hours=)`.
      check: completes and checks a config; raises ConfigError.
    """
    command.log_progress()
    if {"--help", "-h"} & set(sys.argv[1:]):
        options = flags.FLAGS.module_help(sys.modules[__name__])
        print(f"{doc}\n{options}\nSettings (--config.NAME=VALUE): {settings}")
        return 0

    def parse_and_train(interruption: Interruption) -> None:
        _parse(example)
        config: Any = _CONFIG.value
        check(config)
        _join_processes(interruption)
        train(config, _WORKDIR.value, fresh=_FRESH.value, hours=_HOURS.value)

    debug = bool({"--debug", "--debug=true", "--debug=1"} & {argument.lower() for argument in sys.argv[1:]})
    return command.run_interruptible(parse_and_train, debug=debug)


def _parse(example: str) -> None:
    """Parses sys.argv, which ml_collections reads as well.

    Raises:
      ConfigError: one line that says what is wrong with the command line.
    """
    _replace_config_names()
    for given in filter(None, _given("config")):
        check_regular_file(given.partition(":")[0], "a config file", f"try --config={example}", error_type=ConfigError)
    try:
        positional = flags.FLAGS(sys.argv)[1:]
        missing = _CONFIG.value is None
        if not missing:
            _CONFIG.value.to_dict()  # raises if the file could not be read
    except flags.UnrecognizedFlagError as error:
        flags.FLAGS.mark_as_parsed()
        if error.flagname.startswith("config.") and not _given("config"):
            raise ConfigError(f"--config is missing; try --config={example}") from error
        raise ConfigError(f"--{error.flagname}: no such option; see --help") from error
    except Exception as error:
        flags.FLAGS.mark_as_parsed()
        raise ConfigError(_describe(error)) from error
    if positional:
        raise ConfigError(f"{positional[0]}: options start with --; see --help")
    if missing:
        raise ConfigError(f"--config is missing; try --config={example}")
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
    for argument, following in itertools.zip_longest(sys.argv[1:], sys.argv[2:], fillvalue=""):
        option, equals, value = argument.lstrip("-").partition("=")
        if argument.startswith("--") and (option.startswith(name) if prefix else option == name):
            found.append(option if prefix else value if equals else following)
    return found


def _join_processes(interruption: Interruption) -> None:
    """Joins the other processes of the run, if there are any."""
    if not (_DISTRIBUTED.value or _COORDINATOR.value):
        return
    try:
        jax.distributed.initialize(_COORDINATOR.value, _PROCESSES.value, _PROCESS.value)
    except (RuntimeError, ValueError) as error:
        raise ConfigError(f"cannot join the other processes: {' '.join(str(error).split())[:300]}") from error
    interruption.begin()  # JAX has installed a handler of its own
    if jax.process_count() > 1:
        act_together()
