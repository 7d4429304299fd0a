"""Automatic masks are the list of the reference, in its order."""

import dataclasses
import json

import numpy as np
import pytest
from helpers.references import FOUNDATION, foundation_case
from helpers.sam_tiny import foundation_normal, picture, sam_tiny

from bcss_jax.errors import ConfigError
from bcss_jax.prompting import Predictor
from bcss_jax.prompting.automatic import Settings, automatic_masks, crop_boxes, point_grid, stability_of
from bcss_jax.prompting.mask_boxes import boxes_of, kept_boxes
from bcss_jax.prompting.run_lengths import RunLengths
from bcss_jax.prompting.small_regions import without_small_regions

NAMES = {
    "pred_iou_thresh": "score_threshold",
    "stability_score_thresh": "stability_threshold",
    "stability_score_offset": "stability_offset",
    "box_nms_thresh": "box_threshold",
    "crop_n_layers": "crop_layers",
    "crop_nms_thresh": "crop_threshold",
    "crop_n_points_downscale_factor": "crop_points_factor",
}


@pytest.fixture(scope="module")
def values():
    foundation_case("sam_tiny")  # skips where it is missing
    return json.loads((FOUNDATION / "values.json").read_text())["sam_automatic_masks"]


@pytest.fixture(scope="module")
def tiny():
    return Predictor(sam_tiny())


@pytest.mark.parametrize("case", ["candidates", "whole", "crops"])
def test_masks_boxes_scores_and_order_are_those_of_the_reference(values, tiny, case):
    case = values["automatic"][case]
    settings = Settings(**{NAMES.get(name, name): value for name, value in case["settings"].items()})
    found = automatic_masks(tiny, picture(30, 60, 100), settings)
    assert len(found) == len(case["masks"])
    for mask, wanted in zip(found, case["masks"], strict=True):
        assert list(mask.box) == wanted["bbox"] and list(mask.crop) == wanted["crop_box"]
        assert list(mask.mask.counts[:6]) == wanted["first_counts"] and mask.mask.area == wanted["area"]
        np.testing.assert_allclose(mask.score, wanted["predicted_iou"], rtol=3e-4)
        np.testing.assert_allclose(mask.stability, wanted["stability_score"], rtol=1e-6)
        np.testing.assert_allclose(mask.point, wanted["point"])


class Disks:
    """A predictor whose masks are disks around the points, with radii of 3, 6 and 30 pixels."""

    def set_image(self, image):
        self.size = image.shape[:2]

    def low_resolution(self, points, labels, prompts):
        y, x = np.mgrid[: self.size[0], : self.size[1]]
        distance = np.hypot(x - points[:, 0, None, None], y - points[:, 1, None, None])
        logits = 20 * (np.array([3, 6, 30])[:, None, None] - distance[:, None])
        return logits.astype(np.float32), np.full((len(points), 3), 0.95, np.float32)

    def to_image(self, logits):
        return logits


def test_masks_that_the_edge_of_a_crop_cuts_off_are_dropped_but_not_those_at_the_edge_of_the_image():
    settings = Settings(points_per_side=2, crop_layers=1, crop_overlap=0.0, stability_threshold=0.5)
    found = automatic_masks(Disks(), np.zeros((160, 240, 3), np.uint8), settings)
    by_crop = {}
    for mask in found:
        by_crop.setdefault(mask.crop, []).append(mask.box)
    assert set(by_crop) == {(0, 0, 240, 160), (0, 0, 120, 80), (0, 80, 120, 80), (120, 0, 120, 80), (120, 80, 120, 80)}
    # Points of the first crop: (30, 20), (90, 20), (30, 60), (90, 60). Its edges at column 120 and row 80 lie inside of
    # the image: the disk of 30 pixels around the second point is cut off, and disks around the last two end too near.
    expected = [(28, 18, 4, 4), (25, 15, 10, 10), (1, 0, 58, 49), (88, 18, 4, 4), (85, 15, 10, 10)]
    assert by_crop[0, 0, 120, 80] == expected
    assert len(by_crop[0, 0, 240, 160]) == 12
    assert found[0].crop != (0, 0, 240, 160) and found[-1].crop == (0, 0, 240, 160)


