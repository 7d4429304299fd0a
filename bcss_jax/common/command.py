"""What the commands have in common: how they parse, what they log, and how errors end them."""

import argparse
import logging
import sys
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from bcss_jax.errors import ConfigError, Preempted, UserError, in_flags_of_command


class OneLineParser(argparse.ArgumentParser):
    """Says what is wrong in one line, without the usage: raises ConfigError."""

    def error(self, message: str) -> NoReturn:
        """Raises ConfigError."""
        raise ConfigError(f"{message}; see --help")


def parser(
    command: str,
    doc: str | None,
    kind: type[argparse.ArgumentParser] = argparse.ArgumentParser,
    usage: str | None = None,
) -> argparse.ArgumentParser:
    """A parser without options, whose help is the docstring of the command's module.

    Args:
      command: as it is typed, such as "python -m bcss_jax.segment".
      doc: of the module.
      kind: `OneLineParser`, or argparse's own, which ends the process when something is wrong.
      usage: if not what argparse would write.
    """
    return kind(
        prog=command,
        usage=usage,
        description=doc,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def add_debug(parser: argparse.ArgumentParser) -> None:
    """Adds --debug, which `run` is to be given."""
    parser.add_argument("--debug", action="store_true", help="show the traceback of errors")


def log_progress() -> None:
    """Lets this package say how it gets on, and JAX's libraries only what went wrong."""
    logging.getLogger("bcss_jax").setLevel(logging.INFO)
    logging.getLogger("absl").setLevel(logging.ERROR)


def run(action: Callable[[], Any], *, debug: bool = False, flags: Mapping[str, str] | None = None) -> int:
    """Runs a command.

    Args:
      action: does it.
      debug: let errors through, so that their traceback shows.
      flags: of training -> of the command, in messages (`errors.in_flags_of_command`).

    Returns:
      The exit code: 0, or that of the UserError, whose message is then on stderr in one line.
    """
    try:
        action()
    except UserError as error:
        if debug:
            raise
        return report(error, flags)
    return 0


def run_interruptible(
    action: Callable[[Any], Any], *, debug: bool = False, flags: Mapping[str, str] | None = None
) -> int:
    """Like `run`; the action is given the `Interruption` that it runs within."""
    from bcss_jax.common.interruption import Interruption  # here, because it imports JAX, which not every command needs

    def interruptible():
        with Interruption() as interruption:
            action(interruption)

    return run(interruptible, debug=debug, flags=flags)


def report(error: UserError, flags: Mapping[str, str] | None = None) -> int:
    """Prints an error to stderr as one line. Returns its exit code.

    Args:
      error: being asked to stop is a note.
      flags: as of `run`.
    """
    kind = "note" if isinstance(error, Preempted) else "error"
    print(f"{kind}: {in_flags_of_command(str(error), flags or {})}", file=sys.stderr, flush=True)
    return error.exit_code


def start(main: Callable[[], int]) -> NoReturn:
    """Runs a command's main as this process, with warnings on stderr, and ends the process."""
    # By force: Orbax sets up logging in its own way when it is imported.
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s", force=True)
    sys.exit(main())
