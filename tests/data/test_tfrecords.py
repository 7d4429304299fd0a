import hashlib
import json
import os
import random
import re
import shutil
import threading
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import tensorflow as tf
from helpers.paths import DATA
from helpers.tile_files import image, kaggle512, mask, name, save
from PIL import Image

from bcss_jax import labels
from bcss_jax.data import checks as checks_module
from bcss_jax.data import synthetic, tfrecords
from bcss_jax.data.cache import digest_of_files
from bcss_jax.data.discovery import DataSettings
from bcss_jax.errors import ConfigError, DataError, StorageError

SCHEME = labels.SCHEMES["tumor_stroma"]


def prepare(root, prepared_dir, layout="kaggle512", **options):
    return tfrecords.prepare(DataSettings(layout, root, **options), prepared_dir=prepared_dir, scheme=SCHEME)


def examples_of(data, split):
    return list(data.load(split).as_numpy_iterator())


def decoded(png_bytes):
    pixels = cv2.imdecode(np.frombuffer(png_bytes, np.uint8), cv2.IMREAD_UNCHANGED)
    return pixels[..., ::-1] if pixels.ndim == 3 else pixels


def pixels_of(path):
    return np.asarray(Image.open(path))


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return kaggle512(tmp_path_factory.mktemp("data"), tiles_each=5)


@pytest.fixture(scope="module")
def prepared_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("prepared")


@pytest.fixture(scope="module")
def data(root, prepared_dir):
    return prepare(root, prepared_dir)


def test_loaded_tiles_equal_the_files(root, data):
    assert data.splits == {"train": 10, "val": 5}
    for split in data.splits:
        examples = examples_of(data, split)
        assert len(examples) == len(data.load(split)) == data.splits[split]
        assert sorted(int(example["index"]) for example in examples) == list(range(data.splits[split]))
        assert sorted(example["key"] for example in examples) == [row["key"].encode() for row in data.table(split)]
        for example in examples:
            key = example["key"].decode()
            assert (decoded(example["image"]) == pixels_of(root / f"{split}_512" / f"{key}.png")).all()
            stored = decoded(example["mask"])
            assert stored.ndim == 2 and stored.dtype == np.uint8
            assert (stored == pixels_of(root / f"{split}_mask_512" / f"{key}.png")).all()


def test_features(data):
    specification = data.load("val").element_spec
    assert all(spec.shape == () for spec in specification.values())
    assert {key: spec.dtype for key, spec in specification.items()} == {
        **dict.fromkeys(("image", "mask", "key", "barcode", "patient", "institute", "codes"), tf.string),
        **dict.fromkeys(("index", "x", "y"), tf.int64),
        "mpp": tf.float32,
    }
    first = min(examples_of(data, "val"), key=lambda example: example["index"])
    row = data.table("val")[0]
    assert row == {
        "key": name("TCGA-OL-A5D6"),
        "barcode": "TCGA-OL-A5D6-DX1",
        "patient": "TCGA-OL-A5D6",
        "institute": "OL",
        "x": 0,
        "y": 0,
        "mpp": 0.25,
        "codes": "bcss22",
    }
    assert {
        key: value.decode() if isinstance(value, bytes) else value for key, value in first.items() if key in row
    } == row


def test_the_order_is_shuffled_but_fixed(data, root, tmp_path):
    order = [int(example["index"]) for example in examples_of(data, "train")]
    assert order != sorted(order)
    assert [int(example["index"]) for example in examples_of(data, "train")] == order
    again = prepare(root, tmp_path)
    assert [int(example["index"]) for example in examples_of(again, "train")] == order
    assert again.fingerprint == data.fingerprint


def test_a_second_call_reads_no_pixel(data, root, prepared_dir, monkeypatch):
    monkeypatch.setattr(checks_module, "check_tiles", None)
    monkeypatch.setattr(tfrecords, "read_pair", None)
    assert prepare(root, prepared_dir) == data


def test_describe_is_json(data):
    described = json.loads(json.dumps(data.describe()))
    assert described["layout"] == "kaggle512" and described["split"] == "published" and described["codes"] == "bcss22"
    assert described["tiles"] == {"train": 10, "val": 5} and described["patients"] == {"train": 2, "val": 1}
    assert described["fingerprint"] == data.fingerprint and described["data_version"] == tfrecords.DATA_VERSION


def test_the_prepared_folder_contains_nothing_else(data, prepared_dir):
    assert {path.name for path in prepared_dir.iterdir()} == {data.folder.name, f"{data.folder.name}.lock"}
    assert {path.name for path in data.folder.iterdir()} == {
        ".decoder", "bcss_tiles", "code_counts.npz", "digests.json", "report.json", "tables.json",
    }  # fmt: skip


