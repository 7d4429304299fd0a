"""What all commands share: parsing options, logging, and turning errors into exit codes."""

import argparse
import contextlib
import errno
import io
import logging
import os
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

from bcss_jax.common import interruption
from bcss_jax.common.device_memory import is_out_of_memory
from bcss_jax.common.interruption import Interruption
from bcss_jax.errors import (
    ConfigError,
    DataError,
    Preempted,
    StorageError,
    UserError,
    first_line,
    in_flags_of_command,
    one_line,
    printable,
)

TRAINING_MODULES = ("albumentations", "clu", "tensorboard", "tensorflow", "tensorflow_datasets")  # of the extra `train`
UNWRITABLE = (errno.EPIPE, errno.ENOSPC, errno.EDQUOT, errno.EIO)  # how writing to standard output fails


class OneLineParser(argparse.ArgumentParser):
    """A parser that raises ConfigError with one line, instead of printing the usage."""

    def error(self, message: str) -> NoReturn:
        """Raises ConfigError."""
        message = re.sub(r"^argument (--\S+): =", r"\1=", message)  # of `Range.parse`
        raise ConfigError(f"{printable(message)}; see --help")


def parser(command: str, doc: str | None, usage: str | None = None) -> argparse.ArgumentParser:
    """Returns a `OneLineParser` without options whose help text is the docstring of the command's module.

    Args:
      command: as it is typed, for example "python -m bcss_jax.segment".
      doc: docstring of the module.
      usage: replaces the usage line that argparse writes.
    """
    return OneLineParser(
        prog=command,
        usage=usage,
        description=doc,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def add_debug(parser: argparse.ArgumentParser) -> None:
    """Adds the option --debug, whose value `run` takes."""
    parser.add_argument("--debug", action="store_true", help="show the traceback of errors")


def comma_separated_paths(text: str) -> list[Path]:
    """Returns the paths that commas separate: the `type` of an option."""
    return [Path(path) for path in text.split(",") if path]


def log_progress() -> None:
    """Logs the progress of this package, and nothing of the libraries of JAX, which raise what they log as errors."""
    logging.getLogger("bcss_jax").setLevel(logging.INFO)
    for name in ("absl", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


def run(action: Callable[[], Any], *, debug: bool = False, flags: Mapping[str, str] | None = None) -> int:
    """Runs a command.

    Args:
      action: the command.
      debug: raise errors, so that their traceback is shown.
      flags: flag of training -> flag of the command, for messages (see `errors.in_flags_of_command`).

    Returns:
      The exit code: 0, or the code of a UserError or of Preempted, whose message is printed to stderr in one line.
    """
    return run_interruptible(lambda interruption: action(), debug=debug, flags=flags)


def run_interruptible(
    action: Callable[[Interruption], Any], *, debug: bool = False, flags: Mapping[str, str] | None = None
) -> int:
    """Runs a command like `run`, and passes it the `Interruption` that is active while it runs."""
    try:
        with Interruption() as active:
            active.begin()
            action(active)
    except Exception as error:
        known = as_user_error(error)
        if debug or known is None:
            raise
        return report(known, flags)
    except Preempted as error:
        return report(error, flags)
    return 0


def as_user_error(error: Exception) -> UserError | None:
    """Returns an error that the user can correct as such; None for others, which are faults of the program."""
    if isinstance(error, UserError):
        return error
    if isinstance(error, ModuleNotFoundError) and (error.name or "").partition(".")[0] in TRAINING_MODULES:
        return ConfigError(
            f"{error.name} is not installed: reading and training on data sets needs more than the package alone; "
            'python -m pip install "bcss_jax[train]"'
        )
    if is_out_of_memory(error):
        return StorageError(f"out of memory ({first_line(error)}); use a machine with more memory, or smaller settings")
    if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
        return DataError(f"{printable(error.filename or 'a file')}: {error.strerror}; use shorter names")
    return None


def report(error: UserError | Preempted, flags: Mapping[str, str] | None = None) -> int:
    """Prints an error to stderr as one line and returns its exit code.

    Args:
      error: the error, or the note that the command was stopped.
      flags: as in `run`.
    """
    kind = "note" if isinstance(error, Preempted) else "error"
    with contextlib.suppress(OSError):  # the terminal is gone, and with it whoever could read this
        print(f"{kind}: {one_line(in_flags_of_command(str(error), flags or {}))}", file=sys.stderr, flush=True)
    return error.exit_code


def start(main: Callable[[], int]) -> NoReturn:
    """Runs a command's main function with warnings on stderr, and ends the process with its exit code.

    Standard output that nobody reads (as after `| head`), or whose disk is full, ends it with the code of StorageError.
    """
    # `force`, because Orbax sets up logging when it is imported.
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s", force=True)
    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)  # it says once that it lists the fonts
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # as stderr: a name need not be UTF-8
    try:
        code = main()
        sys.stdout.flush()
    except OSError as error:
        if error.errno not in UNWRITABLE or error.filename is not None:
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # otherwise the interpreter tries to flush it again at its end
        code = report(StorageError(f"standard output: cannot be written ({error.strerror}); check where it goes"))
    interruption.end_with(code)
    sys.exit(code)
