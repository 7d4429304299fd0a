"""Attention that starts with like patches nearby."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from bcss_jax.models.encoders.vision_transformer.network import VisionTransformer
from bcss_jax.models.encoders.vision_transformer.presets import preset_of
from bcss_jax.pretraining.local_attention import start_with_local_attention

SIDE = 8  # patches of an image on each side


def encoder_of(preset="vit_tiny16", **changes):
    form = preset_of(preset).architecture
    table = None if form.table is None else SIDE
    form = dataclasses.replace(form, width=96, heads=2, depth=2, hidden=16, patch=4, table=table, **changes)
    return VisionTransformer(form, rngs=nnx.Rngs(0))


def attention(encoder, images):
    """Returns the mean over images and heads of where patches look in the first block, [patches, patches]."""
    tokens, angles = encoder.embed(images), encoder.angles(*encoder.grid(images))
    block, prefix = encoder.blocks[0], encoder.architecture.prefix
    query, key, _ = block.attn.query_key_value(block.norm1(tokens), angles)
    scores = jnp.einsum("nqhd,nkhd->nhqk", query, key) / np.sqrt(query.shape[-1])
    return np.asarray(jax.nn.softmax(scores).mean((0, 1)))[prefix:, prefix:]


def by_distance(attention):
    """Returns the mean attention to the patch itself, to those within 1.5 patches, and to those beyond 3."""
    y, x = (place.ravel() for place in np.mgrid[:SIDE, :SIDE])
    distance = np.hypot(y[:, None] - y, x[:, None] - x)
    near = (distance > 0) & (distance < 1.5)
    return attention[distance == 0].mean(), attention[near].mean(), attention[distance > 3].mean()


@pytest.fixture(scope="module")
def images():
    return jax.random.normal(jax.random.key(0), (4, 4 * SIDE, 4 * SIDE, 3))


@pytest.mark.parametrize("changes", [{}, {"registers": 4, "prefix_rows": 0}], ids=str)
def test_patches_look_at_themselves_and_at_their_neighbors(images, changes):
    encoder = encoder_of(**changes)
    own, near, far = by_distance(attention(encoder, images))
    assert max(own, near, far) < 1.2 * min(own, near, far)  # common random weights look at all alike
    start_with_local_attention(encoder, seed=0)
    own, near, far = by_distance(attention(encoder, images))
    assert own > 5 * near and near > 3 * far


def test_rotary_positions_have_no_table(images):
    encoder = encoder_of("dinov3_vits16")
    assert encoder.pos_embed is None
    start_with_local_attention(encoder, seed=0)
    own, near, far = by_distance(attention(encoder, images))
    assert own > 20 * near and near > far
    assert np.isfinite(encoder(images).cls).all()


def test_equal_tokens_have_equal_queries_and_keys():
    encoder = encoder_of()
    start_with_local_attention(encoder, seed=0)
    tokens = jnp.broadcast_to(jax.random.normal(jax.random.key(0), (1, 1, 96)), (1, 3, 96))
    query, key, value = encoder.blocks[1].attn.query_key_value(tokens, None)
    np.testing.assert_array_equal(query, key)
    np.testing.assert_allclose(query[:, :1], query[:, 1:2], rtol=1e-6)
    assert not np.allclose(query, value, atol=0.1)


def test_value_and_projection_take_a_part_of_the_token_away():
    encoder = encoder_of()
    start_with_local_attention(encoder, seed=0)
    attn = encoder.blocks[0].attn
    product = np.asarray(attn.kernel[...][:, -96:] @ attn.proj.kernel[...])
    assert np.diag(product).mean() == pytest.approx(-0.4, abs=0.05)
    off_diagonal = product[~np.eye(96, dtype=bool)]
    assert off_diagonal.std() == pytest.approx(0.4 / np.sqrt(96), rel=0.1)


def test_the_table_keeps_the_row_of_the_class_token():
    encoder, as_drawn = encoder_of(), encoder_of()
    assert encoder.pos_embed is not None and as_drawn.pos_embed is not None
    start_with_local_attention(encoder, seed=0)
    np.testing.assert_array_equal(encoder.pos_embed[...][:, 0], as_drawn.pos_embed[...][:, 0])
    table = np.asarray(encoder.pos_embed[...][0, 1:])
    assert table.std() == pytest.approx(1, rel=0.2)
    likeness = table @ table.T / np.square(table).sum(1).mean()
    assert likeness[0, 0] > likeness[0, 1] > likeness[0, 3]
    np.testing.assert_allclose(likeness, likeness.T, atol=1e-6)


def test_the_seed_decides():
    found = []
    for seed in (0, 0, 1):
        encoder = encoder_of()
        start_with_local_attention(encoder, seed)
        found.append([np.asarray(x) for x in jax.tree.leaves(nnx.state(encoder.blocks))])
    assert all(np.array_equal(a, b) for a, b in zip(found[0], found[1], strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(found[0], found[2], strict=True))
