"""Fills stores of labels for tests of the code that reads them."""

import numpy as np

from bcss_jax.slides.store.tile_store import TILE, TileStore


def filled_store(folder, labels, tile_size=TILE):
    """Writes labels into a store."""
    height, width = labels.shape
    store = TileStore(folder, width, height, tile_size)
    for row in range(store.rows):
        store.write_row(row, labels[row * tile_size : (row + 1) * tile_size])
    return store


def read_back(store):
    return np.block([[store.pixels(row, column) for column in range(store.columns)] for row in range(store.rows)])


def some_labels(height, width, seed=0):
    labels = np.zeros((height, width), np.uint8)
    labels[: height // 2, : width // 2] = np.random.default_rng(seed).integers(0, 4, (height // 2, width // 2))
    labels[-3:, -3:] = 255
    return labels
