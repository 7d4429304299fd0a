"""Measures how visible the seams between windows are.

The disagreement of two neighboring pixels is the sum of the absolute differences of their class probabilities, in steps
of 1/255. These are whole numbers, so that their sum does not depend on their order.

The seam score is the mean disagreement across seams, divided by the mean disagreement at places near the seams. A score
of 1 means that seams cannot be distinguished from their surroundings. There are two kinds of seams (`Windows.seams`):
handovers, where the weight passes from one window to the next, and ends, where a window begins or stops. Each kind has
its own score, and the score of the slide is the larger one. Counted together, a step at the handovers would be diluted
by the ends.
"""

import numpy as np

from bcss_jax.slides.stitching.blend import FinishedPixels
from bcss_jax.slides.windows import Windows


class SeamCounter:
    """Sums the disagreement in the pixel rows of a slide, which are added from top to bottom."""

    def __init__(self, windows: Windows, classes: int):
        """Starts with counts of zero; `classes` is K."""
        self._columns, self._rows = windows.seams(windows.width), windows.seams(windows.height)
        self._classes = classes - 1  # the last probability follows from the others, as they sum to 1
        self._width = windows.width
        # The last pixel row of the previous pixel rows, and of the current ones.
        self._above, self._below = self._empty_row(), self._empty_row()
        self._counts = no_counts()

    def _empty_row(self) -> np.ndarray:
        return np.full((self._classes, self._width), -1, np.int16)

    def add(self, top: int, piece: FinishedPixels) -> None:
        """Adds some columns of the pixel rows from `top` on; call `end_row` after the last ones of these rows."""
        height = len(piece.weights)
        kinds = self._columns[..., piece.left : piece.right - 1]
        positions = np.flatnonzero(kinds.any((0, 1)))
        first, second = (self._steps(piece.sums[..., x], piece.weights[:, x]) for x in (positions, positions + 1))
        self._count(first, second, 1, kinds[..., positions])
        kinds = self._rows[..., top : top + height - 1]
        positions = np.flatnonzero(kinds.any((0, 1)))
        first, second = (self._steps(piece.sums[:, y], piece.weights[y]) for y in (positions, positions + 1))
        self._count(first, second, 0, kinds[..., positions])
        columns = slice(piece.left, piece.right)
        if top and self._rows[..., top - 1].any():
            below_seam = self._steps(piece.sums[:, :1], piece.weights[:1])
            self._count(self._above[:, None, columns], below_seam, 0, self._rows[..., top - 1 : top])
        self._below[:, columns] = self._steps(piece.sums[:, -1], piece.weights[-1])

    def end_row(self) -> None:
        """Ends the current pixel rows; the next ones lie below them."""
        self._above, self._below = self._below, self._empty_row()

    def take(self) -> np.ndarray:
        """Returns the counts since the last call, and sets them to zero.

        Returns:
          int64 [2, 2, 2]. The first two axes are those of `Windows.seams`: the kind (handovers, ends), and whether the
          pairs are compared with (0) or at seams (1). The last axis is the sum of disagreement and the number of pairs.
        """
        counts, self._counts = self._counts, no_counts()
        return counts

    def _steps(self, sums: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """Returns probabilities in steps of 1/255, int16, or -1 where nothing was computed."""
        known = weights > 0
        with np.errstate(invalid="ignore", divide="ignore"):
            steps = np.rint(sums[: self._classes] * (np.float32(255) / weights))
        return np.where(known, steps, -1).astype(np.int16)

    def _count(self, first: np.ndarray, second: np.ndarray, axis: int, kinds: np.ndarray) -> None:
        """Adds the pairs in which both pixels were computed.

        Args:
          first: int16 [K - 1, h, w], the first pixel of each pair.
          second: int16 [K - 1, h, w], the second pixel of each pair.
          axis: 0 if the pairs differ in kind by row, 1 if by column.
          kinds: bool [2, 2, pairs], the kinds of the pairs along that axis, as in `Windows.seams`.
        """
        both = np.minimum(first, second).min(axis=0) >= 0
        disagreement = np.where(both, np.abs(first - second).sum(axis=0, dtype=np.int64), 0)
        for values, index in ((disagreement, 0), (both, 1)):
            self._counts[..., index] += kinds @ values.sum(axis=1 - axis)


def no_counts() -> np.ndarray:
    """Returns the counts of a `SeamCounter` to which nothing was added."""
    return np.zeros((2, 2, 2), np.int64)


def seam_score(counts: np.ndarray) -> dict:
    """Returns the seam score of a slide as its summary states it.

    Args:
      counts: integers [2, 2, 2], the sum of the results of `SeamCounter.take`.

    Returns:
      JSON with `score`, the higher score of the two kinds: 1 if seams cannot be distinguished from their surroundings,
      None if there are no pixels or there is no disagreement to compare with. Under `handovers` and `ends`, for each
      kind: `score`, the mean disagreement at seams divided by that near them; `at_seams` and `beside`, these means as
      differences of probability; and `pairs_at_seams`.
    """
    kinds = {name: _score_of_kind(counts[number]) for number, name in enumerate(("handovers", "ends"))}
    return {"score": max((kind["score"] for kind in kinds.values() if kind["score"] is not None), default=None)} | kinds


def _score_of_kind(counts: np.ndarray) -> dict:
    (beside, pairs), (at_seams, pairs_at_seams) = np.asarray(counts, np.int64).tolist()
    means = [
        total / number / 255 if number else None for total, number in ((beside, pairs), (at_seams, pairs_at_seams))
    ]
    score = means[1] / means[0] if means[0] and means[1] is not None else None
    return {"score": score, "at_seams": means[1], "beside": means[0], "pairs_at_seams": pairs_at_seams}
