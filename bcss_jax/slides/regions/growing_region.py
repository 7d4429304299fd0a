"""A region that may still grow; most of its data is in a temporary file."""

import itertools
from collections.abc import Iterable, Iterator

import numpy as np

from bcss_jax.slides.regions.corners import CONVEX, DOWN, POSITION, pack_positions
from bcss_jax.slides.regions.rings import join_pieces
from bcss_jax.slides.regions.spill import Spill

_POINTS_AT_A_TIME = 1 << 15  # points of a ring that are yielded at a time


class GrowingRegion:
    """The known part of a region: rings that have closed, which are holes, and pieces of other rings.

    Attributes:
      first: its first corner.
      pixels: number of pixels inside its rings and pieces.
      corners: number of its corners.
      pieces: arrays int64 [n, 5] as in `rings.Band`, except that the points' start is their position in the file.
      links: arrays int64 [n, 3] as in `rings.Band`.
    """

    __slots__ = ("_blocks", "corners", "first", "links", "pieces", "pixels")

    def __init__(self):
        """Starts without any rings or pieces."""
        self.first, self.pixels, self.corners = np.iinfo(np.int64).max, 0, 0
        # Closed rings: number of the band, then position in the file and count of the rings' lengths, then of the
        # points.
        self._blocks: list[tuple[int, int, int, int, int]] = []
        self.pieces: list[np.ndarray] = []
        self.links: list[np.ndarray] = []

    def merge(self, other: "GrowingRegion") -> None:
        """Adds the data of another object, which has turned out to be the same region."""
        self.add(other.first, other.pixels, other.corners)
        for name in ("_blocks", "pieces", "links"):
            mine, others = getattr(self, name), getattr(other, name)
            if len(mine) < len(others):
                mine, others = others, mine
            mine.extend(others)
            setattr(self, name, mine)

    def add(self, first: int, pixels: int, corners: int) -> None:
        """Adds the totals of one band of the slide."""
        self.first, self.pixels, self.corners = min(self.first, first), self.pixels + pixels, self.corners + corners

    def put_rings(self, band: int, points: np.ndarray, lengths: np.ndarray, spill: Spill) -> None:
        """Stores closed rings in the temporary file.

        Args:
          band: number of the band of the slide; all first corners in it come before those of later bands.
          points: int32 [n, 2], ring after ring.
          lengths: int64 [r], points of each ring.
          spill: the temporary file; raises an OSError if the disk is full.
        """
        if len(lengths):
            self._blocks.append((band, spill.put(lengths), len(lengths), spill.put(points), len(points)))

    def rings(self, spill: Spill) -> Iterator[Iterable[np.ndarray]]:
        """Yields all rings as in `Region` once the region is complete; raises an OSError if the file cannot be read."""
        paths = join_pieces(np.concatenate(self.pieces), np.concatenate(self.links))
        yield _points_of(paths[0], spill)  # the outer ring
        joined_firsts = [int(path[0, 2]) >> POSITION for path in paths]
        next_path = 1
        for _, group in itertools.groupby(sorted(self._blocks), key=lambda block: block[0]):
            blocks = list(group)  # several if regions that are in this band were merged further down
            lengths = np.concatenate([spill.get(start, count) for _, start, count, _, _ in blocks])
            points = np.concatenate([spill.get(start, 2 * count) for *_, start, count in blocks]).reshape(-1, 2)
            ends = np.cumsum(lengths)
            firsts = pack_positions(points[ends - 1])
            order = np.argsort(firsts)
            bounds = np.stack([firsts, ends - lengths, ends], 1)[order].tolist()
            for first, start, end in bounds:
                while next_path < len(paths) and joined_firsts[next_path] < first:
                    yield _points_of(paths[next_path], spill)
                    next_path += 1
                yield (points[start:end],)
        for path in paths[next_path:]:
            yield _points_of(path, spill)


def _points_of(path: np.ndarray, spill: Spill) -> Iterator[np.ndarray]:
    """Yields the points of a ring in parts. An outer ring starts with its first corner; a hole ends with it."""
    start, count = path[0, 3:].tolist()
    first = spill.get(start, 2 * count).reshape(-1, 2)
    cut = int(np.flatnonzero(pack_positions(first) == path[0, 2] >> POSITION)[0])
    # The corner is stored as it was before any joint was resolved. An outer ring has DOWN and CONVEX set.
    cut += (path[0, 2] & (DOWN | CONVEX)) != DOWN | CONVEX
    waiting, points = [first[cut:]], count - cut
    for start, count in path[1:, 3:].tolist():
        waiting.append(spill.get(start, 2 * count).reshape(-1, 2))
        points += count
        if points > _POINTS_AT_A_TIME:
            yield np.concatenate(waiting)
            waiting, points = [], 0
    yield np.concatenate([*waiting, first[:cut]])
