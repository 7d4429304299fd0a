"""The seam score, compared with a count of all pairs of a whole array."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from bcss_jax.slides.stitching.blend import FinishedPixels
from bcss_jax.slides.stitching.seams import SeamCounter, no_counts, seam_score
from bcss_jax.slides.windows import windows_of


def counted(windows, sums, weights, cuts):
    seams = SeamCounter(windows, len(sums))
    total = no_counts()
    for top, end in zip([0, *cuts], [*cuts, windows.height], strict=True):
        columns = (weights[top:end] > 0).any(0)
        ends = np.flatnonzero(np.diff(columns, prepend=False, append=False)).reshape(-1, 2)
        for x0, x1 in ends.tolist():
            seams.add(top, FinishedPixels(x0, x1, sums[:, top:end, x0:x1], weights[top:end, x0:x1]))
        seams.end_row()
        total += seams.take()
    return total


def all_pairs(windows, sums, weights):
    with np.errstate(invalid="ignore", divide="ignore"):
        steps = np.rint(sums[:-1] * (np.float32(255) / weights))
    total = no_counts()
    across, down = windows.seams(windows.width), windows.seams(windows.height)
    for y in range(windows.height):
        for x in range(windows.width):
            for (v, u), seams in (((y, x + 1), across), ((y + 1, x), down)):
                if v >= windows.height or u >= windows.width or not weights[y, x] * weights[v, u]:
                    continue
                for kind in np.ndindex(2, 2):
                    if seams[kind][x if v == y else y]:
                        total[kind] += int(np.abs(steps[:, y, x] - steps[:, v, u]).sum()), 1
    return total


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(2, 3), st.integers(0, 2**32 - 1), st.data())
def test_counts_equal_those_of_all_pairs_for_any_split_into_rows(height, width, classes, seed, data):
    windows = windows_of(height, width, 12, 0.25)
    rng = np.random.default_rng(seed)
    weights = rng.integers(0, 4, (height, width)).astype(np.float32)
    weights[:, rng.random(width) < 0.3] = 0
    sums = rng.dirichlet(np.ones(classes), (height, width)).transpose(2, 0, 1).astype(np.float32) * weights
    cuts = sorted(data.draw(st.sets(st.integers(1, height - 1), max_size=4))) if height > 1 else []
    np.testing.assert_array_equal(counted(windows, sums, weights, cuts), all_pairs(windows, sums, weights))


def test_a_step_at_the_seams_is_seen_and_a_smooth_image_is_not():
    windows = windows_of(400, 400, 64, 0.25)
    y, x = np.mgrid[:400, :400] / 400
    smooth = ((np.sin(30 * x) + np.cos(25 * y)) / 8 + 0.5).astype(np.float32)
    weights = np.ones_like(smooth)
    score = seam_score(counted(windows, np.stack([smooth, 1 - smooth]), weights, []))
    assert abs(score["score"] - 1) < 0.1 and score["score"] == max(
        score[kind]["score"] for kind in ("handovers", "ends")
    )
    cells = np.random.default_rng(0).random((9, 9)).astype(np.float32) / 10
    for kind, shift in (("handovers", 0), ("ends", windows.margin)):  # steps at these seams only
        stepped = smooth + np.roll(np.kron(cells, np.ones((48, 48), np.float32)), shift, (0, 1))[:400, :400]
        score = seam_score(counted(windows, np.stack([stepped, 1 - stepped]), weights, []))
        assert score["score"] == score[kind]["score"] > 1.5
    assert score["handovers"]["score"] < 1.1


def test_there_is_no_score_without_pixels():
    windows = windows_of(20, 20, 12, 0.25)
    assert (
        seam_score(counted(windows, np.zeros((2, 20, 20), np.float32), np.zeros((20, 20), np.float32), []))["score"]
        is None
    )
