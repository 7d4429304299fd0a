"""EoMT's queries predict what the reference's predict."""

import jax
import numpy as np
from flax import nnx
from helpers.references import foundation_case

from bcss_jax.models.decoders.eomt import EoMTDecoder
from bcss_jax.models.encoders.vision_transformer.architecture import Architecture
from bcss_jax.models.encoders.vision_transformer.network import VisionTransformer
from bcss_jax.models.weights.pretrained import load_torch_state
from bcss_jax.models.weights.vision_transformer_names import canonical

FORM = Architecture(48, 4, 3, 16, 192, layer_scale=True, registers=4, table=4, prefix_rows=0)
OF_DECODER = ("query.", "upscale_block.", "mask_head.", "class_predictor.")


def test_masks_and_classes_are_those_of_the_reference():
    entry, state, images, expected = foundation_case("eomt_tiny")
    encoder = VisionTransformer(FORM, rngs=nnx.Rngs(0))
    decoder = EoMTDecoder(48, 3, queries=7, blocks=2, upscales=2, dtype=np.float32, rngs=nnx.Rngs(0))
    arrays, others = canonical({name: a for name, a in state.items() if not name.startswith(OF_DECODER)})
    load_torch_state(encoder, arrays)
    load_torch_state(decoder, {name: a for name, a in state.items() if name.startswith(OF_DECODER)})
    assert others == []
    with jax.default_matmul_precision("highest"):
        grid = encoder.grid(images["image"])
        tokens = encoder.block_outputs(images["image"])[1]
        masked = decoder(encoder, tokens, grid, masked=True)
        free = decoder(encoder, tokens, grid, masked=False)
    assert (len(masked), len(free)) == (3, 1)
    actual = {
        "masks_masked": masked[-1].masks,
        "classes_masked": masked[-1].classes,
        "masks_free": free[0].masks,
        "classes_free": free[0].classes,
        "semantic_free": free[0].semantic(*free[0].masks.shape[2:]).transpose(0, 3, 1, 2),
    }
    assert actual.keys() == expected.keys()
    for name, value in actual.items():
        assert np.abs(value - expected[name]).max() < 3e-4 * entry["outputs"][name]["std"], name
