"""Batches depend on seed and step alone, each process reads its rows, and too few tiles are refused."""

import itertools

import numpy as np
import pytest

from bcss_jax.errors import DataError
from bcss_jax.pretraining.tiles.batches import batches, indices_of_step, steps_per_epoch
from bcss_jax.pretraining.tiles.tiles import HeldTiles

TILES = HeldTiles(
    np.arange(11, dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 2, 3), np.uint8), list("abcdefghijk")
)


def first(count, **arguments):
    return list(itertools.islice(batches(TILES, 4, 7, **arguments), count))


def test_a_resumed_run_gets_the_same_batches():
    whole = first(7)
    for start in (1, 2, 5):
        for one, other in zip(whole[start:], first(7 - start, start_step=start), strict=True):
            assert np.array_equal(one.images, other.images) and np.array_equal(one.indices, other.indices)


def test_every_epoch_is_shuffled_anew_without_repeats():
    assert steps_per_epoch(TILES, 4) == 2
    epochs = [np.concatenate([indices_of_step(11, 4, 7, 2 * epoch + i) for i in range(2)]) for epoch in range(3)]
    assert all(len(set(epoch.tolist())) == 8 for epoch in epochs)
    assert len({tuple(epoch.tolist()) for epoch in epochs}) == 3
    assert not np.array_equal(indices_of_step(11, 4, 7, 0), indices_of_step(11, 4, 8, 0))


def test_images_are_those_of_the_indices():
    for batch in first(3):
        assert np.array_equal(batch.images[:, 0, 0, 0], batch.indices)


def test_processes_read_their_rows():
    whole, parts = first(3), [first(3, process=process, processes=2) for process in range(2)]
    for step, batch in enumerate(whole):
        assert np.array_equal(batch.indices, np.concatenate([part[step].indices for part in parts]))


def test_fewer_tiles_than_a_batch_are_refused():
    with pytest.raises(DataError, match="at least 12, which is one batch, found 11; add tiles, or lower"):
        next(batches(TILES, 12, 0))


def test_an_error_of_reading_arrives():
    class Broken(HeldTiles):
        def read(self, indices):
            raise DataError("x.png: damaged")

    with pytest.raises(DataError, match=r"x\.png"):
        next(batches(Broken(TILES.images, TILES.names), 4, 0))
