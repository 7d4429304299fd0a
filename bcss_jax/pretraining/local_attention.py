"""A vision transformer that starts with attention to like patches nearby, and to itself.

With common random weights each patch looks at all others alike, and learns late to look around itself. Here queries
and keys of a head are the same random directions, so that like tokens look at each other, and positions are sines and
cosines, so that near ones are alike. Value and projection together take a part of the token away.
Source: Trockman and Kolter, "Mimetic Initialization of Self-Attention Layers", 2023 (arXiv:2305.09828).
"""

import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from bcss_jax.models.encoders.vision_transformer.network import VisionTransformer

LIKENESS = 0.7  # of queries and keys
VALUE = 0.4  # of value and projection: share of the token that is taken away, and of random directions
POSITION = 1.0  # standard deviation of a position's values
PERIODS = (3.0, 64.0)  # shortest and longest period of a position's values, in patches


def start_with_local_attention(encoder: VisionTransformer, seed: int) -> None:
    """Replaces query, key, value, projection and the table of positions, if there is one.

    Args:
      encoder: changed in place.
      seed: of the random directions.
    """
    form, rng = encoder.architecture, np.random.default_rng(seed)
    width, of_head = form.width, form.width // form.heads
    for block in encoder.blocks:
        bases = [np.linalg.qr(rng.normal(size=(width, width)))[0][:, :of_head] for _ in range(form.heads)]
        like = LIKENESS**0.5 * np.concatenate(bases, axis=1)
        product = VALUE * (rng.normal(size=(width, width)) / width**0.5 - np.eye(width))
        left, strengths, right = np.linalg.svd(product)
        kernel = np.concatenate([like, like, left * np.sqrt(strengths)], axis=1)
        found = kernel, np.sqrt(strengths)[:, None] * right
        found = multihost_utils.broadcast_one_to_all(found)  # hosts may differ in the last bits of decompositions
        for weights, values in zip((block.attn.kernel, block.attn.proj.kernel), found, strict=True):
            weights[...] = jnp.asarray(values, weights[...].dtype)
    if encoder.pos_embed is not None and form.table:
        table = encoder.pos_embed[...]
        places = _positions(form.table, width)
        encoder.pos_embed[...] = table.at[0, -len(places) :].set(jnp.asarray(places, table.dtype))


def _positions(side: int, width: int) -> np.ndarray:
    """Returns sines and cosines of rows and columns, [side * side, width]."""
    y, x = (place.reshape(-1, 1) for place in np.mgrid[:side, :side])
    angles = 2 * np.pi / np.geomspace(*PERIODS, -(-width // 4))
    values = [wave(place * angles) for place in (y, x) for wave in (np.sin, np.cos)]
    return POSITION * 2**0.5 * np.concatenate(values, axis=1)[:, :width]
