"""Preprocessing: comparison with nnU-Net's preprocessor, corner cases, errors."""

import copy
import json

import numpy as np
import pytest
from helpers.nnunet_small import real_region

from bcss_jax.errors import DataError
from bcss_jax.nnunet import make_plan
from bcss_jax.nnunet.preprocess import NORMALIZATIONS, class_locations, crop_to_nonzero, preprocess

PLAIN = {"background": 0, "tumor": 1, "stroma": 2, "necrosis": 3}
IGNORING = PLAIN | {"ignore": 4}


def plan_and_dataset(names=("R", "G", "B"), labels=PLAIN, kept=1.0):
    statistics = {"max": 251.0, "mean": 120.5, "median": 118.0, "min": 0.0, "std": 40.25}
    statistics |= {"percentile_00_5": 43.0, "percentile_99_5": 207.5}
    fingerprint = {
        "foreground_intensity_properties_per_channel": {
            str(c): {name: value + c for name, value in statistics.items()} for c in range(len(names))
        },
        "median_relative_size_after_cropping": kept,
        "shapes_after_crop": [[1, 64, 96]] * 4,
        "spacings": [[999, 1, 1]] * 4,
    }
    channels = {str(i): name for i, name in enumerate(names)}
    dataset = {"channel_names": channels, "labels": labels, "numTraining": 4, "file_ending": ".png"}
    return make_plan(fingerprint, dataset), dataset


def image_and_mask(border=0, shape=(70, 90), labels=4, seed=0):
    random = np.random.RandomState(seed)
    image = np.clip(random.normal((170, 90, 140), (50, 60, 20), (*shape, 3)), 0, 255).astype(np.uint8)
    mask = random.randint(0, labels, shape).astype(np.uint8)
    image[20:25, 30:35] = 0  # a black hole, partly background
    if border:
        image[:border] = image[:, -2 * border :] = 0
        image[-3] = 0
    return image, mask


def nnunets(image, mask, made, dataset):
    """Returns data, labels and properties from nnU-Net's preprocessor, in its layout."""
    pytest.importorskip("nnunetv2", reason="nnU-Net is not installed")
    from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    manager = PlansManager(copy.deepcopy(made))
    data = image.transpose(2, 0, 1)[:, None].astype(np.float32)
    seg = None if mask is None else mask[None, None].astype(np.float32)
    return DefaultPreprocessor(verbose=False).run_case_npy(
        data, seg, {"spacing": (999, 1, 1)}, manager, manager.get_configuration("2d"), dataset
    )


def assert_equals_nnunets(image, mask, made, dataset):
    before = image.copy(), None if mask is None else mask.copy()
    found = preprocess(image, mask, made, dataset)
    data, labels, properties = nnunets(image, mask, made, dataset)
    np.testing.assert_allclose(found.data.transpose(2, 0, 1)[:, None], data, rtol=0, atol=1e-5)
    np.testing.assert_array_equal(found.labels[None, None], labels)
    assert found.data.dtype == np.float32 and found.labels.dtype == labels.dtype
    assert found.data.flags.c_contiguous
    assert [list(extent) for extent in found.properties["bbox_used_for_cropping"]] == (
        properties["bbox_used_for_cropping"][1:]
    )
    assert found.properties["shape_before_cropping"] == tuple(properties["shape_before_cropping"][1:])
    assert ("class_locations" in found.properties) == ("class_locations" in properties)
    for key, places in properties.get("class_locations", {}).items():
        ours = found.properties["class_locations"].pop(key)
        assert ours.dtype == np.int64 and ours.shape[1:] == (2,)
        np.testing.assert_array_equal(ours, np.reshape(places, (-1, 4))[:, 2:])
    assert not found.properties.get("class_locations")
    np.testing.assert_array_equal(image, before[0])
    np.testing.assert_array_equal(mask, before[1])
    return found


@pytest.mark.parametrize("labels", [PLAIN, IGNORING], ids=["plain", "ignoring"])
@pytest.mark.parametrize("border", [0, 7])
@pytest.mark.parametrize(
    "names", [("R", "G", "B"), ("rgb_to_0_1",) * 3, ("CT", "noNorm", "rescale_to_0_1"), ("zscore", "CT", "rgb_to_0_1")]
)
@pytest.mark.parametrize("kept", [1.0, 0.5])
def test_equals_nnunet(names, border, labels, kept):
    made, dataset = plan_and_dataset(names, labels, kept)
    assert any(made["configurations"]["2d"]["use_mask_for_norm"]) == (kept < 0.75 and names[0] in ("R", "zscore"))
    image, mask = image_and_mask(border, labels=len(labels))
    found = assert_equals_nnunets(image, mask, made, dataset)
    assert (found.labels == -1).any()
    assert_equals_nnunets(image, None, made, dataset)


