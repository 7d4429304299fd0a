"""Errors that the user can correct: one line of text and the exit code of the process.

The commands print the message without a traceback (`--debug` shows it) and exit with `exit_code`.
"""

import os
import re
from collections.abc import Mapping


class UserError(Exception):
    """Base class of all errors that the user can correct. The message is one line and says what to do."""

    exit_code = 1


class ConfigError(UserError):
    """Raised for a setting, or a combination of settings, that cannot work."""

    exit_code = 2


class DataError(UserError):
    """Raised for an unusable input file or data set.

    The message gives the file, what was expected and found, a remedy.
    """

    exit_code = 3


class NumericalError(UserError):
    """Raised when training produced non-finite numbers too often."""

    exit_code = 4


class StorageError(UserError):
    """Raised when a file cannot be written: no space, no permission, or in use by another process."""

    exit_code = 5


class InUseError(StorageError):
    """Raised when another process works in a folder."""


class PartialError(UserError):
    """Raised when some of several inputs failed. The reasons are written to files; the other inputs are done."""

    exit_code = 6


class Preempted(BaseException):
    """Raised when the run was asked to stop and has saved its state. The same command resumes it.

    It is no Exception: code that takes every Exception of a library for a damaged file must not take this for one.
    """

    exit_code = 75  # os.EX_TEMPFAIL


def in_flags_of_command(message: str, flags: Mapping[str, str]) -> str:
    """Returns the message with the flags of training replaced by those of another command.

    Args:
      message: for example "...; choose another --config.data.prepared_dir".
      flags: flag of training -> flag of the command. Other flags stay as they are.
    """
    return re.sub(r"--config\.[a-z_.]*[a-z_]", lambda found: flags.get(found[0], found[0]), message)


def first_line(error: BaseException) -> str:
    """Returns the first line of an error's message, without terminal colors and at most 200 characters long."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).strip()
    return text.splitlines()[0][:200] if text else type(error).__name__


def one_line(message: str) -> str:
    """Returns a message in which everything that cannot be printed, such as a line break in a name, is escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in message)


def printable(path: str | os.PathLike) -> str:
    """Returns the path for a message of one line: line breaks and bytes that are not UTF-8 are escaped."""
    text = os.fspath(path)
    return text if text.isprintable() else ascii(text)
