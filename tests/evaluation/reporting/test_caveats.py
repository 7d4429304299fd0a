"""What is said beside the figures, and when."""

import copy

import pytest
from helpers.evaluation_small import data, evaluation

from bcss_jax.evaluation.reporting.caveats import caveats
from bcss_jax.labels import SCHEMES


@pytest.fixture(scope="module")
def sound():
    """Two institutes, nine patients, a class for the rest: nothing to say."""
    return evaluation(scheme=SCHEMES["tumor_stroma_other"])[0]


def changed(found, path, value):
    result = copy.deepcopy(found)
    inner = result
    *parents, last = path.split(".")
    for name in parents:
        inner = inner[name]
    inner[last] = value
    return result


def test_a_sound_evaluation_has_none(sound):
    assert caveats(sound) == []


@pytest.mark.parametrize(
    ("path", "value", "sentence"),
    (
        ("data.layout", "sample", "say nothing about real tissue"),
        ("trained_on.layout", "sample", "Trained on the built-in sample"),
        ("trained_on", None, "not known"),
        ("trained_on.content_sha256", "other", "was not checked"),
        ("part", "train", "images that it was trained on"),
        ("data.patients_in_two_parts", 151, "institute split: 151"),
        ("scores.number.patients", 1, "of one patient"),
        ("scores.number.institutes", 1, "of one institute"),
        ("scores.intervals.over", "images", "too narrow"),
        ("scores.scores.images.tumor.missed", 2, "with tumor in which it is missed altogether: 2 of 12"),
        ("scores.scores.images.tumor.false", 3, "without tumor in which it is predicted all the same: 3"),
        ("scores.scores.images.stroma.present", 0, "No image has stroma"),
        ("temperature.in_sample", True, "evaluated images themselves"),
    ),
)
def test_each_caveat_is_named(sound, path, value, sentence):
    (found,) = caveats(changed(sound, path, value))
    assert sentence in found


def test_without_a_class_for_the_rest():
    (found,) = caveats(evaluation()[0])
    assert found.startswith("Every pixel is called tumor or stroma, whatever it shows")


def test_the_sample_in_training_and_evaluation_is_said_once(sound):
    sample = data(layout="sample", split="built-in")
    assert len(caveats(sound | {"data": sample, "trained_on": sample})) == 1


def test_no_temperature(sound):
    assert caveats(sound | {"temperature": None}) == []
