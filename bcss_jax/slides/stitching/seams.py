"""How visible the seams between windows are: how much neighboring pixels disagree across them, and how much beside them.

Seams are of two kinds (`Windows.seams`), each compared with its own surroundings; the score is the worse of the two, since
a step where windows hand over to each other would be diluted by the places where they only begin or end.

The disagreement of two pixels is the sum of the differences of their probabilities in steps of 1/255: whole numbers, whose
sums do not depend on their order.
"""

import numpy as np

from bcss_jax.slides.stitching.blend import FinishedPixels
from bcss_jax.slides.windows import Windows


class SeamCounter:
    """Counts disagreement on the pixel rows of a slide, which come from top to bottom."""

    def __init__(self, windows: Windows, classes: int):
        """Starts with nothing; `classes` is K."""
        self._columns, self._rows = windows.seams(windows.width), windows.seams(windows.height)
        self._classes = classes - 1  # probabilities sum to 1: the last one says nothing new
        self._width = windows.width
        self._above, self._below = self._nothing(), self._nothing()  # the last pixel row before, and of those now
        self._counts = no_counts()

    def _nothing(self):
        return np.full((self._classes, self._width), -1, np.int16)

    def add(self, top: int, piece: FinishedPixels) -> None:
        """Adds some columns of the pixel rows from `top` on; `end_row` when all that were computed are there."""
        height = len(piece.weights)
        kinds = self._columns[..., piece.left : piece.right - 1]
        at = np.flatnonzero(kinds.any((0, 1)))
        first, second = (self._steps(piece.sums[..., x], piece.weights[:, x]) for x in (at, at + 1))
        self._count(first, second, 1, kinds[..., at])
        kinds = self._rows[..., top : top + height - 1]
        at = np.flatnonzero(kinds.any((0, 1)))
        first, second = (self._steps(piece.sums[:, y], piece.weights[y]) for y in (at, at + 1))
        self._count(first, second, 0, kinds[..., at])
        columns = slice(piece.left, piece.right)
        if top and self._rows[..., top - 1].any():
            here = self._steps(piece.sums[:, :1], piece.weights[:1])
            self._count(self._above[:, None, columns], here, 0, self._rows[..., top - 1 : top])
        self._below[:, columns] = self._steps(piece.sums[:, -1], piece.weights[-1])

    def end_row(self) -> None:
        """The next pixel rows lie below those that were added last."""
        self._above, self._below = self._below, self._nothing()

    def take(self) -> np.ndarray:
        """The counts since this was last asked: int64 [2, 2, 2], kinds as of `Windows.seams`, each disagreement and pairs."""
        counts, self._counts = self._counts, no_counts()
        return counts

    def _steps(self, sums, weights):
        """Probabilities in steps, int16; -1 where nothing was computed."""
        known = weights > 0
        with np.errstate(invalid="ignore", divide="ignore"):
            steps = np.rint(sums[: self._classes] * (np.float32(255) / weights))
        return np.where(known, steps, -1).astype(np.int16)

    def _count(self, first, second, axis, kinds):
        """Adds pairs of which both pixels were computed; `kinds` [2, 2, pairs] says along the axis of which kind they are."""
        both = np.minimum(first, second).min(axis=0) >= 0
        disagreement = np.where(both, np.abs(first - second).sum(axis=0, dtype=np.int64), 0)
        for counted, of in ((disagreement, 0), (both, 1)):
            self._counts[..., of] += kinds @ counted.sum(axis=1 - axis)


def no_counts() -> np.ndarray:
    """What `SeamCounter.take` gives where nothing was counted."""
    return np.zeros((2, 2, 2), np.int64)


def seam_score(counts: np.ndarray) -> dict:
    """What a summary says.

    Args:
      counts: integers [2, 2, 2], the sum of what `SeamCounter.take` gave.

    Returns:
      JSON: `score`, the higher one of both kinds (1: seams cannot be told; None: no pixels or no disagreement to compare),
      and of each kind, `handovers` and `ends`: `score`, the mean disagreement at seams over that beside them, `at_seams` and
      `beside`, those means as differences of probability, and `pairs_at_seams`.
    """
    kinds = {name: _of_kind(counts[number]) for number, name in enumerate(("handovers", "ends"))}
    return {"score": max((kind["score"] for kind in kinds.values() if kind["score"] is not None), default=None)} | kinds


def _of_kind(counts):
    (beside, pairs), (at_seams, pairs_at_seams) = np.asarray(counts, np.int64).tolist()
    means = [
        total / number / 255 if number else None for total, number in ((beside, pairs), (at_seams, pairs_at_seams))
    ]
    score = means[1] / means[0] if means[0] and means[1] is not None else None
    return {"score": score, "at_seams": means[1], "beside": means[0], "pairs_at_seams": pairs_at_seams}
