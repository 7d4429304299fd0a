"""Bootstrap intervals compared with SciPy and with explicit resamples."""

import numpy as np
import pytest
from scipy import stats

from bcss_jax.errors import DataError
from bcss_jax.evaluation.statistics import bootstrap


def dice(totals):
    return 2 * totals[:, 0] / (2 * totals[:, 0] + totals[:, 1])


def case(patients=20, images=100):
    """Returns counts (true positives, errors) of images whose quality depends on the patient."""
    rng = np.random.default_rng(4)
    owner = rng.integers(0, patients, images)
    quality = rng.uniform(0.5, 0.95, patients)[owner]
    right = rng.binomial(1000, quality)
    return np.stack([right, 1000 - right], 1), np.asarray([f"patient {n}" for n in owner])


def test_the_interval_over_patients_equals_scipy():
    counts, patients = case()
    found = bootstrap.interval(counts, patients, dice)
    names = sorted(set(patients))
    per_patient = np.stack([counts[patients == name].sum(0) for name in names])

    def statistic(right, wrong, axis):
        return 2 * right.sum(axis) / (2 * right.sum(axis) + wrong.sum(axis))

    expected = stats.bootstrap(
        tuple(per_patient.T),
        statistic,
        paired=True,
        method="percentile",
        n_resamples=4000,
        rng=np.random.default_rng(1),
    ).confidence_interval
    width = expected.high - expected.low
    assert found.value == pytest.approx(dice(counts.sum(0, keepdims=True))[0], abs=1e-12)
    assert (found.low, found.high) == pytest.approx(tuple(expected), abs=0.08 * width)
    assert (found.over, found.n) == ("patients", len(names))
    images = bootstrap.interval(counts, np.arange(100).astype(str), dice)
    assert images.high - images.low < 0.8 * width  # images of a patient are not independent


def test_the_interval_equals_explicit_resamples():
    counts, patients = case(9, 30)
    names = sorted(set(patients))
    weights = np.random.Generator(np.random.PCG64(3)).multinomial(9, np.full(9, 1 / 9), size=bootstrap.RESAMPLES)
    values = []
    for row in weights:
        drawn = [n for n, times in enumerate(row) for _ in range(times)]
        assert len(drawn) == 9
        values.append(dice(sum(counts[patients == names[n]].sum(0) for n in drawn)[None])[0])
    found = bootstrap.interval(counts, patients, dice, seed=3)
    assert (found.low, found.high) == pytest.approx(tuple(np.percentile(values, [2.5, 97.5])), abs=1e-12)
    assert found == bootstrap.interval(counts, patients, dice, seed=3)
    assert found != bootstrap.interval(counts, patients, dice, seed=4)


def test_drawing_in_blocks_does_not_change_the_interval(monkeypatch):
    counts, patients = case()
    found = bootstrap.interval(counts, patients, dice)
    monkeypatch.setattr(bootstrap, "WEIGHTS_AT_ONCE", 333)
    assert bootstrap.interval(counts, patients, dice) == found


def test_few_patients_are_resampled_by_image_and_the_result_says_so():
    counts, patients = case(7, 50)
    assert len(set(patients)) == 7
    found = bootstrap.interval(counts, patients, dice)
    assert (found.over, found.n) == ("images", 50)
    patients[0] = "an eighth"
    assert bootstrap.interval(counts, patients, dice).over == "patients"


def test_means_leave_out_missing_scores():
    rng = np.random.default_rng(0)
    values = rng.random((40, 2))
    values[rng.random(values.shape) < 0.3] = np.nan
    values[:, 1] = np.nan
    patients = np.arange(40).astype(str)
    found = bootstrap.interval(bootstrap.mean_sums(values), patients, bootstrap.mean_of_sums)
    assert found.value[0] == pytest.approx(np.nanmean(values[:, 0]), abs=1e-12)
    assert found.low[0] < found.value[0] < found.high[0]
    assert np.isnan([found.value[1], found.low[1], found.high[1]]).all()
    expected = stats.bootstrap(
        (values[:, 0],), np.nanmean, method="percentile", n_resamples=4000, rng=np.random.default_rng(1)
    ).confidence_interval
    assert (found.low[0], found.high[0]) == pytest.approx(tuple(expected), abs=0.08 * (expected[1] - expected[0]))


def test_paired_differences_draw_the_same_patients():
    counts, patients = case()
    better = counts + [20, -20]
    found = bootstrap.paired_difference(better, counts, patients, dice)
    assert found.value == pytest.approx(dice(better.sum(0)[None])[0] - dice(counts.sum(0)[None])[0], abs=1e-12)
    single = bootstrap.interval(counts, patients, dice)
    assert 0 < found.low < found.value < found.high
    assert found.high - found.low < 0.1 * (single.high - single.low)  # the common variation cancels
    assert bootstrap.paired_difference(counts, counts, patients, dice)[:3] == (0, 0, 0)


def test_device_counts_do_not_overflow():
    counts = np.full((3, 2), 2**31 - 1, np.int32)
    found = bootstrap.interval(counts, ["a", "a", "b"], dice)
    assert found[:3] == pytest.approx((2 / 3,) * 3)


def test_one_image_has_no_interval_and_none_is_an_error():
    found = bootstrap.interval(np.asarray([[3, 1]]), ["a"], dice)
    assert found.value == pytest.approx(6 / 7) and np.isnan([found.low, found.high]).all() and found.n == 1
    with pytest.raises(DataError, match="found none"):
        bootstrap.interval(np.zeros((0, 2)), [], dice)
    with pytest.raises(ValueError, match="as many patients as images"):
        bootstrap.interval(np.zeros((3, 2)), ["a"], dice)
    with pytest.raises(ValueError, match="same images"):
        bootstrap.paired_difference(np.zeros((3, 2)), np.zeros((4, 2)), ["a"] * 3, dice)
