"""Which pixels of a block of a slide polygons cover."""

from collections.abc import Sequence

import numpy as np
import shapely
from shapely.geometry.base import BaseGeometry

_CROSSINGS_AT_A_TIME = 1 << 22  # of edges with rows of pixels; each takes about 50 bytes


class Coverage:
    """What some polygons cover together. A pixel is covered if its center is.

    A center on an edge belongs to the polygon on its right or below it, so polygons that touch share no pixel. A pixel
    does not depend on the block that it is drawn with. Polygons of `regions.geojson` give exactly the pixels that they
    were traced from, because each edge runs between two rows or columns of centers.

    An index of bounding boxes finds the polygons of a block, and only their points are copied.
    """

    def __init__(self, areas: Sequence[BaseGeometry]):
        """Builds the index.

        Args:
          areas: valid Polygons and MultiPolygons in pixels of level 0; they may overlap.
        """
        parts = shapely.get_parts(np.array(areas, object))
        # Outlines run around what they enclose in one direction and around holes in the other.
        self._polygons = shapely.orient_polygons(parts)
        self._index = shapely.STRtree(self._polygons)

    def block(self, x: float, y: float, width: int, height: int, downsample: tuple[float, float]) -> np.ndarray:
        """Returns which pixels of a block are covered: bool [height, width].

        Args:
          x: left edge of the block in pixels of level 0.
          y: top edge of the block in pixels of level 0.
          width: in pixels of the block.
          height: in pixels of the block.
          downsample: pixels of level 0 that a pixel of the block spans, along x and y.
        """
        right, bottom = x + width * downsample[0], y + height * downsample[1]
        near = self._polygons[self._index.query(shapely.box(x, y, right, bottom))]
        if not len(near):
            return np.zeros((height, width), bool)
        points, ring = shapely.get_coordinates(shapely.get_rings(near), return_index=True)
        joined = ring[1:] == ring[:-1]
        start, end = points[:-1][joined], points[1:][joined]
        # The first row and column whose center is not before a point.
        rows = [_first_center(along[:, 1], y, downsample[1], height) for along in (start, end)]
        crossed = (rows[0] != rows[1]) & (np.minimum(start[:, 0], end[:, 0]) < right)
        start, end, rows = start[crossed], end[crossed], [each[crossed] for each in rows]
        turns = np.zeros(height * (width + 1), np.int32)
        counts = np.abs(rows[1] - rows[0])
        for edges in _in_parts(counts):
            count = counts[edges]
            edge = np.repeat(np.arange(len(counts))[edges], count)
            first = np.minimum(rows[0], rows[1])
            row = first[edge] + np.arange(len(edge)) - np.repeat(np.cumsum(count) - count, count)
            (x0, y0), (x1, y1) = start[edge].T, end[edge].T
            crossing = x0 + (y + (row + 0.5) * downsample[1] - y0) * ((x1 - x0) / (y1 - y0))
            column = _first_center(crossing, x, downsample[0], width)
            np.add.at(turns, row * (width + 1) + column, np.where(y1 > y0, 1, -1).astype(np.int32))
        return turns.reshape(height, width + 1)[:, :-1].cumsum(1) != 0


def _first_center(position: np.ndarray, origin: float, size: float, count: int) -> np.ndarray:
    """Returns the index of the first of `count` pixels whose center is not before a position, or `count`: int64."""
    return np.clip(np.ceil((position - origin) / size - 0.5), 0, count).astype(np.int64)


def _in_parts(counts: np.ndarray) -> list[slice]:
    """Returns slices of the edges with at most about `_CROSSINGS_AT_A_TIME` crossings each."""
    if not len(counts):
        return []
    parts = (np.cumsum(counts) - 1) // _CROSSINGS_AT_A_TIME
    bounds = [0, *(np.flatnonzero(np.diff(parts)) + 1).tolist(), len(counts)]
    return [slice(first, last) for first, last in zip(bounds, bounds[1:], strict=False)]
