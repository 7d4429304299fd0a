"""Compiles the training step while the data are prepared."""

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from bcss_jax.training.sharding import split_over_data


@contextlib.contextmanager
def compiled_meanwhile(step: Callable, state: Any, image_shape: tuple[int, int, int], mesh: Any) -> Iterator[None]:
    """Compiles a training step in another thread; the end of the block waits for it.

    The result reaches the training through JAX's compilation cache, so nothing is done without one.

    Args:
      step: a function of `jax.jit`, `(state, images, labels) -> ...`.
      state: its first argument.
      image_shape: (batch, height, width) of its other arguments.
      mesh: that the batch is divided over.
    """
    settings: Any = jax.config
    if not (settings.jax_compilation_cache_dir and settings.jax_enable_compilation_cache and hasattr(step, "lower")):
        yield
        return
    sharding = split_over_data(mesh)
    images = jax.ShapeDtypeStruct((*image_shape, 3), np.uint8, sharding=sharding)
    labels = jax.ShapeDtypeStruct(image_shape, np.uint8, sharding=sharding)

    def compile_step():
        with contextlib.suppress(Exception):  # the training meets the same error, and reports it
            step.lower(state, images, labels).compile()

    thread = threading.Thread(target=compile_step, name="compile ahead")
    thread.start()
    yield
    thread.join()
