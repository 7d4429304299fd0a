"""Turns running out of device memory into an error of one line."""

import contextlib
from collections.abc import Iterator

import jax

from bcss_jax.errors import StorageError, first_line


@contextlib.contextmanager
def out_of_memory_errors(what: str, remedy: str) -> Iterator[None]:
    """Raises a StorageError if the block runs out of device memory.

    Args:
      what: was to be held in memory, for example "a batch of 8 images".
      remedy: what the user can try, for example "a smaller --batch_size".
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise StorageError(
            f"{what}: does not fit into the device's memory ({first_line(error)}); try {remedy}"
        ) from error
