"""The stain of a training set is that of its typical slide; other splits and the number of tiles do not matter."""

import numpy as np
import pytest
from helpers import tile_files
from helpers.stained_pixels import OTHER_VECTORS, VECTORS, amounts, stained

from bcss_jax.data import tfrecords
from bcss_jax.data.discovery import DataSettings
from bcss_jax.data.stain import training_stain
from bcss_jax.data.stain.training_stain import stain_of_training
from bcss_jax.labels import SCHEMES

PATIENTS = {"TCGA-A2-A0D2": (3, 1.0), "TCGA-BH-A0B1": (1, 0.6), "TCGA-E2-A1B0": (1, 0.8)}  # tiles, strength


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    root = tmp_path_factory.mktemp("tiles")
    seed = 0
    for split, patients in (("train", PATIENTS), ("val", {"TCGA-OL-A5D6": (1, 2.0)})):
        for patient, (count, strength) in patients.items():
            for number in range(count):
                seed += 1
                stem = tile_files.name(patient, x=512 * number)
                vectors = OTHER_VECTORS if split == "val" else VECTORS
                tile = stained(strength * amounts(64, 64, seed), vectors=vectors)
                tile_files.save(root / f"{split}_512" / f"{stem}.png", tile)
                tile_files.save(root / f"{split}_mask_512" / f"{stem}.png", tile_files.mask(seed, 64))
    settings = DataSettings("kaggle512", root)
    return tfrecords.prepare(settings, prepared_dir=root / "prepared", scheme=SCHEMES["tumor_stroma"])


def test_the_typical_slide_of_the_training_split_counts(prepared):
    found = stain_of_training(prepared)
    np.testing.assert_allclose(found.vectors, VECTORS, atol=0.04)
    np.testing.assert_allclose(found.strengths, 0.8, rtol=0.08)
    assert found.white == (240, 240, 240)
    assert stain_of_training(prepared) == found


def test_a_sample_of_tiles_and_pixels_says_nearly_the_same(prepared, monkeypatch):
    whole = stain_of_training(prepared)
    for name, value in {"IMAGES": 5, "PIXELS": 2048, "PIXELS_OF_SLIDE": 2048}.items():
        monkeypatch.setattr(training_stain, name, value)
    monkeypatch.setattr("bcss_jax.data.stain.measured_stain.LEAST_PIXELS", 200)
    sample = stain_of_training(prepared)
    assert sample != whole
    np.testing.assert_allclose(sample.vectors, whole.vectors, atol=0.05)


def test_images_without_the_two_stains_have_none(tmp_path):
    root = tile_files.kaggle512(tmp_path / "noise")
    data = tfrecords.prepare(
        DataSettings("kaggle512", root), prepared_dir=tmp_path / "prepared", scheme=SCHEMES["tumor_stroma"]
    )
    assert stain_of_training(data) is None
