"""Windows on a slide and the blending of their predictions, compared with whole arrays."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bcss_jax.errors import ConfigError
from bcss_jax.slides.stitching import blend
from bcss_jax.slides.windows import BLENDS, cut_window, windows_of

sizes = st.tuples(st.integers(1, 60), st.integers(1, 60), st.integers(2, 24), st.sampled_from([0, 0.25, 0.5, 0.7]))


def blended(windows, weights, predictions, chosen, first_row=0):
    """Returns the finished pixel rows (first, last + 1) of each row of windows, and the joined sums and weights."""
    blender = blend.Blender(windows, weights, predictions.shape[2], first_row)
    shape = windows.height, windows.width
    sums, total, ends = np.zeros((predictions.shape[2], *shape), np.float32), np.zeros(shape, np.float32), []
    for row in range(first_row, windows.rows):
        pieces = []
        for column in range(windows.columns):
            if chosen[row, column]:
                pieces += blender.add(row, column, predictions[row, column])
        pieces += blender.finish(row)
        first, end = windows.finished_rows(row)
        ends.append((first, end))
        for piece in pieces:
            assert piece.weights.shape == (end - first, piece.right - piece.left)
            assert not total[first:end, piece.left : piece.right].any()
            sums[:, first:end, piece.left : piece.right] = piece.sums
            total[first:end, piece.left : piece.right] = piece.weights
    return ends, sums, total


@pytest.fixture(autouse=True, params=(8, 8192))
def lane(request, monkeypatch):
    """Tests with a narrow lane too, so that small slides run through the same code as large ones."""
    monkeypatch.setattr(blend, "LANE", request.param)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sizes, st.integers(0, 2**32 - 1), st.sampled_from(BLENDS))
def test_rows_are_the_sums_over_all_windows(size, seed, how):
    height, width, side, overlap = size
    windows = windows_of(height, width, side, overlap)
    weights = blend.blend_weights(windows, how)
    rng = np.random.default_rng(seed)
    # Sums of small integers are exact in any order.
    predictions = rng.integers(0, 8, (windows.rows, windows.columns, 2, side, side)).astype(np.float32)
    chosen = rng.random((windows.rows, windows.columns)) < 0.7
    counting = (weights > 0).astype(np.float32)
    ends, sums, total = blended(windows, counting, predictions * counting, chosen)
    margin = side + windows.stride
    expected = np.zeros((2, height + 2 * margin, width + 2 * margin), np.float32)
    times = np.zeros(expected.shape[1:], np.float32)
    for row, column in zip(*chosen.nonzero(), strict=True):
        y, x = (start + margin for start in windows.corner(row, column))
        expected[:, y : y + side, x : x + side] += predictions[row, column] * counting
        times[y : y + side, x : x + side] += counting
    inside = slice(margin, margin + height), slice(margin, margin + width)
    np.testing.assert_array_equal(sums, expected[:, *inside])
    np.testing.assert_array_equal(total, times[inside])
    assert ends[0][0] == 0 and ends[-1][1] == height
    assert all(before[1] == after[0] for before, after in zip(ends, ends[1:], strict=False))


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sizes, st.integers(0, 2**32 - 1), st.data())
def test_resuming_at_a_pixel_row_gives_the_same_bits(size, seed, data):
    height, width, side, overlap = size
    windows = windows_of(height, width, side, overlap)
    weights = blend.blend_weights(windows, "gaussian")
    rng = np.random.default_rng(seed)
    predictions = rng.random((windows.rows, windows.columns, 2, side, side), np.float32) * weights
    chosen = rng.random((windows.rows, windows.columns)) < 0.8
    _, sums, total = blended(windows, weights, predictions, chosen)
    y = data.draw(st.integers(0, height - 1))
    first, end = windows.finished_rows(windows.row_that_finishes(y))
    assert first <= y < end
    _, resumed, resumed_total = blended(windows, weights, predictions, chosen, windows.first_row_that_changes(y))
    np.testing.assert_array_equal(resumed[:, y:], sums[:, y:])
    np.testing.assert_array_equal(resumed_total[y:], total[y:])


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sizes)
def test_all_windows_cover_every_pixel_and_weights_cancel(size):
    height, width, side, overlap = size
    windows = windows_of(height, width, side, overlap)
    for how in BLENDS:
        weights = blend.blend_weights(windows, how)
        value = np.full((windows.rows, windows.columns, 1, side, side), 0.25, np.float32) * weights
        _, sums, total = blended(windows, weights, value, np.ones((windows.rows, windows.columns), bool))
        assert (total > 0).all()
        np.testing.assert_allclose(sums[0] / total, 0.25, atol=1e-6)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sizes)
def test_windows_beyond_the_edge_are_reflected(size):
    height, width, side, overlap = size
    windows = windows_of(height, width, side, overlap)
    slide = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)

    def reflected(i, length):  # reflects step by step
        while not 0 <= i < length:
            i = 0 if length == 1 else -i if i < 0 else 2 * (length - 1) - i
        return i

    for row in (0, windows.rows - 1):
        for column in (0, windows.columns - 1):
            y, x = windows.corner(row, column)
            low, high = max(y, 0), min(y + side, height)
            left, right = max(x, 0), min(x + side, width)
            found = cut_window(slide[low:high, left:right], (y, x), side, (low, left), slide.shape[:2])
            ys = [low + reflected(i - low, high - low) for i in range(y, y + side)]
            xs = [left + reflected(i - left, right - left) for i in range(x, x + side)]
            np.testing.assert_array_equal(found, slide[np.ix_(ys, xs)])


def test_seams_are_at_handovers_and_where_windows_begin_or_end():
    windows = windows_of(100, 50, 8, 0.25)
    assert (windows.size, windows.stride, windows.margin, windows.columns) == (8, 6, 1, 9)
    corners = [windows.corner(0, column)[1] for column in range(windows.columns)]
    inside = set(range(1, 50))
    handovers = {x + 1 for x in corners} & inside
    ends = {*corners, *(x + 8 for x in corners)} & inside - handovers
    assert handovers and ends
    for (nearby, seams), expected in zip(windows.seams(50), (handovers, ends), strict=True):
        assert set((np.flatnonzero(seams) + 1).tolist()) == expected
        near = {x + step for x in expected for step in (-16, 16)} & inside - handovers - ends
        assert set((np.flatnonzero(nearby) + 1).tolist()) == near
    assert windows.seams(1).shape == (2, 2, 0)


@pytest.mark.parametrize("overlap", (-0.1, 0.8, float("nan")))
def test_an_overlap_out_of_range_is_refused(overlap):
    with pytest.raises(ConfigError, match="--overlap="):
        windows_of(10, 10, 8, overlap)
