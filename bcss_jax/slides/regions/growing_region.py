"""What there is of a region that may still grow, most of it in a temporary file."""

import itertools
from collections.abc import Iterable, Iterator

import numpy as np

from bcss_jax.slides.regions.corners import CONVEX, DOWN, PLACE, places
from bcss_jax.slides.regions.rings import joined
from bcss_jax.slides.regions.spill import Spill

_TOGETHER = 1 << 15  # points of a ring that are given at a time


class GrowingRegion:
    """A region so far: rings that have closed, which are holes, and pieces of others.

    Attributes:
      first: its first corner.
      pixels: inside its rings and pieces.
      corners: how many it has.
      pieces: int64 [n, 5], as in `rings.Band`, but where their points are in the file, in arrays.
      links: int64 [n, 3], likewise, in arrays.
    """

    __slots__ = ("_blocks", "corners", "first", "links", "pieces", "pixels")

    def __init__(self):
        """Begins with nothing."""
        self.first, self.pixels, self.corners = np.iinfo(np.int64).max, 0, 0
        self._blocks: list[tuple[int, int, int, int]] = []  # where lengths of rings are, how many; the same of points
        self.pieces: list[np.ndarray] = []
        self.links: list[np.ndarray] = []

    def take(self, other: "GrowingRegion") -> None:
        """Takes what another has, which has turned out to be the same region."""
        self.add(other.first, other.pixels, other.corners)
        for name in ("_blocks", "pieces", "links"):
            mine, others = getattr(self, name), getattr(other, name)
            if len(mine) < len(others):
                mine, others = others, mine
            mine.extend(others)
            setattr(self, name, mine)

    def add(self, first: int, pixels: int, corners: int) -> None:
        """Counts what a part of the slide adds."""
        self.first, self.pixels, self.corners = min(self.first, first), self.pixels + pixels, self.corners + corners

    def put_rings(self, part: int, points: np.ndarray, lengths: np.ndarray, spill: Spill) -> None:
        """Puts closed rings aside.

        Args:
          part: number of the part of the slide; all first corners come before those of later parts.
          points: int32 [n, 2], those of one ring after those of the other.
          lengths: int64 [r], points of each.
          spill: where to put them; OSError if the disk is full.
        """
        if len(lengths):
            self._blocks.append((part, spill.put(lengths), len(lengths), spill.put(points), len(points)))

    def rings(self, spill: Spill) -> Iterator[Iterable[np.ndarray]]:
        """All rings, as in `Region`, when there is nothing to be added any more; OSError if the file cannot be read."""
        paths = joined(np.concatenate(self.pieces), np.concatenate(self.links))
        yield _along(paths[0], spill)  # the outer one
        joined_firsts = [int(path[0, 2]) >> PLACE for path in paths]
        waiting = 1
        for _, blocks in itertools.groupby(sorted(self._blocks), key=lambda block: block[0]):
            blocks = list(blocks)  # several if what they are of has met further down
            lengths = np.concatenate([spill.get(where, count) for _, where, count, _, _ in blocks])
            points = np.concatenate([spill.get(where, 2 * count) for *_, where, count in blocks]).reshape(-1, 2)
            ends = np.cumsum(lengths)
            firsts = places(points[ends - 1])
            order = np.argsort(firsts)
            bounds = np.stack([firsts, ends - lengths, ends], 1)[order].tolist()
            for first, start, end in bounds:
                while waiting < len(paths) and joined_firsts[waiting] < first:
                    yield _along(paths[waiting], spill)
                    waiting += 1
                yield (points[start:end],)
        for path in paths[waiting:]:
            yield _along(path, spill)


def _along(path: np.ndarray, spill: Spill) -> Iterator[np.ndarray]:
    """The points of a ring in pieces, from its first corner on if it is an outer one, and up to there if it is a hole."""
    where, count = path[0, 3:].tolist()
    first = spill.get(where, 2 * count).reshape(-1, 2)
    cut = int(np.flatnonzero(places(first) == path[0, 2] >> PLACE)[0])
    cut += (path[0, 2] & (DOWN | CONVEX)) != DOWN | CONVEX  # as it was found, before a joint was decided: no outer one
    together, points = [first[cut:]], count - cut
    for where, count in path[1:, 3:].tolist():
        together.append(spill.get(where, 2 * count).reshape(-1, 2))
        points += count
        if points > _TOGETHER:
            yield np.concatenate(together)
            together, points = [], 0
    yield np.concatenate([*together, first[:cut]])
