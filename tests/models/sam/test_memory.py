"""SAM's global attention is computed in chunks, so that a computer without a GPU can encode an image."""

import jax
import pytest
from flax import nnx

from bcss_jax.models.sam import presets


@pytest.mark.slow
def test_vit_b_encodes_1024_pixels_within_four_gigabytes():
    graph, state = nnx.split(nnx.eval_shape(lambda: presets.create("sam_vit_b")))
    encode = jax.jit(lambda state, images: nnx.merge(graph, state).encode(images))
    memory = encode.lower(state, jax.ShapeDtypeStruct((1, 1024, 1024, 3), "float32")).compile().memory_analysis()
    # All scores of one global block at once would take 805 MB, their softmax as much again.
    assert memory.temp_size_in_bytes + memory.argument_size_in_bytes < 2e9
