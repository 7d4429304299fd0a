import os
import zlib

import numpy as np
import pytest
from helpers.filled_store import filled_store, read_back, some_labels
from hypothesis import given, settings
from hypothesis import strategies as st

from bcss_jax.errors import ConfigError, DataError, StorageError
from bcss_jax.slides.store.tile_store import TILE, TileStore


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 17), st.integers(0, 2**32 - 1))
def test_labels_are_read_as_written(tmp_path_factory, height, width, tile_size, seed):
    random = np.random.default_rng(seed)
    labels = random.choice(np.array([0, 0, 1, 2, 255], np.uint8), (height, width))
    labels[: random.integers(0, height + 1)] = 0
    folder = tmp_path_factory.mktemp("store")
    store = filled_store(folder, labels, tile_size)
    for reader in (store, TileStore(folder, width, height, tile_size)):
        assert reader.complete()
        np.testing.assert_array_equal(read_back(reader), labels)
        np.testing.assert_array_equal(reader.counts(), np.bincount(labels.ravel(), minlength=256))


def test_tiles_at_the_edges_are_padded_with_zero(tmp_path):
    store = filled_store(tmp_path, np.ones((TILE + 1, TILE + 5), np.uint8))
    assert (store.rows, store.columns, store.row_height(1), store.column_width(1)) == (2, 2, 1, 5)
    assert store.constant(0, 0) == 1
    assert [store.constant(*place) for place in ((0, 1), (1, 0), (1, 1))] == [None] * 3
    tile = store.tile(1, 1)
    assert tile.shape == (TILE, TILE) and tile[0, :5].all() and tile.sum() == 5


def test_encoded_tiles_are_zlib_streams_of_a_whole_tile(tmp_path):
    labels = some_labels(700, 1100)
    store = filled_store(tmp_path, labels)
    for row, column in np.ndindex(store.rows, store.columns):
        stream = store.encoded(row, column)
        assert zlib.decompress(stream) == store.tile(row, column).tobytes()
        assert store.encoded_size(row, column) == (len(stream) if store.constant(row, column) is None else 0)


def test_constant_tiles_take_almost_no_space(tmp_path):
    store = TileStore(tmp_path, 200_000, 200_000)
    store.write_tiles(7, [0] * store.columns)
    assert store.path(7).stat().st_size < 3000
    assert store.has_row(7) and not store.has_row(6) and not store.complete()
    assert store.constant(7, 390) == 0
    assert len(store.encoded(7, 390)) < 2000


def test_rows_may_be_written_as_tiles_or_as_a_whole(tmp_path):
    labels = some_labels(700, 1100)
    whole = filled_store(tmp_path / "whole", labels)
    tiles = TileStore(tmp_path / "tiles", 1100, 700)
    for row in range(2):
        tiles.write_tiles(
            row, [whole.pixels(row, column) if column < 2 else whole.tile(row, column) for column in range(3)]
        )
        assert whole.path(row).read_bytes() == tiles.path(row).read_bytes()


def test_bytes_do_not_depend_on_the_order_or_on_earlier_rows(tmp_path):
    labels = some_labels(1200, 600)
    first, second = filled_store(tmp_path / "a", labels), TileStore(tmp_path / "b", 600, 1200)
    for row in (2, 0, 1, 0):
        second.write_row(row, np.zeros((second.row_height(row), 600), np.uint8))
        second.write_row(row, np.asfortranarray(labels[row * TILE : (row + 1) * TILE]))
    assert sorted(path.name for path in second.folder.iterdir()) == ["row-000000", "row-000001", "row-000002"]
    for row in range(3):
        assert first.path(row).read_bytes() == second.path(row).read_bytes()


def test_a_damaged_row_counts_as_absent(tmp_path):
    labels = some_labels(600, 600)
    path = filled_store(tmp_path, labels).path(0)
    content = path.read_bytes()
    random = np.random.default_rng(0)
    places = [0, 9, 30, len(content) - 1, *random.integers(0, len(content), 40).tolist()]
    for place in places:
        damaged = bytearray(content)
        damaged[place] ^= 1 << int(random.integers(8))
        path.write_bytes(damaged)
        assert not TileStore(tmp_path, 600, 600).has_row(0), place
    for length in (0, 1, 20, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:length])
        assert not TileStore(tmp_path, 600, 600).has_row(0), length
    path.write_bytes(content + b"0")
    assert not TileStore(tmp_path, 600, 600).has_row(0)
    path.write_bytes(content)
    assert TileStore(tmp_path, 600, 600).has_row(0)


def test_a_row_that_is_damaged_while_in_use_gives_one_error(tmp_path):
    store = filled_store(tmp_path, some_labels(600, 600))
    content = store.path(0).read_bytes()
    store.path(0).write_bytes(content[:100])
    with pytest.raises(DataError, match="row-000000: became shorter while it was in use"):
        store.tile(0, 0)
    store.path(0).write_bytes(bytes(len(content)))
    with pytest.raises(DataError, match="row-000000: changed while it was in use"):
        store.tile(0, 0)
    store.path(0).unlink()
    with pytest.raises(DataError, match="row-000000: cannot be read"):
        store.tile(0, 0)


def test_rows_of_another_slide_or_another_place_count_as_absent(tmp_path):
    store = filled_store(tmp_path, some_labels(1100, 600))
    assert not TileStore(tmp_path, 600, 1101).has_row(0)
    assert not TileStore(tmp_path, 601, 1100).has_row(0)
    assert not TileStore(tmp_path, 600, 1100, 256).has_row(0)
    store.path(1).write_bytes(store.path(0).read_bytes())
    assert not TileStore(tmp_path, 600, 1100).has_row(1)


def test_wrong_arguments_are_refused(tmp_path):
    store = TileStore(tmp_path, 600, 600)
    for labels in (np.zeros((512, 599), np.uint8), np.zeros((100, 600), np.uint8), np.zeros((512, 600), np.int64)):
        with pytest.raises(ValueError, match="row 0"):
            store.write_row(0, labels)
    with pytest.raises(ValueError, match="not one of 2 with 2"):
        store.write_tiles(2, [0, 0])
    with pytest.raises(ValueError, match="row 0 has not been written"):
        store.tile(0, 0)
    with pytest.raises(ValueError, match="no tiles"):
        TileStore(tmp_path, 0, 5)


def test_a_row_that_cannot_be_written_gives_one_error_and_keeps_the_old_one(tmp_path, monkeypatch):
    store = filled_store(tmp_path, some_labels(100, 100))
    before = store.path(0).read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="No space left"):
        store.write_row(0, np.zeros((100, 100), np.uint8))
    assert store.path(0).read_bytes() == before


def test_a_folder_that_cannot_be_created_gives_one_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="expected a folder for what is written, found a file"):
        TileStore(tmp_path / "file" / "store", 10, 10)
