"""Attention of tokens to tokens, with several heads."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

CHUNK = 512  # queries whose scores are held at once, if there are more


class GridBias(NamedTuple):
    """What is added to the scores of keys that lie on a grid: a term for the key's row, and one for its column.

    Attributes:
      rows: float32 (N, T, heads, R).
      columns: float32 (N, T, heads, C). The keys are R * C, row by row.
    """

    rows: jax.Array
    columns: jax.Array

    def scores(self) -> jax.Array:
        """Returns the sum for every key: float32 (N, heads, T, R * C)."""
        rows, columns = (terms.swapaxes(1, 2) for terms in self)
        return (rows[..., :, None] + columns[..., None, :]).reshape(*rows.shape[:3], -1)


def attend(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    mask: jax.Array | None = None,
    bias: GridBias | None = None,
) -> jax.Array:
    """Returns softmax(query key^T / sqrt(D) + bias) value; scores and softmax are float32 for tokens of any type.

    The scores of many queries are computed in chunks, again in the gradient, so that memory grows with the number of
    tokens and not with its square.

    Args:
      query: (N, T, heads, D).
      key: (N, S, heads, D).
      value: (N, S, heads, D).
      mask: bool (N, T, S), or with heads (N, heads, T, S): which keys a query sees; None: all.
      bias: added to the scores; None: nothing.

    Returns:
      (N, T, heads, D), of the type of `query`.
    """
    dtype, tokens = query.dtype, query.shape[1]
    if dtype == jnp.float16:  # JAX asks for a product of float16 that CPUs and TPUs do not have
        query, key, value = (each.astype(jnp.float32) for each in (query, key, value))
    if mask is not None and mask.ndim == 3:
        mask = mask[:, None]
    if tokens * key.shape[1] <= (2 * CHUNK) ** 2:
        scores = None if bias is None else bias.scores()
        return jax.nn.dot_product_attention(query, key, value, scores, mask).astype(dtype)

    @jax.checkpoint
    def of_chunk(start):
        def part(x, axis=1):
            return jax.lax.dynamic_slice_in_dim(x, start, CHUNK, axis)

        scores = None if bias is None else GridBias(part(bias.rows), part(bias.columns)).scores()
        seen = None if mask is None else part(mask, 2)
        return jax.nn.dot_product_attention(part(query), key, value, scores, seen)

    # The last chunk ends at the last token, so it repeats some queries of the one before.
    starts = jnp.minimum(jnp.arange(-(-tokens // CHUNK)) * CHUNK, tokens - CHUNK)
    chunks = jax.lax.map(of_chunk, starts).swapaxes(0, 1)  # (N, chunks, CHUNK, heads, D)
    whole = chunks[:, :-1].reshape(query.shape[0], -1, *query.shape[2:])
    last = chunks[:, -1, CHUNK - (tokens - whole.shape[1]) :]
    return jnp.concatenate([whole, last], axis=1).astype(dtype)