def test_no_such_split(data):
    with pytest.raises(DataError, match="expected a split test, found only train, val; choose"):
        data.load("test")


@pytest.mark.parametrize("change", ["pixels", "time", "option"])
def test_changed_data_are_prepared_again(tmp_path, change, monkeypatch):
    root = kaggle512(tmp_path / "data", tiles_each=1)
    made = []
    monkeypatch.setattr(tfrecords, "_make", lambda folder, *_: (made.append(folder), write_empty_report(folder)))
    first = prepare(root, tmp_path / "prepared")
    path = root / "train_512" / f"{name()}.png"
    if change == "pixels":
        save(path, image(77))
    elif change == "time":
        os.utime(path, ns=(1, 1))
    again = prepare(root, tmp_path / "prepared", **({"mpp": 0.5} if change == "option" else {}))
    assert made == [first.folder, again.folder] and first.folder != again.folder
    assert (
        prepare(root, tmp_path / "prepared", patch_size=99, mpp=again.mpp).folder == again.folder
    )  # means nothing here


def test_the_content_digest_follows_the_pixels_not_the_files(tmp_path):
    root = kaggle512(tmp_path / "data", tiles_each=1)
    first = prepare(root, tmp_path / "prepared")
    copy = kaggle512(tmp_path / "copy", tiles_each=1)
    assert prepare(copy, tmp_path / "prepared").report.content_sha256 == first.report.content_sha256
    changed = mask(1, codes=(0, 1, 2, 3, 4, 9))
    changed[0, 0] = (changed[0, 0] + 1) % 5
    save(copy / "train_mask_512" / f"{name()}.png", changed)
    assert prepare(copy, tmp_path / "prepared").report.content_sha256 != first.report.content_sha256


def write_empty_report(folder):
    folder.mkdir(parents=True)
    empty = {
        "tiles": {},
        "patients": {},
        "patients_in_two_parts": [],
        "code_pixels": {},
        "all_ignored": {},
        "absent": {},
    }
    (folder / "report.json").write_text(
        json.dumps(empty | {"repeated": 0, "missing": [], "bad": [], "warnings": [], "content_sha256": "0" * 64})
    )


def test_leftovers_of_a_killed_run_are_replaced(root, data, tmp_path):
    partial = tmp_path / f"{data.folder.name}.partial"
    (partial / "bcss_tiles" / "kaggle512" / "incomplete.ABCDEF_1.0.0").mkdir(parents=True)
    (partial / "report.json").write_text("{")
    again = prepare(root, tmp_path)
    assert len(examples_of(again, "train")) == 10
    assert not partial.exists()


def test_failure_leaves_nothing_behind(tmp_path, monkeypatch):
    root = kaggle512(tmp_path / "data", tiles_each=2)
    read = tfrecords.read_pair

    def fail_late(image_path, *rest, **options):
        if "OL" in image_path.name:
            raise DataError(f"{image_path}: gone")
        return read(image_path, *rest, **options)

    monkeypatch.setattr(tfrecords, "read_pair", fail_late)
    with pytest.raises(DataError, match="TCGA-OL-A5D6.*: gone"):
        prepare(root, tmp_path / "prepared")
    assert [path.suffix for path in (tmp_path / "prepared").iterdir()] == [".lock"]
    monkeypatch.undo()
    assert prepare(root, tmp_path / "prepared").splits == {"train": 4, "val": 2}


def wrapped(cause):
    """Raises an error as tfds does while writing."""
    error = RuntimeError("Failed to finalize writing")
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    "failure",
    [
        OSError(28, "No space left on device"),
        tf.errors.ResourceExhaustedError(None, None, "No space left on\ndevice"),
        wrapped(tf.errors.ResourceExhaustedError(None, None, "No space left on device")),
    ],
    ids=["Python", "TensorFlow", "tfds"],
)
def test_no_space(tmp_path, monkeypatch, failure):
    def fail(*_, **__):
        raise failure

    monkeypatch.setattr(tfrecords.BcssTiles, "download_and_prepare", fail)
    root = kaggle512(tmp_path / "data", tiles_each=1)
    with pytest.raises(StorageError) as error:
        prepare(root, tmp_path / "prepared")
    assert re.search("prepared: expected to write .*, found: .*No space left on device.*; free space", str(error.value))
    assert str(error.value).isprintable() and error.value.exit_code == 5
    assert [path.suffix for path in (tmp_path / "prepared").iterdir()] == [".lock"]


def test_programming_errors_are_raised_as_they_are(root, tmp_path, monkeypatch):
    monkeypatch.setattr(tfrecords, "_make", lambda *_: {}["absent"])
    with pytest.raises(KeyError):
        prepare(root, tmp_path)


