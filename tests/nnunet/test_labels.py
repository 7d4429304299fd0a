"""Tests the conversion to nnU-Net's labels for each scheme and the checks of dataset.json."""

import numpy as np
import pytest

from bcss_jax.errors import DataError
from bcss_jax.labels import SCHEMES, UNMAPPED, LabelScheme
from bcss_jax.nnunet import labels
from bcss_jax.nnunet.cases import scheme_of

EXPECTED = {
    "tumor_stroma": ({"background": 0, "tumor": 1, "stroma": 2, "ignore": 3}, {0: 3, 1: 1, 2: 2}),
    "tumor_stroma_other": ({"background": 0, "tumor": 1, "stroma": 2, "ignore": 3}, {0: 0, 1: 1, 2: 2, 255: 3}),
    "five_classes": (
        {"background": 0, "tumor": 1, "stroma": 2, "inflammatory": 3, "necrosis": 4, "other": 5, "ignore": 6},
        {0: 6, 1: 1, 2: 2, 3: 3, 4: 4, 5: 5},
    ),
    # All classes are evaluated and none is the background, which nnU-Net always has.
    "tiatoolbox_bcss": (
        {"background": 0, "tumor": 1, "stroma": 2, "inflammatory": 3, "necrosis": 4, "other": 5, "ignore": 6},
        {0: 1, 1: 2, 2: 3, 3: 4, 4: 5, 255: 6},
    ),
}
VALID = {
    "channel_names": {"0": "R", "1": "G", "2": "B"},
    "labels": {"background": 0, "tumor": 1, "stroma": 2, "ignore": 3},
    "numTraining": 7,
    "file_ending": ".png",
}


@pytest.mark.parametrize("name", SCHEMES)
def test_each_scheme_gives_the_expected_labels_and_table(name):
    expected, mapping = EXPECTED[name]
    dataset = labels.dataset_of(SCHEMES[name], 7)
    assert dataset == VALID | {"labels": expected}
    labels.check_dataset(dataset)
    assert labels.ignore_label(dataset) == len(expected) - 1 == labels.num_outputs(dataset)
    table = labels.remap_table(SCHEMES[name])
    assert table.dtype == np.uint8 and table.shape == (256,)
    assert {code: int(table[code]) for code in mapping} == mapping
    assert all(table[code] == UNMAPPED for code in set(range(256)) - set(mapping))


def test_first_class_of_a_custom_scheme_is_not_background():
    names, colors = ("tumor", "stroma", "ignored"), ((1, 2, 3), (4, 5, 6), (7, 8, 9))
    scheme = LabelScheme("custom", names, 2, (0, 1), colors, (("kaggle3", (2, 0, 1)),))
    assert labels.dataset_of(scheme, 1)["labels"] == {"background": 0, "tumor": 1, "stroma": 2, "ignore": 3}
    assert labels.remap_table(scheme)[:3].tolist() == [1, 2, 3]
    assert labels.outputs_of_labels(scheme) == [1, 2, 0]
    found = scheme_of(labels.dataset_of(scheme, 1), scheme)
    assert found.class_names == ("background", "tumor", "stroma") and found.colors[1:] == colors[:2]


@pytest.mark.parametrize("name", SCHEMES)
def test_outputs_of_the_shipped_schemes_follow_their_labels(name):
    without_background = name == "tiatoolbox_bcss"
    expected = [label + without_background for label in range(SCHEMES[name].num_classes)]
    assert labels.outputs_of_labels(SCHEMES[name]) == expected


def test_channel_names_are_written_to_the_dataset():
    dataset = labels.dataset_of(SCHEMES["tumor_stroma"], 1, ("rgb_to_0_1",) * 3)
    assert dataset["channel_names"] == {"0": "rgb_to_0_1", "1": "rgb_to_0_1", "2": "rgb_to_0_1"}


def test_dataset_without_an_ignore_label():
    dataset = VALID | {"labels": {"background": 0, "road": 1}}
    labels.check_dataset(dataset)
    assert labels.ignore_label(dataset) is None and labels.num_outputs(dataset) == 2


@pytest.mark.parametrize("name", SCHEMES)
def test_nnunet_reads_the_same_labels(name):
    handling = pytest.importorskip(
        "nnunetv2.utilities.label_handling.label_handling", reason="nnU-Net is not installed"
    )
    dataset = labels.dataset_of(SCHEMES[name], 7)
    manager = handling.LabelManager(dataset["labels"], None)
    assert manager.ignore_label == labels.ignore_label(dataset)
    assert manager.num_segmentation_heads == labels.num_outputs(dataset)


@pytest.mark.parametrize(
    "change, expected",
    [
        ({"labels": None}, "labels are None"),
        ({"labels": {}}, "labels are {}"),
        ({"labels": {"background": 0, "tumor": 1, "Ignore": 2}}, "would be a class of its own"),
        ({"labels": {"tumor": 0, "stroma": 1}}, "background is missing"),
        ({"labels": {"background": 1, "tumor": 0}}, "background is 1"),
        ({"labels": {"background": 0, "tumor": 1, "stroma": 3}}, "without gaps"),
        ({"labels": {"background": 0, "tumor": 1, "stroma": 1}}, "gaps or duplicates"),
        ({"labels": {"background": 0, "ignore": 1, "tumor": 2}}, "ignore is 1, but must be the highest"),
        ({"labels": {"background": 0, "tumor": 1, "ignore": 255}}, "without gaps"),
        ({"labels": {"background": 0, "tumor": 2, "ignore": 2}}, "ignore is 2, but must be the highest"),
        ({"labels": {"background": 0, "tumor": 1, "ignore": 0}}, "ignore is 0"),
        ({"labels": {"background": 0, "whole": [1, 2], "core": 2}}, "label 'whole' is the region [1, 2]"),
        ({"labels": {"background": 0, "tumor": "1"}}, "label 'tumor' is '1'; expected an integer"),
        ({"labels": {"0": "background", "1": "tumor"}}, "label '0' is 'background'"),
        ({"labels": {"background": 0, "ignore": 1}}, "no class except"),
        ({"channel_names": {"0": "CT"}}, "channel_names are {'0': 'CT'}; expected three"),
        ({"channel_names": None}, "channel_names are None"),
    ],
)
def test_invalid_dataset_is_refused(change, expected):
    with pytest.raises(DataError) as error:
        labels.check_dataset(VALID | change)
    assert expected in str(error.value) and "\n" not in str(error.value)
