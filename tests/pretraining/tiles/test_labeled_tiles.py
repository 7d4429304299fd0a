"""The label of a tile is that of most of its pixels; tiles without truth, of the test set, or of one class are told."""

import numpy as np
import pytest
from PIL import Image

from bcss_jax.data import synthetic
from bcss_jax.data.discovery import DataSettings
from bcss_jax.errors import ConfigError, DataError
from bcss_jax.labels import SCHEMES
from bcss_jax.pretraining.tiles.labeled_tiles import labeled_tiles

SCHEME = SCHEMES["tumor_stroma"]
NAME = "TCGA-A{}-A0D2-DX1_xmin96887_ymin22299_MPP-0_0_{}_size224"


@pytest.fixture
def folder(tmp_path):
    """Three tiles of two patients, and one of the test set."""
    codes = {
        ("train", 1, 0): (1, 2, 0.9),
        ("val", 1, 224): (2, 0, 0.6),
        ("train", 2, 0): (1, 0, 0.4),
        ("test", 2, 1): (1, 1, 1),
    }
    for (split, patient, x), (code, other, share) in codes.items():
        mask = np.full((40, 40), other, np.uint8)
        mask.ravel()[: round(share * 1600)] = code
        for name, pixels in ((split, np.full((40, 40, 3), 40 * x % 255, np.uint8)), (f"{split}_mask", mask)):
            (tmp_path / name).mkdir(exist_ok=True)
            Image.fromarray(pixels).save(tmp_path / name / f"{NAME.format(patient, x)}.png")
    return tmp_path


def test_the_label_is_that_of_most_pixels(folder):
    tiles = labeled_tiles(DataSettings("kaggle224", folder), SCHEME)
    names = [SCHEME.class_names[label] for label in tiles.labels]
    assert names == ["tumor", "stroma"] and tiles.images.shape == (2, 40, 40, 3)
    assert tiles.groups.tolist() == [0, 1]  # one patient: each tile for itself
    assert tiles.notes[0] == "2 labeled tiles of 1 patients: 1 tumor, 1 stroma"
    assert "one patient" in tiles.notes[1]
    assert tiles.notes[2:] == (
        "left out: 1 labeled tiles with ground truth on less than half",
        "left out: 1 tiles of the test set or without masks",
    )


def test_one_class_is_refused(folder):
    Image.fromarray(np.zeros((40, 40), np.uint8)).save(next((folder / "val_mask").glob("*.png")))
    with pytest.raises(DataError, match="two or more classes, found 1"):
        labeled_tiles(DataSettings("kaggle224", folder), SCHEME)
    with pytest.raises(ConfigError, match="found slides; leave them out"):
        labeled_tiles(DataSettings("slides", folder), SCHEME)


def test_the_sample_has_labels_of_its_patients(monkeypatch):
    drawn = [synthetic.draw_patch(patient, number) for patient in (0, 13) for number in (0, 1)]
    monkeypatch.setattr(synthetic, "draw", lambda seed=0: iter(drawn))
    tiles = labeled_tiles(DataSettings("sample"), SCHEME)
    assert len(tiles.images) == 4 and tiles.groups.tolist() == [0, 0, 1, 1]
    assert tiles.chance == max(np.bincount(tiles.labels)) / 4
    masks = {patch.key: patch.mask for patch in drawn}
    for label, mask in zip(tiles.labels, (masks[key] for key in sorted(masks)), strict=True):
        tumor = (mask == synthetic.TUMOR).sum() > (mask == synthetic.STROMA).sum()
        assert SCHEME.class_names[label] == ("tumor" if tumor else "stroma")
