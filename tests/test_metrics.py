"""Metrics equal stored reference values and a brute-force count."""

import math

import numpy as np
import pytest
from helpers.loss_cases import CASES, case, report_case

from bcss_jax import metrics


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("over", ("all", "1plus"))
def test_metrics_equal_stored_values(shared, name, over):
    values, logits, labels, ignore = case(shared, name)
    expected = values[f"metrics_argmax_{over}"]
    predictions = metrics.predict(logits, None if over == "all" else (1, 2))
    # A label that is not one of the logits (255, 3) is ignored and not counted.
    counts = np.asarray(metrics.confusion(predictions, labels, 3, ignore))
    scores = metrics.scores(counts, 2, ("zero", "one", "two"), (1, 2))
    np.testing.assert_allclose(metrics.dice(counts.sum(0), (1, 2)), expected["dice_global_class"], rtol=0, atol=1e-12)
    np.testing.assert_allclose(metrics.iou(counts.sum(0), (1, 2)), expected["iou_global_class"], rtol=0, atol=1e-12)
    assert scores["dice_global"]["macro"] == pytest.approx(expected["macro_dice_global"], abs=1e-12)
    assert scores["iou_global"]["macro"] == pytest.approx(expected["macro_iou_global"], abs=1e-12)
    assert scores["dice_image"]["macro"] == pytest.approx(expected["macro_dice_per_image_nanmean"], abs=1e-12)
    assert scores["dice_batch"] == scores["dice_global"]  # one batch holds both images


def brute_force(predictions, labels, ignore, classes):
    """Returns Dice and IoU per image and class, counted pixel by pixel."""
    dice, iou = [], []
    for p, t in zip(predictions, labels, strict=True):
        for values, formula in ((dice, lambda a, b: 2 * a / (2 * a + b)), (iou, lambda a, b: a / (a + b))):
            row = []
            for c in classes:
                both = sum(1 for x, y in zip(p.flat, t.flat, strict=True) if y != ignore and x == c and y == c)
                one = sum(1 for x, y in zip(p.flat, t.flat, strict=True) if y != ignore and (x == c) != (y == c))
                row.append(formula(both, one) if both + one else math.nan)
            values.append(row)
    return np.asarray(dice), np.asarray(iou)


@pytest.mark.parametrize("ignore", (0, 255))
def test_metrics_equal_brute_force_on_random_masks(ignore):
    rng = np.random.default_rng(3)
    labels = rng.integers(1, 5, (5, 6, 7))
    labels[rng.random(labels.shape) < 0.3] = ignore
    labels[0][labels[0] == 3] = 1  # a class that is missing from an image
    predictions = rng.integers(1, 5, labels.shape)
    predictions[0][predictions[0] == 3] = 2
    counts = np.asarray(metrics.confusion(predictions, labels, 5, ignore))
    assert counts.dtype == np.int32 and counts.sum() == (labels != ignore).sum()
    dice, iou = brute_force(predictions, labels, ignore, (1, 2, 3, 4))
    np.testing.assert_allclose(metrics.dice(counts, (1, 2, 3, 4)), dice, rtol=0, atol=1e-12)
    np.testing.assert_allclose(metrics.iou(counts, (1, 2, 3, 4)), iou, rtol=0, atol=1e-12)
    scores = metrics.scores(counts, 2, tuple("abcde"), (1, 2, 3, 4))
    assert scores["dice_image"]["macro"] == pytest.approx(np.nanmean(dice, 0).mean(), abs=1e-12)
    batches = np.stack([counts[:2].sum(0), counts[2:4].sum(0), counts[4:].sum(0)])
    assert scores["iou_batch"]["b"] == pytest.approx(np.nanmean(metrics.iou(batches, (1,))), abs=1e-12)


@pytest.mark.parametrize("name", ("seed1", "seed2"))
def test_scores_of_a_batch_equal_those_of_the_report(shared, name):
    expected, logits, labels = report_case(shared, name)
    counts = metrics.confusion(metrics.predict(logits), labels, 3, 255)
    found = metrics.report_scores(counts, ("other", "tumor", "stroma"), (1, 2))
    for measure, theirs, mean in (("dice", "Dice_Class_{}", "mDice"), ("iou", "class_{}_iou", "mIoU")):
        wanted = {"tumor": theirs.format(1), "stroma": theirs.format(2), "macro": mean}
        wanted = {key: pytest.approx(expected[measure][value], abs=1e-7) for key, value in wanted.items()}
        assert found[f"{measure}_report"] == wanted


def test_the_report_averages_over_batches_of_128_images_in_which_an_absent_class_scores_one():
    counts = np.zeros((130, 3, 3), np.int64)
    counts[:128, 0, 0] = 5  # one batch with other tissue alone
    counts[128:, 1] = [3, 1, 0]  # and one with tumor, three quarters of it called other tissue
    found = metrics.report_scores(counts, ("other", "tumor", "stroma"), (1, 2))
    dice, iou = 2 * 2 / (2 * 2 + 6), 1 / 4
    assert found["dice_report"] == pytest.approx({"tumor": (1 + dice) / 2, "stroma": 1, "macro": (3 + dice) / 4})
    assert found["iou_report"] == pytest.approx({"tumor": (1 + iou) / 2, "stroma": 1, "macro": (3 + iou) / 4})
    # As one batch it would be another number, and the class that is nowhere none at all.
    assert metrics.scores(counts, 130, tuple("abc"), (1, 2))["dice_batch"] == {"b": dice, "c": None, "macro": dice}


def test_absent_missed_and_falsely_predicted_classes_are_counted_separately():
    labels = np.asarray([[[1, 1]], [[2, 2]], [[1, 1]]])
    predictions = np.asarray([[[1, 1]], [[1, 1]], [[1, 2]]])
    scores = metrics.scores(
        metrics.confusion(predictions, labels, 4, 0), 1, ("ignored", "tumor", "stroma", "fat"), (1, 2, 3)
    )
    assert scores["images"]["tumor"] == {"present": 2, "missed": 0, "absent": 0, "false": 1}
    assert scores["images"]["stroma"] == {"present": 1, "missed": 1, "absent": 1, "false": 1}
    assert scores["images"]["fat"] == {"present": 0, "missed": 0, "absent": 3, "false": 0}
    assert scores["dice_global"]["fat"] is None  # without pixels there is no score, neither 0 nor 1
    assert scores["dice_global"]["stroma"] == 0.0
    assert scores["dice_global"]["macro"] == pytest.approx((scores["dice_global"]["tumor"] + 0.0) / 2)


def test_predictions_are_chosen_among_the_evaluated_classes():
    logits = np.asarray([[9.0, 1.0, 2.0], [9.0, 3.0, 2.0]])
    assert metrics.predict(logits).tolist() == [0, 0]
    assert metrics.predict(logits, (1, 2)).tolist() == [2, 1]


def test_sums_of_counts_may_exceed_int32():
    counts = np.full((3, 2, 2), 2**31 - 1, np.int32)
    scores = metrics.scores(counts, 3, ("a", "b"), (0, 1))
    assert scores["dice_global"]["macro"] == pytest.approx(0.5)