def test_equals_nnunet_on_real_tissue(shared):
    image, mask = real_region(shared)
    image, mask = image[200:900, 300:1100], mask[200:900, 300:1100]
    for names, labels in ((("R", "G", "B"), IGNORING), (("rgb_to_0_1",) * 3, PLAIN)):
        nnunet_mask = np.where(mask == 0, 4, np.minimum(mask, 3)).astype(np.uint8) if "ignore" in labels else mask % 4
        made, dataset = plan_and_dataset(names, labels)
        assert_equals_nnunets(image, nnunet_mask, made, dataset)


@pytest.mark.parametrize("mask_norm", [False, True])
@pytest.mark.parametrize("value", [0, 37])
def test_images_of_one_value_equal_nnunet(value, mask_norm):
    made, dataset = plan_and_dataset(kept=0.5 if mask_norm else 1)
    image, mask = np.full((20, 30, 3), value, np.uint8), np.ones((20, 30), np.uint8)
    assert_equals_nnunets(image, mask, made, dataset)


def test_many_labels_and_absent_ones_equal_nnunet():
    labels = {"background": 0} | {f"class {i}": i for i in range(1, 201)} | {"ignore": 201}
    made, dataset = plan_and_dataset(labels=labels)
    image, mask = image_and_mask(border=5)
    mask[40, 40] = 200
    assert assert_equals_nnunets(image, mask, made, dataset).labels.dtype == np.int16
    mask[:] = 201
    found = assert_equals_nnunets(image, mask, made, dataset)
    assert (found.labels == 201).all()


def test_locations_are_at_least_a_share_of_large_classes():
    mask = np.ones((1100, 1000), np.int16)
    mask[0, :30] = 2
    places = class_locations(mask, {"labels": PLAIN})
    assert {key: len(each) for key, each in places.items()} == {1: 11_000, 2: 30, 3: 0}
    assert len(np.unique(places[1], axis=0)) == 11_000 and (mask[tuple(places[2].T)] == 2).all()


def test_black_holes_are_outside_as_in_nnunet_and_all_black_images_are_whole():
    image, mask = image_and_mask()
    mask[20:23] = 0
    mask[23:25] = 1
    _, labels, box = crop_to_nonzero(image, mask)
    assert box == ((0, 70), (0, 90))
    assert (labels[20:23, 30:35] == -1).all() and (labels[23:25, 30:35] == 1).all()
    cropped, labels, box = crop_to_nonzero(np.zeros((4, 5, 3), np.uint8), None)
    assert cropped.shape == (4, 5, 3) and box == ((0, 4), (0, 5)) and (labels == -1).all()


def test_every_planned_normalization_is_supported():
    names = ("R", "rgb_to_0_1", "CT", "noNorm", "rescale_to_0_1")
    assert set(plan_and_dataset(names)[0]["configurations"]["2d"]["normalization_schemes"]) == set(NORMALIZATIONS)


@pytest.mark.parametrize(
    "change, part",
    [
        ({"image": lambda image: image[..., 0]}, "the image has the shape [70, 90]; the plan is for [H, W, 3]"),
        ({"image": lambda image: image[..., :2]}, "images with 3 channels"),
        ({"image": lambda image: image[1:]}, "the mask is uint8 [70, 90] and the image is [69, 90, 3]"),
        ({"mask": lambda mask: mask * 1.0}, "expected integers"),
        ({"mask": lambda mask: mask + 1}, "the mask has the label 4; the labels of the data set are 0 to 3"),
        ({"image": lambda image: image * 2.0}, "rgb_to_0_1 expects 0 to 255"),
        ({"spacing": [0.5, 0.5]}, "the plan has the spacing [0.5, 0.5]"),
        ({"normalization_schemes": ["Wild"] * 3}, "the normalization 'Wild'"),
    ],
)
def test_invalid_images_and_masks_are_refused(change, part):
    made, dataset = plan_and_dataset(("rgb_to_0_1",) * 3)
    image, mask = image_and_mask()
    if "image" in change:
        image = change["image"](image)
    elif "mask" in change:
        mask = change["mask"](mask)
    else:
        made["configurations"]["2d"] |= change
    with pytest.raises(DataError) as error:
        preprocess(image, mask, json.loads(json.dumps(made)), dataset)
    assert part in str(error.value) and "\n" not in str(error.value)
