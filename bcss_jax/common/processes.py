"""Several processes that run one job: which of them prints and writes."""

from collections.abc import Callable

import jax
import numpy as np
from jax.experimental import multihost_utils

from bcss_jax.errors import Preempted, UserError


def is_main_process() -> bool:
    """Returns whether this is the process that prints and writes the reports: process 0."""
    return jax.process_index() == 0


def print_main(line: str) -> None:
    """Prints a line in the main process alone."""
    if is_main_process():
        print(line, flush=True)


def in_main_process(action: Callable[[], None]) -> None:
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
