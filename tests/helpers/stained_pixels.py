"""Draws pixels of hematoxylin and eosin in known colors and amounts."""

import numpy as np

VECTORS = np.array([[0.60, 0.74, 0.30], [0.16, 0.93, 0.33]])
VECTORS /= np.linalg.norm(VECTORS, axis=1, keepdims=True)
OTHER_VECTORS = np.array([[0.68, 0.66, 0.32], [0.30, 0.90, 0.31]])  # of another laboratory
OTHER_VECTORS /= np.linalg.norm(OTHER_VECTORS, axis=1, keepdims=True)


def amounts(height, width, seed=0, patch=8):
    """Returns amounts of hematoxylin and eosin, float [H, W, 2]: nuclei, fibers, mixtures, and a tenth of glass."""
    rng = np.random.default_rng(seed)
    shape = -(-height // patch), -(-width // patch)
    kinds = rng.choice(4, shape, p=(0.3, 0.3, 0.3, 0.1))
    drawn = rng.uniform(0.3, 1.0, (*shape, 2))
    drawn *= np.array([[1, 0.02], [0.02, 1], [1, 1], [0, 0]])[kinds]
    return np.kron(drawn, np.ones((patch, patch, 1)))[:height, :width]


def stained(amounts, vectors=VECTORS, white=240):
    """Returns the pixels of amounts [..., 2], uint8 [..., 3]."""
    transmitted = 10 ** -(amounts @ vectors)
    return np.rint((white + 1) * transmitted - 1).clip(0, 255).astype(np.uint8)