def test_prepared_dir_that_is_a_file(root, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="file: expected a folder for what is written, found a file"):
        prepare(root, tmp_path / "file")


def test_two_at_once(tmp_path, monkeypatch):
    root = kaggle512(tmp_path / "data", tiles_each=2)
    check, checks, results = checks_module.check_tiles, [], []

    def slow_check(*arguments, **options):
        checks.append(1)
        time.sleep(0.5)
        return check(*arguments, **options)

    monkeypatch.setattr(checks_module, "check_tiles", slow_check)
    threads = [
        threading.Thread(target=lambda: results.append(prepare(root, tmp_path / "prepared").splits)) for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [{"train": 4, "val": 2}] * 2
    assert len(checks) == 1


def test_bad_data_are_refused(tmp_path):
    root = kaggle512(tmp_path / "data", tiles_each=1)
    (root / "train_512" / f"{name()}.png").write_bytes(b"")
    with pytest.raises(DataError, match="found an empty file"):
        prepare(root, tmp_path / "prepared")
    data = prepare(root, tmp_path / "prepared", max_bad=0.4)
    assert data.splits == {"train": 1, "val": 1} and len(data.report.bad) == 1
    assert [row["patient"] for row in data.table("train")] == ["TCGA-BH-A0B1"]


@pytest.mark.parametrize(
    "arguments",
    [
        {"layout": "imagenet"},
        {"prepared_dir": ""},
        {"prepared_dir": "gs://bucket/prepared"},
        {"prepared_dir": Path("gs://bucket/prepared")},
        {"layout": "kaggle224", "scheme": labels.SCHEMES["five_classes"]},
    ],
    ids=str,
)
def test_invalid_arguments(tmp_path, arguments):
    with pytest.raises(ConfigError):
        arguments = {"layout": "sample", "prepared_dir": tmp_path, "scheme": SCHEME} | arguments
        tfrecords.prepare(DataSettings(arguments.pop("layout")), **arguments)


def test_regions(tmp_path):
    for seed, patient in enumerate(("TCGA-A2-A0D2", "TCGA-OL-A5D6")):
        region = f"{patient}-DX1_xmin100_ymin200_MPP-0.2500.png"
        save(tmp_path / "data" / "images" / region, image(seed, size=40))
        save(tmp_path / "data" / "masks" / region, mask(seed, size=40))
    data = prepare(tmp_path / "data", tmp_path / "prepared", "roi", patch_size=16, stride=12)
    assert data.splits == {"train": 9, "val": 9} and data.split_by == "institute"
    whole, codes = image(1, size=40), mask(1, size=40)
    for example in examples_of(data, "val"):
        window = np.s_[example["y"] : example["y"] + 16, example["x"] : example["x"] + 16]
        assert (decoded(example["image"]) == whole[window]).all()
        assert (decoded(example["mask"]) == codes[window]).all()
    other = prepare(tmp_path / "data", tmp_path / "prepared", "roi", patch_size=16, stride=24)
    assert other.folder != data.folder and other.splits == {"train": 4, "val": 4}


def patches(repeat=False, recur=False):
    """Yields three patches with the shape of the built-in sample, which are faster to make."""
    for number, (patient, split) in enumerate((("A1-0001", "train"), ("B2-0002", "train"), ("C3-0003", "val"))):
        pixels = image(0 if repeat else number, size=224)
        patient = "A1-0001" if recur else patient
        yield synthetic.Patch(
            f"SAMPLE-{patient}_{number}", f"SAMPLE-{patient}", split, 0, 448, pixels, mask(number, size=224)
        )


def test_sample(tmp_path, monkeypatch):
    monkeypatch.setattr(synthetic, "draw", lambda seed=0: patches())
    data = prepare(None, tmp_path, "sample")
    assert data.splits == {"train": 2, "val": 1} and data.split_by == "built-in" and data.codes == "bcss22"
    (example,) = examples_of(data, "val")
    assert (decoded(example["image"]) == image(2, size=224)).all()
    assert (decoded(example["mask"]) == mask(2, size=224)).all()
    assert data.table("val")[0]["institute"] == "C3" and example["y"] == 448


@pytest.mark.parametrize(("fault", "message"), [("repeat", "found the same pixels"), ("recur", "found 1 in several")])
def test_sample_is_checked_too(tmp_path, monkeypatch, fault, message):
    monkeypatch.setattr(synthetic, "draw", lambda seed=0: patches(**{fault: True}))
    with pytest.raises(DataError, match=message):
        prepare(None, tmp_path, "sample")


def test_prepared_data_of_earlier_versions_are_found(tmp_path, monkeypatch):
    """The names of the folders depend only on these values, so data prepared before are not prepared again."""
    monkeypatch.setattr(synthetic, "draw", lambda seed=0: patches())
    assert prepare(None, tmp_path, "sample").folder.name == "sample-c44371891b9e2392"
    options = {"layout": "roi", "data_version": "1.0.1", "split": "institute", "mpp": 0.5, "allow_missing": True}
    options |= {"max_bad": 0.25, "patch_size": 16, "stride": 12}
    settings = DataSettings("roi", tmp_path, "published", 0.5, 16, 12, allow_missing=True, max_bad=0.25)
    assert tfrecords._options(settings) == options
    (tmp_path / "a.png").write_bytes(b"12345")
    os.utime(tmp_path / "a.png", ns=(0, 10**18))
    content = json.dumps(options, sort_keys=True) + json.dumps(["a.png", [5, 10**18]])
    found = digest_of_files(options, [tmp_path / "a.png"], tmp_path)
    assert found == hashlib.sha256(content.encode()).hexdigest()


@pytest.mark.parametrize("has_palette", [False, True])
def test_prepared_data_of_other_rules_of_decoding_are_prepared_anew(tmp_path, caplog, has_palette):
    """The folder and the record of the data keep their names; plain files are decoded alike by all versions."""
    root = kaggle512(tmp_path / "data", tiles_each=2)
    if has_palette:
        path = sorted((root / "train_mask_512").iterdir())[0]
        codes = Image.open(path).convert("L")
        indexed = Image.fromarray(np.asarray(codes), "P")
        indexed.putpalette([value for i in range(256) for value in (255 - i, i, 7)])
        indexed.save(path)
    data = prepare(root, tmp_path / "prepared")
    (data.folder / ".decoder").unlink()  # as earlier versions left it
    before = (data.folder / "report.json").stat().st_mtime_ns
    caplog.clear()
    again = prepare(root, tmp_path / "prepared")
    assert (again.folder, again.fingerprint, again.report) == (data.folder, data.fingerprint, data.report)
    assert ((data.folder / "report.json").stat().st_mtime_ns != before) is has_palette
    assert ("prepared by another version, which may have read" in caplog.text) is has_palette
    assert (data.folder / ".decoder").exists()
    caplog.clear()
    assert prepare(root, tmp_path / "prepared") == again and "another version" not in caplog.text


def test_every_flipped_bit_of_prepared_data_is_found(root, data, prepared_dir, tmp_path):
    rng = random.Random(0)
    copy = tmp_path / "prepared"
    shutil.copytree(prepared_dir, copy)
    for path in sorted(path for path in (copy / data.folder.name).rglob("[!.]*") if path.is_file()):
        content = path.read_bytes()
        changed = bytearray(content)
        place = rng.randrange(8 * len(content))
        changed[place // 8] ^= 1 << place % 8
        path.write_bytes(changed)
        tfrecords._check_records.cache_clear()
        with pytest.raises(DataError, match="damaged") as error:
            found = prepare(root, copy)
            for split in found.splits:
                found.load(split)
        assert "\n" not in str(error.value)
        path.write_bytes(content)
    tfrecords._check_records.cache_clear()
    (copy / data.folder.name / "digests.json").unlink()  # as earlier versions left it
    assert len(examples_of(prepare(root, copy), "train")) == 10


def test_a_missing_file_of_prepared_data_is_found(root, data, prepared_dir, tmp_path):
    shutil.copytree(prepared_dir, tmp_path / "prepared")
    (record,) = (tmp_path / "prepared" / data.folder.name).rglob("*-val.tfrecord-*")
    record.unlink()
    with pytest.raises(DataError, match=f"{record.name} is missing.*delete that folder"):
        prepare(root, tmp_path / "prepared")


def test_no_temporary_file_outside(data, root, prepared_dir):
    assert not list(Path(root).glob("*.partial")) and not list(Path(prepared_dir).glob("*.partial"))


def test_real_tiles(tmp_path):
    folder = DATA / "bcss_kaggle224"
    if not folder.exists():
        pytest.skip(f"{folder} is not there")
    data = prepare(folder, tmp_path, "kaggle224")
    assert data.splits == {"train": 90, "val": 30, "test": 30} and data.codes == "kaggle3"
    assert data.report.patients_in_two_parts == ["TCGA-A2-A0D2"]
    for example in examples_of(data, "val"):
        key = example["key"].decode()
        assert (decoded(example["image"]) == pixels_of(folder / "val" / f"{key}.png")).all()
        assert (decoded(example["mask"]) == pixels_of(folder / "val_mask" / f"{key}.png")).all()
