"""The caveats of an evaluation, and when each one applies."""

import copy

import pytest
from helpers.evaluation_small import data, evaluation

from bcss_jax.evaluation.reporting.caveats import caveats
from bcss_jax.labels import SCHEMES


@pytest.fixture(scope="module")
def sound():
    """An evaluation without caveats: two institutes, nine patients, and a class for other tissue."""
    return evaluation(scheme=SCHEMES["tumor_stroma_other"])[0]


def changed(found, path, value):
    result = copy.deepcopy(found)
    inner = result
    *parents, last = path.split(".")
    for name in parents:
        inner = inner[name]
    inner[last] = value
    return result


def test_a_sound_evaluation_has_no_caveats(sound):
    assert caveats(sound) == []


@pytest.mark.parametrize(
    ("path", "value", "sentence"),
    (
        ("data.layout", "sample", "say nothing about real tissue"),
        ("trained_on.layout", "sample", "Trained on the built-in sample"),
        ("trained_on", None, "training data are not known"),
        ("trained_on.content_sha256", "other", "was not checked"),
        ("part", "train", "on the images that it was trained on"),
        ("data.patients_in_two_parts", 151, "institute split): 151"),
        ("scores.number.patients", 1, "from one patient"),
        ("scores.number.institutes", 1, "from one institute"),
        ("scores.intervals.over", "images", "too narrow"),
        ("scores.scores.images.tumor.missed", 2, "with tumor in which no pixel of it is found: 2 of 12"),
        ("scores.scores.images.tumor.false", 3, "without tumor in which tumor is predicted: 3"),
        ("scores.scores.images.stroma.present", 0, "No image contains stroma"),
        ("temperature.in_sample", True, "on pixels of the evaluated images"),
    ),
)
def test_each_caveat_is_named(sound, path, value, sentence):
    (found,) = caveats(changed(sound, path, value))
    assert sentence in found


def test_without_a_class_for_other_tissue():
    (found,) = caveats(evaluation()[0])
    assert found.startswith("Every pixel is predicted as tumor or stroma: there is no class for other tissue")


def test_training_and_evaluation_on_the_sample_give_one_caveat(sound):
    sample = data(layout="sample", split="built-in")
    assert len(caveats(sound | {"data": sample, "trained_on": sample})) == 1


def test_an_evaluation_without_a_temperature(sound):
    assert caveats(sound | {"temperature": None}) == []
