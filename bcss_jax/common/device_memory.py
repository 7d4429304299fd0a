"""Turns running out of memory, of the device or of the machine, into an error of one line."""

import contextlib
import errno
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from bcss_jax.errors import StorageError, UserError, first_line

# The words of XLA and its allocators, CUDA, cuDNN, C++, TensorFlow and OpenCV. XLA:CPU reports a failed allocation in
# the middle of a program as an error of dispatching.
_WORDS = re.compile(
    r"RESOURCE_EXHAUSTED|out of memory|OUT_OF_MEMORY|OutOfMemory|bad_alloc|insufficient memory"
    r"|(failed|unable|cannot|could not) (to )?allocate|ALLOC_FAILED|INTERNAL: Error dispatching",
    re.IGNORECASE,
)


def is_out_of_memory(error: BaseException) -> bool:
    """Returns whether an error, of whatever library, says that memory did not suffice."""
    if isinstance(error, UserError):
        return False
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return True
    return isinstance(error, Exception) and _WORDS.search(str(error)) is not None


def usable_memory(devices: Sequence[Any]) -> float | None:
    """Returns the bytes that a program may take of the smallest device; None if a device does not say it, as CPUs.

    Args:
      devices: of JAX; those of other processes do not say it and are taken to be like those of this one.
    """
    import jax  # here, so that commands that compute nothing start without it

    own = [device for device in devices if device.process_index == jax.process_index()]
    limits = [(device.memory_stats() or {}).get("bytes_limit") or 0 for device in own]
    return float(min(limits, default=0)) or None


@contextlib.contextmanager
def out_of_memory_errors(what: str, remedy: Callable[[], str]) -> Iterator[None]:
    """Raises a StorageError if the block runs out of memory.

    Args:
      what: was to be held in memory, for example "a batch of 8 images".
      remedy: returns what the user can try, for example "a smaller --batch_size".
    """
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise StorageError(f"{what}: does not fit into memory ({first_line(error)}); try {remedy()}") from error
