import errno

import jax
import pytest

from bcss_jax.common.device_memory import out_of_memory_errors
from bcss_jax.errors import DataError, StorageError


def test_too_little_device_memory_is_one_line_with_a_remedy():
    with (
        pytest.raises(StorageError) as error,
        out_of_memory_errors("a.svs: a batch of windows", lambda: "a smaller --batch_size"),
    ):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 5 bytes.\nmore lines")
    assert str(error.value) == (
        "a.svs: a batch of windows: does not fit into memory (RESOURCE_EXHAUSTED: Out of memory "
        "allocating 5 bytes.); try a smaller --batch_size"
    )


def test_other_errors_of_the_device_stay():
    with pytest.raises(jax.errors.JaxRuntimeError), out_of_memory_errors("a batch", lambda: "less"):
        raise jax.errors.JaxRuntimeError("INTERNAL: something else")


@pytest.mark.parametrize(
    "error",
    [
        jax.errors.JaxRuntimeError("INTERNAL: Error dispatching computation: %sError loading program"),
        jax.errors.JaxRuntimeError("INTERNAL: CUDA_ERROR_OUT_OF_MEMORY: out of memory"),
        jax.errors.JaxRuntimeError("INTERNAL: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("std::bad_alloc"),
        ValueError("RESOURCE_EXHAUSTED: failed to allocate 12GiB"),
        MemoryError(),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
    ],
)
def test_out_of_memory_is_recognized_in_all_its_words(error):
    with pytest.raises(StorageError, match=r"^a batch: does not fit into memory \(.*\); try less$"):
        with out_of_memory_errors("a batch", lambda: "less"):
            raise error


def test_an_error_that_names_its_file_stays():
    with pytest.raises(DataError, match="^a.png"), out_of_memory_errors("a batch", lambda: "less"):
        raise DataError("a.png: out of memory")
