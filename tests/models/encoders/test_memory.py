"""Attention of vision transformers is computed in chunks, so that large images need no map of all pairs of tokens."""

import jax
import pytest
from flax import nnx

from bcss_jax.models.encoders.vision_transformer.network import VisionTransformer
from bcss_jax.models.encoders.vision_transformer.presets import PRESETS

FOUR_GIGABYTES = 4e9


def compiled_memory(function, *arguments):
    memory = jax.jit(function).lower(*arguments).compile().memory_analysis()
    return memory.temp_size_in_bytes + memory.argument_size_in_bytes + memory.output_size_in_bytes


@pytest.mark.slow
@pytest.mark.parametrize("preset", ("gigapath_flash", "uni"))
def test_1024_pixels_at_patch_16_within_four_gigabytes(preset):
    """Features of ViT-S and ViT-L, and ViT-S's gradient, of one image; 4,096 tokens in 6 or 16 heads."""
    form = PRESETS[preset].architecture
    graph, state = nnx.split(nnx.eval_shape(lambda: VisionTransformer(form, rngs=nnx.Rngs(0))))
    image = jax.ShapeDtypeStruct((1, 1024, 1024, 3), "float32")

    def loss(state, images):
        return nnx.merge(graph, state)(images).patches.mean()

    assert compiled_memory(loss, state, image) < FOUR_GIGABYTES
    if preset == "gigapath_flash":
        weights, others = nnx.split_state(state, nnx.Param, ...)

        def gradient(weights, others, images):
            return jax.grad(lambda weights: loss(nnx.merge_state(weights, others), images))(weights)

        assert compiled_memory(gradient, weights, others, image) < FOUR_GIGABYTES
