"""The regions of a slide that are worth annotating, and which of them are annotated."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import shapely
from shapely.geometry.base import BaseGeometry

from bcss_jax.annotator.next_region.disagreement import Disagreement
from bcss_jax.annotator.next_region.ranking import ranked_regions

ANNOTATED = 0.5  # share of what is in dispute in a region from which on, if it is outlined, the region is annotated


class NextRegion(NamedTuple):
    """A region that is not annotated.

    Attributes:
      rank: from 0, among all regions.
      box: x0, y0, x1, y1 in level-0 pixels.
      share: of its area in dispute.
    """

    rank: int
    box: tuple[float, float, float, float]
    share: float


class _Region(NamedTuple):
    """A region with the places that are in dispute in it, float [n, 2] (x, y), and how much at each, float [n]."""

    box: tuple[float, float, float, float]
    share: float
    places: np.ndarray
    weights: np.ndarray


class NextRegions:
    """The regions, from the one most in dispute on. Their order does not change while the slide is annotated.

    Attributes:
      members: who disagrees; see `Disagreement`.
    """

    def __init__(self, disagreement: Disagreement, size: tuple[int, int]):
        """Ranks the regions of a slide; `size` is width and height of its level 0."""
        across, down = disagreement.cell
        self.members = disagreement.members
        self._regions = []
        for each in ranked_regions(disagreement.cells):
            rows, columns = np.nonzero(each.disputed)
            places = np.stack([(each.column + columns + 0.5) * across, (each.row + rows + 0.5) * down], -1)
            height, width = each.disputed.shape
            box = (
                each.column * across,
                each.row * down,
                min((each.column + width) * across, size[0]),
                min((each.row + height) * down, size[1]),
            )
            self._regions.append(_Region(box, each.share, places, each.disputed[rows, columns]))

    def __len__(self) -> int:
        """Returns how many regions there are, the annotated ones included."""
        return len(self._regions)

    def open_ones(self, outlines: Sequence[BaseGeometry]) -> list[NextRegion]:
        """Returns the regions that are not annotated, in their order.

        Args:
          outlines: areas that are annotated, in level-0 pixels. A region is annotated when they cover at least
            `ANNOTATED` of what is in dispute in it.
        """
        tree = shapely.STRtree(outlines)
        return [
            NextRegion(rank, region.box, region.share)
            for rank, region in enumerate(self._regions)
            if _covered(region, [outlines[number] for number in tree.query(shapely.box(*region.box))]) < ANNOTATED
        ]

    def after(self, rank: int, outlines: Sequence[BaseGeometry]) -> tuple[NextRegion | None, int]:
        """Returns the next region that is not annotated, and how many such regions there are.

        Args:
          rank: of the region that is shown now; -1 for none. After the last region comes the first.
          outlines: see `open_ones`.

        Returns:
          None if all regions are annotated, or there are none.
        """
        found = self.open_ones(outlines)
        following = [each for each in found if each.rank > rank] or found
        return (following[0] if following else None), len(found)


def _covered(region: _Region, outlines: Sequence[BaseGeometry]) -> float:
    """Returns which share of what is in dispute in a region lies in outlines."""
    covered = np.zeros(len(region.places), bool)
    for outline in outlines:
        part = shapely.intersection(outline, shapely.box(*region.box))
        shapely.prepare(part)
        covered |= shapely.contains_xy(part, *region.places.T)
    return float(region.weights[covered].sum() / region.weights.sum())
