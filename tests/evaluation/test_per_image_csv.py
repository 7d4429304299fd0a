"""per_image.csv: reading returns exactly what was written."""

import dataclasses

import numpy as np
import pytest

from bcss_jax import metrics
from bcss_jax.errors import DataError
from bcss_jax.evaluation.per_image_csv import per_image_scores, read_per_image, write_per_image
from bcss_jax.labels import SCHEMES

SCHEME = SCHEMES["tumor_stroma"]


def images(n):
    return [{"key": f"tile_{i}", "patient": f"P{i % 3}", "institute": "A1", "x": 5} for i in range(n)]


def case(n=6):
    rng = np.random.default_rng(1)
    confusion = np.zeros((n, 3, 3), np.int32)
    confusion[:, 1:, 1:] = rng.integers(0, 30_000, (n, 2, 2))
    confusion[0, 2], confusion[0, :, 2] = 0, 0  # no stroma in this image
    distances = rng.random((2, n, 2)) * [[[1000]], [[1]]]
    distances[:, 0, 1] = np.nan
    return confusion, *distances


def test_round_trip_is_exact(tmp_path):
    confusion, hd95, nsd = case()
    table = images(6)
    table[1]["key"], table[2]["patient"], table[3]["institute"] = 'a "quoted", name', "two\nlines", "Größe; μ"
    rows = per_image_scores(table, confusion, hd95, nsd, SCHEME)
    write_per_image(tmp_path / "per_image.csv", rows)
    back = read_per_image(tmp_path / "per_image.csv")
    for field in dataclasses.fields(rows):
        written, found = getattr(rows, field.name), getattr(back, field.name)
        assert type(found) is type(written)
        np.testing.assert_array_equal(found, written)
        if isinstance(written, np.ndarray):
            assert found.dtype == written.dtype
    assert {path.name for path in tmp_path.iterdir()} == {".lock", "per_image.csv"}  # no temporary file is left


def test_rows_hold_the_scores_of_the_image(tmp_path):
    confusion, hd95, nsd = case()
    rows = per_image_scores(images(6), confusion, hd95, nsd, SCHEME)
    np.testing.assert_array_equal(rows.dice, metrics.dice(confusion, (1, 2)))
    np.testing.assert_array_equal(rows.tp[:, 1], confusion[:, 2, 2])
    np.testing.assert_array_equal(rows.fp[:, 0], confusion[:, 2, 1])
    np.testing.assert_array_equal(rows.fn[:, 0], confusion[:, 1, 2])
    write_per_image(tmp_path / "per_image.csv", rows)
    header, first = (tmp_path / "per_image.csv").read_text().splitlines()[:2]
    assert header.startswith("key,patient,institute,dice_tumor,iou_tumor,tp_tumor,fp_tumor,fn_tumor,hd95_um_tumor,nsd_")
    assert first.endswith(",,,0,0,0,,")  # stroma: neither present nor predicted, so there is no score


def test_no_images_duplicates_and_wrong_shapes_are_refused():
    confusion, hd95, nsd = case()
    with pytest.raises(DataError, match="found none"):
        per_image_scores([], confusion[:0], hd95[:0], nsd[:0], SCHEME)
    with pytest.raises(DataError, match="tile_0 twice"):
        per_image_scores([images(1)[0]] * 6, confusion, hd95, nsd, SCHEME)
    with pytest.raises(ValueError, match="6 images, 3 labels and 2 evaluated classes"):
        per_image_scores(images(6), confusion, hd95[:, :1], nsd, SCHEME)


@pytest.mark.parametrize(
    "damage",
    (
        lambda text: "",
        lambda text: text.replace("iou_tumor", "jaccard_tumor"),
        lambda text: text.splitlines()[0] + "\n",
        lambda text: text[: len(text) // 2],
        lambda text: text.replace(",0,0,0,", ",0,0.5,0,"),
        lambda text: text.replace(",0,0,0,", f",0,{2**70},0,"),
        lambda text: text.replace("tile_0", "tile_1"),
    ),
)
def test_a_damaged_file_gives_one_line(tmp_path, damage):
    path = tmp_path / "per_image.csv"
    write_per_image(path, per_image_scores(images(6), *case(), SCHEME))
    text = path.read_text()
    assert damage(text) != text
    path.write_text(damage(text))
    with pytest.raises(DataError) as error:
        read_per_image(path)
    assert "\n" not in str(error.value) and str(path) in str(error.value)


def test_a_missing_file_gives_one_line(tmp_path):
    with pytest.raises(DataError, match="found no such file"):
        read_per_image(tmp_path / "per_image.csv")
