"""HD95 and normalized surface Dice compared with the distances of all pairs of pixels and with MONAI."""

import math

import numpy as np
import pytest

from bcss_jax.evaluation.statistics.surface_distance import surface_score, surface_scores


def blobs(rng, shape, size=4, share=0.5):
    """Returns a random mask of squares, which has borders like tissue and not like noise."""
    coarse = rng.random((shape[0] // size + 1, shape[1] // size + 1)) < share
    return np.kron(coarse, np.ones((size, size), bool))[: shape[0], : shape[1]]


def border_pixels(mask, ignored, other):
    """Returns all border pixels and those that are counted, found pixel by pixel."""
    every, counted = [], []
    height, width = mask.shape
    for y, x in zip(*np.nonzero(mask & ~ignored), strict=True):
        sure = unsure = False
        for v, u in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)):
            if not (0 <= v < height and 0 <= u < width):
                sure = True
            elif ignored[v, u]:
                unsure = True
            elif not mask[v, u]:
                sure = True
        if sure or unsure:
            every.append((y, x))
        if sure or (unsure and not other[y, x]):
            counted.append((y, x))
    return np.asarray(every, float).reshape(-1, 2), np.asarray(counted, float).reshape(-1, 2)


def brute_force(truth, prediction, ignored, mpp, tolerance):
    t, p = truth & ~ignored, prediction & ~ignored
    if not t.any() and not p.any():
        return math.nan, math.nan
    if not t.any() or not p.any():
        return math.hypot(*t.shape) * mpp, 0.0
    all_t, counted_t = border_pixels(t, ignored, p)
    all_p, counted_p = border_pixels(p, ignored, t)

    def nearest(points, targets):
        return mpp * np.sqrt(((points[:, None] - targets[None]) ** 2).sum(-1)).min(1) if len(points) else np.zeros(0)

    there, back = nearest(counted_t, all_p), nearest(counted_p, all_t)
    if not len(there) and not len(back):
        return 0.0, 1.0
    percentiles = [np.percentile(each, 95) for each in (there, back) if len(each)]
    return max(percentiles), float(np.mean(np.concatenate([there, back]) <= tolerance))


def random_case(seed):
    rng = np.random.default_rng(seed)
    shape = (int(rng.integers(5, 26)), int(rng.integers(5, 26)))
    share = rng.choice([0.05, 0.4, 0.6, 0.95])
    truth, prediction = blobs(rng, shape, share=share), blobs(rng, shape, 3, share)
    prediction = np.where(rng.random(shape) < 0.9, truth, prediction) if rng.random() < 0.5 else prediction
    return truth, prediction, blobs(rng, shape, 5, rng.choice([0, 0.2, 0.5])), rng


@pytest.mark.parametrize("part", range(4))
def test_equals_the_distances_of_all_pairs(part):
    for seed in range(60 * part, 60 * part + 60):
        truth, prediction, ignored, rng = random_case(seed)
        mpp, tolerance = float(rng.choice([0.25, 0.5, 0.2277])), float(rng.choice([0.0, 0.5, 1.0]))
        found = surface_score(truth, prediction, ignored, mpp=mpp, tolerance_um=tolerance)
        np.testing.assert_allclose(
            found, brute_force(truth, prediction, ignored, mpp, tolerance), rtol=0, atol=1e-12, err_msg=str(seed)
        )


def test_pixels_without_ground_truth_have_no_influence():
    changed = 0
    for seed in range(200):
        truth, prediction, ignored, rng = random_case(seed)
        before = surface_score(truth, prediction, ignored, mpp=0.25, tolerance_um=0.5)
        noise = rng.random(truth.shape) < 0.5
        other = np.where(ignored, noise, prediction)
        changed += (other != prediction).any()
        after = surface_score(np.where(ignored, ~noise, truth), other, ignored, mpp=0.25, tolerance_um=0.5)
        np.testing.assert_equal(after, before, err_msg=str(seed))
    assert changed > 50


def test_equals_monai():
    monai = pytest.importorskip("monai.metrics", reason="MONAI is not installed")
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    compared = 0
    for seed in range(60):
        truth, prediction, _, _ = random_case(seed)
        if not (truth.any() and prediction.any()):
            continue
        y, y_pred = (torch.from_numpy(mask[None, None]).float() for mask in (truth, prediction))
        kwargs = {"include_background": True, "spacing": 0.25}
        hd95 = float(monai.compute_hausdorff_distance(y_pred, y, percentile=95, **kwargs))
        nsd = float(monai.compute_surface_dice(y_pred, y, [0.5], **kwargs))
        found = surface_score(truth, prediction, np.zeros_like(truth), mpp=0.25, tolerance_um=0.5)
        np.testing.assert_allclose(found, (hd95, nsd), rtol=1e-5, err_msg=str(seed))  # MONAI computes in float32
        compared += 1
    assert compared > 40


