"""Several processes that run one job: which of them prints and writes."""

import jax


def is_main_process() -> bool:
    """Returns whether this is the process that prints and writes the reports: process 0."""
    return jax.process_index() == 0


def print_main(line: str) -> None:
    """Prints a line in the main process alone."""
    if is_main_process():
        print(line, flush=True)
