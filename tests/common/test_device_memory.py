import jax
import pytest

from bcss_jax.common.device_memory import out_of_memory_errors
from bcss_jax.errors import StorageError


def test_too_little_device_memory_is_one_line_with_a_remedy():
    with (
        pytest.raises(StorageError) as error,
        out_of_memory_errors("a.svs: a batch of windows", "a smaller --batch_size"),
    ):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 5 bytes.\nmore lines")
    assert str(error.value) == (
        "a.svs: a batch of windows: does not fit into the device's memory (RESOURCE_EXHAUSTED: Out of memory "
        "allocating 5 bytes.); try a smaller --batch_size"
    )


def test_other_errors_of_the_device_stay():
    with pytest.raises(jax.errors.JaxRuntimeError), out_of_memory_errors("a batch", "less"):
        raise jax.errors.JaxRuntimeError("INTERNAL: something else")
