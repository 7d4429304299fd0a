"""A prepared data set divided into folds, and examples that are drawn several times."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
from helpers.tile_files import kaggle512

from bcss_jax import labels
from bcss_jax.config import default
from bcss_jax.data import tfrecords
from bcss_jax.data.augmentation.settings import Augmentation
from bcss_jax.data.discovery import DataSettings
from bcss_jax.data.input_pipeline import decode_tiles, train_batches
from bcss_jax.data.sampling.code_counts import FILE, count_stored_masks
from bcss_jax.data.sampling.folded_data import hold_out
from bcss_jax.errors import ConfigError, DataError, StorageError

SCHEME = labels.SCHEMES["tumor_stroma"]
TABLE = labels.lookup_table(SCHEME, "bcss22")
FOLDS = 3


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    held_out = ("TCGA-OL-A5D6", "TCGA-EW-A1P1", "TCGA-GM-A2DB")
    tiles = kaggle512(tmp_path_factory.mktemp("tiles"), val=held_out, tiles_each=5)
    settings = DataSettings("kaggle512", tiles)
    return tfrecords.prepare(settings, prepared_dir=tmp_path_factory.mktemp("prepared"), scheme=SCHEME)


@pytest.fixture(scope="module")
def folded(whole):
    return [hold_out(whole, FOLDS, fold, SCHEME) for fold in range(FOLDS)]


def test_each_image_is_held_out_once_and_patients_are_not_divided(whole, folded):
    everything = sorted(row["key"] for split in ("train", "val") for row in whole.table(split))
    assert sorted(row["key"] for data in folded for row in data.table("val")) == everything
    for data in folded:
        train, val = (data.table(split) for split in ("train", "val"))
        assert not {row["patient"] for row in train} & {row["patient"] for row in val}
        assert sorted(row["key"] for row in train + val) == everything
        assert data.splits == {"train": len(train), "val": len(val)} == data.describe()["tiles"]
    assert len({data.report.content_sha256 for data in folded}) == FOLDS


def test_the_examples_of_a_fold_have_the_index_of_their_row(folded):
    data = folded[1]
    for split in ("train", "val"):
        rows, keys = data.table(split), {}
        for example in data.load(split).as_numpy_iterator():
            keys[int(example["index"])] = example["key"].decode()
        assert [keys[number] for number in range(len(rows))] == [row["key"] for row in rows]
    counts = count_stored_masks(data.load("val"), data.splits["val"])
    np.testing.assert_array_equal(data.code_counts("val"), counts)
    counts = counts.sum(0)
    names = labels.BCSS22_NAMES
    assert data.report.code_pixels["val"] == {names[c]: int(counts[c]) for c in np.flatnonzero(counts).tolist()}


def test_codes_are_counted_when_data_are_written_and_from_the_masks_of_older_data(whole, monkeypatch, tmp_path):
    expected = {split: count_stored_masks(whole.load(split), count) for split, count in whole.splits.items()}
    older = dataclasses.replace(whole, folder=tmp_path / whole.folder.name)
    shutil.copytree(whole.folder, older.folder)
    (older.folder / FILE).unlink()
    digests = older.folder / "digests.json"
    listed = json.loads(digests.read_text())
    del listed["sha256"][FILE]
    digests.write_text(json.dumps(listed))
    for split, counts in expected.items():
        np.testing.assert_array_equal(older.code_counts(split), counts)
    monkeypatch.setattr(tfrecords.PreparedData, "load", None)  # no mask is decoded
    for split, counts in expected.items():
        np.testing.assert_array_equal(whole.code_counts(split), counts)
    np.savez(older.folder / FILE, train=np.zeros((3, 3), np.uint32))
    for split in expected:
        with pytest.raises(StorageError, match=f"expected the counts of .* of {split}, found others; delete that"):
            older.code_counts(split)


def test_impossible_folds_are_refused(whole):
    with pytest.raises(ConfigError, match="fold 3 of 3: must be from 0 to 2"):
        hold_out(whole, 3, 3, SCHEME)
    with pytest.raises(DataError, match="folds by patient need at least 99 patients.*lower --config.data.folds"):
        hold_out(whole, 99, 0, SCHEME)


@pytest.mark.parametrize("decoded", [False, True])
def test_examples_are_drawn_as_often_as_asked_and_copies_are_augmented_differently(folded, decoded):
    data = folded[0]
    count = data.splits["val"]
    wanted = np.zeros(count, np.int64)
    wanted[[0, 3]] = 2, count - 2
    examples = data.load("val")
    if decoded:
        examples = decode_tiles(examples, count, table=TABLE)
    augmentation = Augmentation(**(dict(default().augment) | {"color_jitter": 1.0}))

    def batches(start=0):
        return list(
            train_batches(
                examples, count, table=TABLE, ignore_index=SCHEME.ignore_index, batch_size=5, seed=1, epoch=2,
                augmentation=augmentation, start_step=start, threads=2, draws=wanted,
            )
        )  # fmt: skip

    found = batches()
    index = np.concatenate([batch["index"] for batch in found])
    index = index[index >= 0]
    np.testing.assert_array_equal(np.bincount(index % count, minlength=count), wanted)
    assert len(set(index.tolist())) == count  # each copy has a number of its own
    images = {batch["image"][row].tobytes() for batch in found for row in range(5) if batch["valid"][row]}
    assert len(images) == count
    resumed = batches(start=2)
    for a, b in zip(found[2:], resumed, strict=True):
        for name in a:
            np.testing.assert_array_equal(a[name], b[name])