def test_crops_and_points_are_those_of_the_reference(values):
    for name, wanted in values["crop_boxes"].items():
        size, layers = name.split("_")
        height, width = (int(side) for side in size.split("x"))
        found = crop_boxes(height, width, int(layers), Settings().crop_overlap)
        assert [(list(box), layer) for box, layer in found] == list(zip(wanted["boxes"], wanted["layer"], strict=True))
    np.testing.assert_allclose(point_grid(3), values["point_grid_3"])


def test_boxes_stay_as_in_the_reference(values):
    rs = np.random.RandomState(50)
    corner = rs.uniform(0, 60, (40, 2))
    boxes = np.concatenate([corner, corner + rs.uniform(5, 40, (40, 2))], axis=1).astype(np.float32)
    scores = rs.uniform(size=40).astype(np.float32)
    for threshold in (0.3, 0.7):
        assert kept_boxes(boxes, scores, threshold) == values["nms"][str(threshold)]


def test_equal_boxes_without_area_all_stay_and_the_first_of_equal_scores_is_better():
    assert kept_boxes(np.zeros((3, 4)), np.ones(3, np.float32), 0.7) == [0, 1, 2]
    assert kept_boxes(np.array([[0, 0, 9, 9]] * 3), np.ones(3, np.float32), 0.7) == [0]


def test_boxes_run_lengths_and_stability_of_masks_are_those_of_the_reference(values):
    masks = foundation_normal(51, 3, 20, 30) > 1.5
    masks[1] = False
    assert boxes_of(masks).tolist() == values["mask_to_box"]["boxes"]
    lengths = RunLengths.of(masks[0])
    assert list(lengths.counts[:12]) == values["mask_to_box"]["first_counts"]
    scores = stability_of(2 * foundation_normal(52, 2, 20, 30), 1.0)
    np.testing.assert_allclose(scores, values["stability"]["scores"], rtol=1e-6)
    assert np.isnan(stability_of(np.full((1, 4, 4), -9.0), 1.0)).all()


@pytest.mark.parametrize("density", [0.0, 0.1, 0.5, 1.0])
def test_run_lengths_give_the_mask_back(density):
    for seed in range(3):
        mask = np.random.RandomState(seed).uniform(size=(7, 11)) < density
        lengths = RunLengths.of(mask)
        np.testing.assert_array_equal(lengths.mask(), mask)
        assert lengths.area == mask.sum() and sum(lengths.counts) == mask.size


def test_small_holes_are_filled_and_small_islands_removed():
    mask = np.zeros((20, 20), bool)
    mask[2:12, 2:12] = True
    mask[4, 4] = mask[5, 5] = False  # one hole of two pixels, which touch at a corner
    mask[7:10, 7:10] = False
    mask[15, 15] = mask[16, 16] = True
    cleaned, changed = without_small_regions(mask, 3)
    assert changed and cleaned[4, 4] and cleaned[5, 5] and not cleaned[8, 8] and not cleaned[15, 15]
    same, changed = without_small_regions(mask, 2)
    assert not changed and (same == mask).all()
    # Of islands that are all small, the largest stays.
    islands = np.zeros((9, 9), bool)
    islands[1, 1] = islands[4, 4:7] = True
    cleaned, changed = without_small_regions(islands, 50)
    assert changed and cleaned.sum() in (3, 81)
    empty, changed = without_small_regions(np.zeros((9, 9), bool), 5)
    assert not changed and not empty.any()


def test_small_regions_of_automatic_masks_are_removed(values, tiny):
    case = values["automatic"]["candidates"]
    settings = Settings(**{NAMES.get(name, name): value for name, value in case["settings"].items()})
    settings = dataclasses.replace(settings, smallest_region=12)
    for mask in automatic_masks(tiny, picture(30, 60, 100), settings):
        pixels = mask.mask.mask()
        assert not without_small_regions(pixels, 12)[1]
        x, y, width, height = mask.box
        assert boxes_of(pixels[None])[0].tolist() == [x, y, x + width, y + height]


def test_settings_that_cannot_work_are_refused_before_anything_is_predicted(tiny):
    for settings in (
        Settings(points_per_side=2, crop_layers=2, crop_points_factor=2),
        Settings(points_per_batch=0),
        Settings(crop_overlap=1.0),
        Settings(crop_layers=-1),
    ):
        with pytest.raises(ConfigError, match="automatic masks"):
            automatic_masks(tiny, picture(30, 60, 100), settings)
