"""Calls functions in forks of this process, so that a crash or a hang is seen and harms nothing."""

import json
import os
import signal
import time
import traceback
from collections.abc import Callable, Sequence
from typing import NamedTuple

from bcss_jax.errors import UserError


class Returned(NamedTuple):
    """How a call ended.

    Attributes:
      code: exit code that the command would have: 0, or the code of a UserError; 1 for any other error; negative: the
        number of the signal that ended the process.
      line: the error's message, or "".
      value: what the function returned, as JSON.
      seconds: that it took.
    """

    code: int
    line: str
    value: object
    seconds: float


def call_all(calls: Sequence[Callable[[], object]], limit: float = 30.0) -> list[Returned]:
    """Calls functions one after the other in one fork; after a crash or a hang, the rest in another.

    Args:
      calls: functions that return JSON.
      limit: seconds after which a call counts as hanging, which ends it with SIGALRM.
    """
    ended: list[Returned] = []
    while len(ended) < len(calls):
        reader, writer = os.pipe()
        child = os.fork()
        if not child:
            os.close(reader)
            _call_in_child(calls[len(ended) :], writer, limit)
        os.close(writer)
        began = time.monotonic()
        with open(reader) as file:
            for line in file:
                ended.append(Returned(*json.loads(line)))
                began = time.monotonic()
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if len(ended) < len(calls):
            ended.append(Returned(status, "", None, time.monotonic() - began))
    return ended


def _call_in_child(calls: Sequence[Callable[[], object]], writer: int, limit: float) -> None:
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    with open(writer, "w") as file:
        for call in calls:
            signal.setitimer(signal.ITIMER_REAL, limit)
            began, code, line, value = time.monotonic(), 0, "", None
            try:
                value = call()
            except UserError as error:
                code, line = error.exit_code, str(error)
            except Exception:
                code, line = 1, traceback.format_exc()
            file.write(json.dumps([code, line, value, time.monotonic() - began]) + "\n")
            file.flush()
    os._exit(0)


def fault_of(returned: Returned) -> str:
    """Returns what is wrong with the way a reader ended, or ""."""
    if returned.code == -signal.SIGALRM:
        return "hangs"
    if returned.code < 0:
        return f"crashes with signal {-returned.code}"
    if returned.code == 1:
        return f"shows a traceback: {returned.line.strip().splitlines()[-1][:200]}"
    if returned.code and ("\n" in returned.line or not returned.line.strip()):
        return f"prints more than one line: {returned.line[:200]!r}"
    return ""
