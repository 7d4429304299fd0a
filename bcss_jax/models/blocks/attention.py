"""Attention of tokens to tokens, with several heads."""

import jax
import jax.numpy as jnp

CHUNK = 512  # queries whose scores are held at once, if there are more


def attend(query: jax.Array, key: jax.Array, value: jax.Array, mask: jax.Array | None = None) -> jax.Array:
    """Returns softmax(query key^T / sqrt(D)) value; scores and softmax are float32 for tokens of any type.

    The scores of many queries are computed in chunks, again in the gradient, so that memory grows with the number of
    tokens and not with its square.

    Args:
      query: (N, T, heads, D).
      key: (N, S, heads, D).
      value: (N, S, heads, D).
      mask: bool (N, T, S), or with heads (N, heads, T, S): which keys a query sees; None: all.

    Returns:
      (N, T, heads, D), of the type of `query`.
    """
    dtype, tokens = query.dtype, query.shape[1]
    if dtype == jnp.float16:  # JAX asks for a product of float16 that CPUs and TPUs do not have
        query, key, value = (each.astype(jnp.float32) for each in (query, key, value))
    if mask is not None and mask.ndim == 3:
        mask = mask[:, None]
    if tokens <= 2 * CHUNK:
        return jax.nn.dot_product_attention(query, key, value, mask=mask).astype(dtype)

    @jax.checkpoint
    def of_chunk(start):
        queries = jax.lax.dynamic_slice_in_dim(query, start, CHUNK, axis=1)
        seen = None if mask is None else jax.lax.dynamic_slice_in_dim(mask, start, CHUNK, axis=2)
        return jax.nn.dot_product_attention(queries, key, value, mask=seen)

    # The last chunk ends at the last token, so it repeats some queries of the one before.
    starts = jnp.minimum(jnp.arange(-(-tokens // CHUNK)) * CHUNK, tokens - CHUNK)
    chunks = jax.lax.map(of_chunk, starts).swapaxes(0, 1)  # (N, chunks, CHUNK, heads, D)
    whole = chunks[:, :-1].reshape(query.shape[0], -1, *query.shape[2:])
    last = chunks[:, -1, CHUNK - (tokens - whole.shape[1]) :]
    return jnp.concatenate([whole, last], axis=1).astype(dtype)
