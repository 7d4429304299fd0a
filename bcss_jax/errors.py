"""Errors that a user can act on: one line of text and the process's exit code.

Entry points print the message without a traceback (`--debug` shows it) and exit with `exit_code`.
"""

import os
import re
from collections.abc import Mapping


class UserError(Exception):
    """Base of all errors that are the caller's to mend. The message is one line and says what to do."""

    exit_code = 1


class ConfigError(UserError):
    """A configuration value or combination that cannot work."""

    exit_code = 2


class DataError(UserError):
    """An input file or data set that is not what it should be: names the file, expected, found, remedy."""

    exit_code = 3


class NumericalError(UserError):
    """Training produced non-finite numbers too often."""

    exit_code = 4


class StorageError(UserError):
    """A file could not be written: no space, no permission, or somebody else holds it."""

    exit_code = 5


class InUseError(StorageError):
    """Another process is at work in a folder."""


class PartialError(UserError):
    """Some of several inputs failed, each for its own reason, which is written down; the others are done."""

    exit_code = 6


class Preempted(UserError):
    """The run was asked to stop, has saved, and goes on when the same command is run again."""

    exit_code = 75  # os.EX_TEMPFAIL


def in_flags_of_command(message: str, flags: Mapping[str, str]) -> str:
    """A message of the layers below, which name the flags of training, for another command.

    Args:
      message: such as "...; choose another --config.data.prepared_dir".
      flags: of training -> of the command; others stay.
    """
    return re.sub(r"--config\.[a-z_.]*[a-z_]", lambda found: flags.get(found[0], found[0]), message)


def first_line(error: BaseException) -> str:
    """What an error of a library says, cut to one short line without colors."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).strip()
    return text.splitlines()[0][:200] if text else type(error).__name__


def printable(path: str | os.PathLike) -> str:
    """The path for a message of one line: line breaks and bytes that are no UTF-8 are escaped."""
    text = os.fspath(path)
    return text if text.isprintable() else ascii(text)
