"""The training step can be compiled in another thread, and reaches the training through the cache."""

import threading

import jax
import numpy as np
import pytest
from jax import monitoring

from bcss_jax.training.sharding import make_mesh, place_batch
from bcss_jax.training.start.compile_ahead import compiled_meanwhile


@pytest.fixture
def compiled():
    """The threads that compiled something, or took it from the cache."""
    threads = []

    def listener(event, seconds, **_):
        if event.endswith("/backend_compile_duration"):
            threads.append(threading.current_thread().name)

    monitoring.register_event_duration_secs_listener(listener)
    yield threads
    monitoring.unregister_event_duration_listener(listener)


def step(state, images, labels):
    images = images.astype(np.float32).mean(-1)
    return state + (images * labels).sum()


def test_the_block_and_the_compiler_run_at_the_same_time(compiled):
    mesh, state = make_mesh(), np.float32(1)
    jitted = jax.jit(step)
    with compiled_meanwhile(jitted, state, (8, 16, 16), mesh):
        pass
    assert compiled == ["compile ahead"]
    batch = {"image": np.ones((8, 16, 16, 3), np.uint8), "label": np.ones((8, 16, 16), np.uint8)}
    placed = place_batch(batch, mesh)
    assert float(jitted(state, placed["image"], placed["label"])) == 1 + 8 * 16 * 16


def test_nothing_is_compiled_ahead_without_a_cache(compiled):
    jax.config.update("jax_enable_compilation_cache", False)
    try:
        with compiled_meanwhile(jax.jit(step), np.float32(1), (8, 16, 16), make_mesh()):
            pass
    finally:
        jax.config.update("jax_enable_compilation_cache", True)
    assert compiled == []


def test_an_error_of_the_compiler_is_left_to_the_training(compiled):
    def wrong(state, images, labels):
        raise ValueError("no step")

    with compiled_meanwhile(jax.jit(wrong), np.float32(1), (8, 16, 16), make_mesh()):
        pass
    assert compiled == []
