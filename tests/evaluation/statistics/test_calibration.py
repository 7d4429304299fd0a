"""Confidence counts, calibration error and temperature compared with sums pixel by pixel."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bcss_jax.errors import DataError, NumericalError
from bcss_jax.evaluation.statistics.calibration import (
    BINS,
    HIGHEST_TEMPERATURE,
    ConfidenceCounts,
    confidence_counts,
    fit_temperature,
    reliability,
)

COUNT = jax.jit(confidence_counts, static_argnums=(2, 3))


def softmax(logits):
    exp = np.exp(logits - logits.max(-1, keepdims=True))
    return exp / exp.sum(-1, keepdims=True)


def case(shape=(3, 9, 11), channels=4):
    rng = np.random.default_rng(2)
    probabilities = softmax(2 * rng.normal(size=(*shape, channels))).astype(np.float32)
    labels = rng.integers(1, channels, shape)
    labels[rng.random(shape) < 0.3] = 0
    return probabilities, labels


def brute_force(probabilities, labels, classes, ignore):
    """Returns (confidence, correct) of every pixel with ground truth, per image."""
    images = []
    for p, t in zip(probabilities.astype(np.float64), labels, strict=True):
        pixels = []
        for vector, label in zip(p.reshape(-1, p.shape[-1]), t.flat, strict=True):
            if label != ignore:
                best = max(classes, key=lambda c: vector[c])
                pixels.append((vector[best] / sum(vector[c] for c in classes), best == label))
        images.append(pixels)
    return images


@pytest.mark.parametrize(("classes", "ignore"), (((1, 2, 3), 0), ((0, 1, 2, 3), None)))
def test_counts_and_calibration_error_equal_sums_over_pixels(classes, ignore):
    probabilities, labels = case()
    counts = COUNT(probabilities, labels, classes, ignore)
    assert counts.pixels.dtype == counts.correct.dtype == jnp.int32 and counts.confidence.dtype == jnp.float32
    images = brute_force(probabilities, labels, classes, ignore)
    for n, pixels in enumerate(images):
        for b in range(BINS):
            inside = [(c, right) for c, right in pixels if b / BINS < c <= (b + 1) / BINS]
            assert (counts.pixels[n, b], counts.correct[n, b]) == (len(inside), sum(right for _, right in inside))
            assert counts.confidence[n, b] == pytest.approx(sum(c for c, _ in inside), rel=1e-6)
    pixels = sum(images, [])
    result = reliability(counts)
    ece = 0.0
    for b in range(BINS):
        inside = [(c, right) for c, right in pixels if b / BINS < c <= (b + 1) / BINS]
        assert result["curve"]["pixels"][b] == len(inside)
        if not inside:
            assert result["curve"]["accuracy"][b] is None and result["curve"]["confidence"][b] is None
            continue
        confidence, accuracy = np.mean(inside, axis=0)
        assert result["curve"]["confidence"][b] == pytest.approx(confidence, rel=1e-6)
        assert result["curve"]["accuracy"][b] == pytest.approx(accuracy, abs=1e-12)
        ece += len(inside) / len(pixels) * abs(confidence - accuracy)
    assert result["ece"] == pytest.approx(ece, rel=1e-5)


def test_predictions_at_ignored_pixels_have_no_influence():
    probabilities, labels = case()
    before = COUNT(probabilities, labels, (1, 2, 3), 0)
    other = np.where((labels == 0)[..., None], probabilities[..., ::-1], probabilities)
    assert (other != probabilities).any()
    for old, new in zip(before, COUNT(other, labels, (1, 2, 3), 0), strict=True):
        np.testing.assert_array_equal(old, new)


def test_the_sum_over_a_large_image_is_accurate():
    rng = np.random.default_rng(0)
    first = rng.uniform(0.94, 1.0, (1, 512, 512)).astype(np.float32)
    probabilities = np.stack([first, 1 - first], -1)
    found = COUNT(probabilities, np.zeros(first.shape, int), (0, 1), None)
    assert found.pixels.sum() == found.correct.sum() == first.size
    assert float(np.asarray(found.confidence, np.float64).sum()) == pytest.approx(first.sum(dtype=np.float64), rel=2e-6)


def test_extreme_probabilities():
    probabilities = np.asarray([[[[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.5, 0.5]]]], np.float32)
    counts = COUNT(probabilities, np.ones((1, 1, 3), int), (1, 2), None)
    pixels = np.zeros(BINS, int)
    pixels[-1], pixels[BINS // 2] = 1, 2  # one certain pixel and two at one half, one of them without evaluated mass
    assert counts.pixels[0].tolist() == pixels.tolist() and counts.confidence[0].sum() == 2.0


def test_no_pixels_and_broken_probabilities_are_errors():
    nothing = np.zeros(BINS, int)
    with pytest.raises(DataError, match="found none"):
        reliability(ConfidenceCounts(nothing, nothing, nothing))
    probabilities, labels = case()
    probabilities[0, 0, 0] = np.nan
    labels[0, 0, 0] = 1
    with pytest.raises(NumericalError, match="not finite"):
        reliability(COUNT(probabilities, labels, (1, 2, 3), 0))


def negative_log_likelihood(logits, labels, temperature):
    probabilities = softmax(logits / temperature)
    return -np.log(probabilities[np.arange(len(labels)), labels]).mean()


def test_temperature_minimizes_the_negative_log_likelihood():
    rng = np.random.default_rng(7)
    logits = rng.normal(size=(4000, 4)) * 2
    of_class = np.stack([rng.choice(3, p=p) for p in softmax(logits[:, 1:])])
    found = fit_temperature(3.0 * logits, of_class + 1, (1, 2, 3))
    assert found == pytest.approx(3.0, rel=0.1)  # labels were drawn from the logits before the factor 3
    best = negative_log_likelihood(3.0 * logits[:, 1:], of_class, found)
    for factor in (0.9, 0.999, 1.001, 1.1):
        assert negative_log_likelihood(3.0 * logits[:, 1:], of_class, factor * found) > best
    grid = np.linspace(2, 4, 201)
    values = [negative_log_likelihood(3.0 * logits[:, 1:], of_class, t) for t in grid]
    assert found == pytest.approx(grid[np.argmin(values)], abs=0.01)
    assert fit_temperature(logits, of_class + 1, (1, 2, 3)) == pytest.approx(found / 3, rel=1e-9)


def test_pixels_without_ground_truth_do_not_change_the_temperature():
    rng = np.random.default_rng(1)
    logits, labels = rng.normal(size=(500, 3)), rng.integers(0, 3, 500)
    known = labels > 0
    assert fit_temperature(logits, labels, (1, 2)) == fit_temperature(logits[known], labels[known], (1, 2))


def test_temperatures_without_a_minimum_end_at_the_bounds():
    logits = np.asarray([[2.0, -2.0], [-2.0, 2.0]])
    assert (
        fit_temperature(logits, [0, 1], (0, 1)) == 1 / HIGHEST_TEMPERATURE
    )  # always correct, so more confidence is always better
    assert fit_temperature(logits, [1, 0], (0, 1)) == HIGHEST_TEMPERATURE
    with pytest.raises(DataError, match="found none"):
        fit_temperature(logits, [5, 5], (0, 1))
    with pytest.raises(NumericalError, match="not finite"):
        fit_temperature(logits * np.inf, [0, 1], (0, 1))
