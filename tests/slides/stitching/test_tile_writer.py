"""A row of labels is written only after all its tiles; what is not there is computed again, and never a label."""

import contextlib
import json
import os
import shutil

import numpy as np
import pytest

from bcss_jax.errors import ConfigError, StorageError
from bcss_jax.slides.classes import SlideClass
from bcss_jax.slides.stitching import tile_writer
from bcss_jax.slides.stitching.seams import no_counts
from bcss_jax.slides.stitching.tile_writer import TileWriter, is_written
from bcss_jax.slides.store.probability_store import ProbabilityStore
from bcss_jax.slides.store.tile_store import TileStore

CLASSES = (SlideClass(1, "tumor", (255, 0, 0)), SlideClass(2, "stroma", (0, 255, 0)))
WIDTH, HEIGHT = 1100, 700  # three columns of tiles, two rows


class Watch:
    def counted(self, name):
        return contextlib.nullcontext()


def open_stores(folder):
    probabilities = ProbabilityStore(folder / "p.zarr", WIDTH, HEIGHT, mpp=0.25, classes=CLASSES, name="a")
    return TileStore(folder / "labels", WIDTH, HEIGHT), probabilities


def write(store, probabilities, first_row=0):
    writer = TileWriter(store, probabilities, first_row, len(CLASSES), Watch())
    with contextlib.closing(writer):
        for top, bottom in ((0, 300), (300, 600), (600, 700)):
            labels = np.full((bottom - top, WIDTH), 2, np.uint8)
            steps = np.stack([np.zeros_like(labels), np.full_like(labels, 200)])
            writer.add(top, 0, labels, steps)
            writer.end(bottom, no_counts())
        writer.wait()


def content(folder):
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("failing", range(6))
def test_a_tile_whose_probabilities_cannot_be_written_leaves_no_row(tmp_path, monkeypatch, failing):
    store, probabilities = open_stores(tmp_path / "a")
    written, write_tile = [], ProbabilityStore.write_tile

    def full(self, row, column, steps):
        if len(written) == failing:
            raise StorageError("p.zarr: No space left on device")
        written.append((row, column))
        return write_tile(self, row, column, steps)

    monkeypatch.setattr(ProbabilityStore, "write_tile", full)
    with pytest.raises(StorageError, match="No space left"):
        write(store, probabilities)
    monkeypatch.undo()
    store, probabilities = open_stores(tmp_path / "a")
    assert [is_written(store, probabilities, row) for row in range(2)] == [failing >= 3, False]
    write(store, probabilities, first_row=int(failing >= 3))
    write(*open_stores(tmp_path / "clean"))
    assert content(tmp_path / "a") == content(tmp_path / "clean")
    assert np.unique(store.pixels(0, 1)).tolist() == [2]


@pytest.mark.parametrize("failing", range(6))
def test_each_write_that_fails_is_made_again(tmp_path, monkeypatch, failing):
    store, probabilities = open_stores(tmp_path / "a")
    calls = []

    def full(function):
        def call(*arguments, **named):
            calls.append(function.__name__)
            if len(calls) == failing + 1:
                raise StorageError("No space left on device")
            return function(*arguments, **named)

        return call

    monkeypatch.setattr(tile_writer, "write_text", full(tile_writer.write_text))
    monkeypatch.setattr(TileStore, "write_tiles", full(TileStore.write_tiles))
    with pytest.raises(StorageError, match="No space left"):
        write(store, probabilities)
    monkeypatch.undo()
    store, probabilities = open_stores(tmp_path / "a")
    first = next(row for row in range(2) if not is_written(store, probabilities, row))
    assert first == failing // 3
    write(store, probabilities, first)
    write(*open_stores(tmp_path / "clean"))
    assert content(tmp_path / "a") == content(tmp_path / "clean")


@pytest.mark.parametrize(
    "loss",
    [
        "a chunk",
        "a changed chunk",
        "the record",
        "a damaged record",
        "an empty record",
        "a FIFO",
        "the seams",
        "bad seams",
        "changed seams",
    ],
)
def test_a_row_with_lost_files_is_not_taken_for_written(tmp_path, loss):
    store, probabilities = open_stores(tmp_path)
    write(store, probabilities)
    assert is_written(store, probabilities, 0) and is_written(store, None, 0)
    chunk = tmp_path / "p.zarr" / "0" / "c" / "1" / "0" / "2"
    record, seams = tile_writer.chunks_file(store, 0), tile_writer.seams_file(store, 0)
    assert json.loads(record.read_text())["value"].keys() == {"0", "1", "2"}
    if loss == "a chunk":
        chunk.unlink()
    elif loss == "a changed chunk":
        chunk.write_bytes(chunk.read_bytes()[:-1] + b"x")
    elif loss == "the record":
        record.unlink()
    elif loss == "a damaged record":
        record.write_text('{"0": [3]}')
    elif loss == "an empty record":  # as earlier versions wrote it, without a digest
        record.write_text("{}")
    elif loss == "a FIFO":
        record.unlink()
        os.mkfifo(record)
    elif loss == "the seams":
        seams.unlink()
    elif loss == "changed seams":
        seams.write_text(seams.read_text().replace("[[[", "[[[1", 1))
    else:
        seams.write_text("[1]")
    assert not is_written(store, probabilities, 0) and is_written(store, probabilities, 1)


def test_an_array_of_another_program_is_neither_used_nor_deleted(tmp_path):
    store, probabilities = open_stores(tmp_path)
    document = probabilities.folder / "zarr.json"
    document.write_text(json.dumps({"zarr_format": 3, "node_type": "group", "attributes": {}}))
    with pytest.raises(ConfigError, match="p.zarr: .*found an array of something else"):
        open_stores(tmp_path)
    shutil.rmtree(probabilities.folder)
    open_stores(tmp_path)
    (probabilities.folder / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match=r"notes.txt: .*found one that it did not write"):
        open_stores(tmp_path)