def test_a_known_shift():
    truth, prediction = np.zeros((2, 40, 40), bool)
    truth[10:20, 10:20], prediction[10:20, 14:24] = True, True
    ignored = np.zeros_like(truth)
    assert surface_score(truth, prediction, ignored, mpp=0.5, tolerance_um=2.0) == (2.0, 1.0)
    assert surface_score(truth, prediction, ignored, mpp=0.5, tolerance_um=1.9).nsd < 1.0
    assert surface_score(truth, truth, ignored, mpp=0.5, tolerance_um=0.0) == (0.0, 1.0)


def test_absent_missed_and_falsely_predicted_classes():
    empty, mask = np.zeros((30, 40), bool), np.zeros((30, 40), bool)
    mask[5:9, 5:9] = True
    score = {"mpp": 0.5, "tolerance_um": 1.0}
    assert np.isnan(surface_score(empty, empty, empty, **score)).all()
    assert surface_score(mask, empty, empty, **score) == (25.0, 0.0)  # the diagonal of 30 x 40 pixels
    assert surface_score(empty, mask, empty, **score) == (25.0, 0.0)
    assert np.isnan(surface_score(mask, mask, ~empty, **score)).all()  # no pixel has truth


def test_the_outline_of_the_annotated_area_does_not_count():
    """A square without ground truth in its right half: only those sides count where the masks can differ."""
    truth, ignored = np.zeros((2, 40, 40), bool)
    truth[10:30, 10:30], ignored[:, 20:] = True, True
    prediction = truth.copy()
    prediction[10:30, 10:12] = False  # the left side is two pixels off
    score = surface_score(truth, prediction, ignored, mpp=1.0, tolerance_um=0.0)
    assert score.hd95_um == 2.0
    # Counted: upper, lower and left side, 38 pixels of ground truth and 34 predicted ones. Outside the tolerance: 22 of
    # ground truth and 18 predicted ones (the predicted corners lie on the true upper and lower side).
    assert score.nsd == pytest.approx(1 - (22 + 18) / (38 + 34), abs=1e-12)


def test_a_missed_island_in_an_area_without_ground_truth_is_found():
    labels = np.zeros((30, 30), int)  # 0: no truth
    labels[2:8, 2:8], labels[20:28, 20:28] = 1, 2
    predictions = np.ones_like(labels)
    predictions[20:28, 20:28] = 2
    perfect = surface_scores(labels, predictions, (1, 2), 0, mpp=0.25, tolerance_um=1.0)
    assert perfect.hd95_um.tolist() == [0, 0] and perfect.nsd.tolist() == [1, 1]
    labels[2:8, 14:20] = 1
    predictions[2:8, 14:20] = 2
    missed = surface_scores(labels, predictions, (1, 2), 0, mpp=0.25, tolerance_um=1.0)
    assert (missed.hd95_um > 1.5).all() and (missed.nsd < 1).all()


def test_equal_masks_have_perfect_scores():
    for seed in range(100):
        truth, _, ignored, _ = random_case(seed)
        found = surface_score(truth, truth, ignored, mpp=0.25, tolerance_um=0.0)
        assert found == (0.0, 1.0) if (truth & ~ignored).any() else np.isnan(found).all()


def test_classes_are_scored_one_by_one_and_every_pixel_counts_without_an_ignored_label():
    rng = np.random.default_rng(5)
    labels, predictions = rng.integers(0, 3, (2, 12, 13))
    found = surface_scores(labels, predictions, (0, 2), None, mpp=0.5, tolerance_um=0.5)
    nothing = np.zeros(labels.shape, bool)
    for i, c in enumerate((0, 2)):
        expected = brute_force(labels == c, predictions == c, nothing, 0.5, 0.5)
        np.testing.assert_allclose((found.hd95_um[i], found.nsd[i]), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("wrong", ({"mpp": 0.0}, {"mpp": math.nan}, {"tolerance_um": -1.0}))
def test_arguments_out_of_range(wrong):
    mask = np.ones((4, 4), bool)
    with pytest.raises(ValueError, match="mpp must be above 0"):
        surface_score(mask, mask, ~mask, **{"mpp": 0.25, "tolerance_um": 1.0, **wrong})
    with pytest.raises(ValueError, match="one shape"):
        surface_score(mask, mask[:3], ~mask, mpp=0.25, tolerance_um=1.0)
