import math
from typing import Any

import pytest

from bcss_jax.pretraining.collapse import collapse

MOST = math.log(64)
HEALTHY = {"teacher_entropy": 0.5 * MOST, "prototype_entropy": 0.9 * MOST, "kl": 0.5, "feature_deviation": 0.1}
LIMITS: dict[str, Any] = {"after_epoch": 2, "prototypes": 64, "features": 100}


def rows(*changes):
    return [{"epoch": number + 1, **HEALTHY, **change} for number, change in enumerate(changes)]


@pytest.mark.parametrize(
    "change,found",
    [
        ({"teacher_entropy": MOST, "kl": 1e-4}, "all prototypes equally likely"),
        ({"prototype_entropy": 0.01}, "the same prototype"),
        ({"feature_deviation": 1e-4}, "the same features"),
        ({"teacher_entropy": MOST, "kl": 0.5}, None),  # the student has not learned to agree
        ({"teacher_entropy": 0.01}, None),  # sure, but not of the same prototype
        ({"feature_deviation": None}, None),
    ],
)
def test_collapse(change, found):
    said = collapse(rows({}, {}, change, change, change), **LIMITS)
    assert (said is None) if found is None else (found in said)


def test_early_and_single_epochs_do_not_count():
    change = {"feature_deviation": 1e-4}
    assert collapse(rows(change, change, change, change), **LIMITS) is None
    assert collapse(rows({}, {}, change, change, {}), **LIMITS) is None
    assert collapse([], **LIMITS) is None


@pytest.mark.parametrize(
    "change,found",
    [
        ({"teacher_entropy": MOST, "kl": 1e-4}, None),
        ({"prototype_entropy": 0.01}, None),
        ({"feature_deviation": 1e-4}, "the same features"),
        ({"teacher_entropy": MOST, "kl": 1e-4, "prototype_entropy": 0.01, "feature_deviation": 1e-4}, "same features"),
    ],
)
def test_with_visual_words_only_equal_features_end_a_run(change, found):
    said = collapse(rows({}, {}, change, change, change), **LIMITS, words=True)
    assert (said is None) if found is None else (found in said)
