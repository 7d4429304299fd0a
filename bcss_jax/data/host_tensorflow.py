"""TensorFlow for reading data on the host. The GPUs are hidden from it, because it would take their memory from JAX.

Import this module before any other that imports TensorFlow, so that TensorFlow starts without its messages.
"""

import contextlib
import os
import re
import sys
import tempfile
from collections.abc import Iterator

# Lines that TensorFlow writes while it is imported, before it could be told which ones are wanted: absl's log format
# for information and warnings, and absl's own note that it is not set up yet.
_NOISE = re.compile(
    rb"WARNING: All log messages before absl::InitializeLog|[IW]\d{4} \d\d:\d\d:|\d{4}-\d\d-\d\d .*: [IW] "
)


@contextlib.contextmanager
def _without_noise() -> Iterator[None]:
    """Drops TensorFlow's messages from file descriptor 2 within the block; all else is written when the block ends."""
    sys.stderr.flush()
    with tempfile.TemporaryFile() as held, os.fdopen(os.dup(2), "wb") as stderr:
        os.dup2(held.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(stderr.fileno(), 2)
            held.seek(0)
            stderr.writelines(line for line in held if not _NOISE.match(line))


with _without_noise():
    import tensorflow as tf

tf.config.set_visible_devices([], "GPU")

__all__ = ["tf"]
