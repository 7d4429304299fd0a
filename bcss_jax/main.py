"""Trains a system: `python -m bcss_jax.main --config=configs/unet.py [--workdir=runs/unet]`.

The same command resumes a run that was interrupted. Exit codes: 0 done, 2 settings, 3 data, 4 numbers, 5 storage,
75 stopped on request (run the same command again).
"""

import contextlib
import json
import logging
import os
import sys
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")

import jax
from absl import flags
from ml_collections import config_flags

from bcss_jax import workdir as workdirs
from bcss_jax.config import default, field_names, unknown_field, validate
from bcss_jax.errors import ConfigError, Preempted, UserError

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Settings, such as configs/unet.py or configs/unet.py:kaggle224."
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run; runs/<config name> if not given.")
_FRESH = flags.DEFINE_bool("fresh", False, "Delete what the folder holds of an earlier run, and start over.")
_DEBUG = flags.DEFINE_bool("debug", False, "Show the traceback of errors.")
_DISTRIBUTED = flags.DEFINE_bool(
    "distributed", False, "One of several processes; SLURM, GKE and Cloud TPU are detected."
)
_COORDINATOR = flags.DEFINE_string("coordinator", None, "host:port of process 0, where it is not detected.")
_PROCESSES = flags.DEFINE_integer("processes", None, "Number of processes, where it is not detected.")
_PROCESS = flags.DEFINE_integer("process", None, "Number of this process, from 0, where it is not detected.")


def main() -> int:
    """Parses the command line and trains. Returns the exit code."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    logging.getLogger("bcss_jax").setLevel(logging.INFO)
    logging.getLogger("absl").setLevel(logging.ERROR)
    try:
        _parse()
        return _run()
    except UserError as error:
        if "--debug" in sys.argv:
            raise
        print(f"{'note' if isinstance(error, Preempted) else 'error'}: {error}", file=sys.stderr, flush=True)
        return error.exit_code


def _parse() -> None:
    """Reads the command line (ml_collections reads sys.argv as well, so no other can be given).

    Raises:
      ConfigError: one line on whatever is wrong with it.
    """
    try:
        rest = flags.FLAGS(sys.argv)[1:]
        missing = _CONFIG.value is None
        missing or _CONFIG.value.to_dict()  # a file that could not be read shows only when it is used
    except OSError as error:
        given = [a[len("--config=") :].split(":")[0] for a in sys.argv if a.startswith("--config=")]
        raise ConfigError(f"{given[-1]}: no such config file; try --config=configs/unet.py") from error
    except flags.UnrecognizedFlagError as error:
        if error.flagname.startswith("config.") and not any(a.startswith("--config=") for a in sys.argv):
            raise ConfigError("--config is missing; try --config=configs/unet.py") from error
        raise ConfigError(f"--{error.flagname}: no such option; see --help") from error
    except flags.Error as error:
        raise ConfigError(_one_line(error)) from error
    except AttributeError as error:  # a setting that does not exist
        known = default()
        given = [a[len("--config.") :].split("=")[0] for a in sys.argv if a.startswith("--config.")]
        unknown = [field for field in given if field not in field_names(known)]
        raise ConfigError(unknown_field(known, unknown[0]) if unknown else _one_line(error)) from error
    except Exception as error:  # whatever the config file, a Python program, does
        raise ConfigError(f"the config file cannot be used: {type(error).__name__}: {_one_line(error)}") from error
    if rest:
        raise ConfigError(f"{rest[0]}: options start with --; see --help")
    if missing:
        raise ConfigError("--config is missing; try --config=configs/unet.py")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _run() -> int:
    config = _CONFIG.value
    validate(config)
    if _DISTRIBUTED.value or _COORDINATOR.value:
        jax.distributed.initialize(_COORDINATOR.value, _PROCESSES.value, _PROCESS.value)
    workdir = Path(_WORKDIR.value or f"runs/{config.name}")
    with workdirs.locked(workdir) if jax.process_index() == 0 else contextlib.nullcontext():
        if jax.process_index() == 0:
            workdirs.claim(workdir, json.loads(config.to_json()), _FRESH.value)
        # Here, because importing TensorFlow takes seconds that a typo in the command line should not cost.
        import tensorflow as tf

        tf.config.set_visible_devices([], "GPU")
        from bcss_jax.train import train

        train(config, workdir)
    return 0


if __name__ == "__main__":
    sys.exit(main())
