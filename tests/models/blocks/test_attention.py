"""Attention in chunks has the values and gradients of attention at once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.references import normal

from bcss_jax.models.blocks import attention
from bcss_jax.models.blocks.attention import GridBias, attend


@pytest.mark.parametrize("tokens", [16, 23])
@pytest.mark.parametrize("masked", [True, False])
def test_chunks_give_the_values_and_gradients_of_all_scores_at_once(monkeypatch, tokens, masked):
    rows, columns = 5, 4
    query, key, value = normal(0, 2, tokens, 3, 8), normal(1, 2, rows * columns, 3, 8), normal(2, 2, 20, 3, 8)
    bias = GridBias(jnp.asarray(normal(3, 2, tokens, 3, rows)), jnp.asarray(normal(4, 2, tokens, 3, columns)))
    mask = jnp.asarray(normal(5, 2, tokens, 20) > -1) if masked else None

    def plain(query, key, value, bias):
        scores = jnp.einsum("nthd,nshd->nhts", query, key) / np.sqrt(8)
        scores += jnp.repeat(bias.rows, columns, axis=-1).swapaxes(1, 2) + jnp.tile(bias.columns, rows).swapaxes(1, 2)
        if mask is not None:
            scores = jnp.where(mask[:, None], scores, -1e30)
        return jnp.einsum("nhts,nshd->nthd", jax.nn.softmax(scores), value)

    expected, pullback = jax.vjp(plain, query, key, value, bias)
    monkeypatch.setattr(attention, "CHUNK", 7)
    actual, chunked_pullback = jax.vjp(lambda q, k, v, b: attend(q, k, v, mask, b), query, key, value, bias)
    np.testing.assert_allclose(actual, expected, atol=2e-6)
    dy = jnp.asarray(normal(6, *expected.shape))
    for one, other in zip(jax.tree.leaves(chunked_pullback(dy)), jax.tree.leaves(pullback(dy)), strict=True):
        np.testing.assert_allclose(one, other, atol=2e-5)
