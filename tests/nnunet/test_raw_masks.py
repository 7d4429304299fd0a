"""Masks of a raw data folder are read by the rules for all masks; what is unusual is said once."""

import json

import numpy as np
import pytest
from helpers.tile_files import image, mask, save
from PIL import Image

from bcss_jax.data.discovery import DataSettings
from bcss_jax.errors import DataError
from bcss_jax.labels import SCHEMES
from bcss_jax.nnunet import cases

COLORS = [(0, 0, 0), (230, 159, 0), (0, 114, 178)]


@pytest.fixture
def raw(tmp_path):
    labels = {"background": 0, "tumor": 1, "stroma": 2}
    channels = {"0": "R", "1": "G", "2": "B"}
    dataset = {"channel_names": channels, "labels": labels, "numTraining": 2, "file_ending": ".png"}
    for number in range(2):
        save(tmp_path / f"imagesTr/case_{number}_0000.png", image(number))
        (tmp_path / "labelsTr").mkdir(exist_ok=True)
        write_mask(tmp_path, number, (0, 1, 2))
    (tmp_path / "dataset.json").write_text(json.dumps(dataset))
    return tmp_path


def codes(number):
    return mask(number, codes=(0, 1, 2))


def write_mask(root, number, order):
    """Writes the mask of a case as a palette in which the codes stand in that order."""
    indexed = Image.new("P", (16, 16))
    indexed.putdata(np.argsort(order)[codes(number)].ravel().tolist())
    indexed.putpalette([value for code in order for value in COLORS[code]])
    indexed.save(root / f"labelsTr/case_{number}.png")


def found(raw):
    settings = DataSettings("nnunet", raw)
    return cases.find(settings, prepared_dir=raw / "cache", scheme=SCHEMES["tumor_stroma"]).train


def test_a_palette_is_said_once(raw, caplog):
    for case in found(raw) * 2:
        np.testing.assert_array_equal(case.read()[1], codes(int(case.name[-1])))
    assert caplog.text.count("its indices are the codes") == 2


def test_masks_whose_colors_contradict_each_other_are_refused(raw):
    write_mask(raw, 1, (0, 2, 1))
    first, second = found(raw)
    first.read()
    with pytest.raises(DataError, match="case_1.png: expected a color that stands for the same code in all masks"):
        second.read()


@pytest.mark.parametrize("has_palette", [True, False])
def test_what_was_derived_by_other_rules_of_decoding_is_not_used(raw, has_palette):
    if not has_palette:
        for number in range(2):
            Image.fromarray(codes(number)).save(raw / f"labelsTr/case_{number}.png")
    found(raw)
    (folder,) = (each for each in (raw / "cache").iterdir() if each.is_dir())
    (folder / "dataset_fingerprint.json").write_text("{}")
    found(raw)
    assert (folder / "dataset_fingerprint.json").exists()
    (folder / ".decoder").unlink()  # as earlier versions left it
    found(raw)
    assert (folder / "dataset_fingerprint.json").exists() is not has_palette and (folder / ".decoder").exists()
