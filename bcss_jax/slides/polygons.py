"""Exact polygons of the regions of a slide's labels, found tile by tile in one pass.

A region is a set of pixels with one value that hang together by their sides (4-connectivity); its polygon runs along the
pixels' edges, with holes, and rasterising it gives back exactly its pixels.

A polygon with horizontal and vertical edges is given by its corners alone: in each row and in each column of the pixel
lattice they pair up into its edges. So a tile gives only its corners, each with the component that it belongs to
(`slides.corners`); components that touch across a border of tiles are united, and when one cannot grow any more its
corners are sorted, paired and followed. Nothing is cut at the borders of tiles, so nothing has to be merged there and
no superfluous points arise; the cost is that of sorting the corners, and memory holds those of the regions that may
still grow. Uniform tiles among their like cost next to nothing.

rasterio.features.shapes gives the same polygons of an array in memory, and the tests compare. Of a slide it would give
pieces to be united with shapely.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import shapely
from scipy.sparse import coo_array, csr_array
from scipy.sparse.csgraph import connected_components, depth_first_order

from bcss_jax.slides.corners import CONVEX, DOWN, RIGHT, TileRow, place
from bcss_jax.slides.tile_store import TileStore

_LARGE = 1 << 20  # corners of a region that is finished by itself, for the sake of memory


class Region(NamedTuple):
    """A region: its label, its polygon in pixels of the grid, and how many pixels it has."""

    value: int
    polygon: shapely.Polygon
    pixels: int


def regions(store: TileStore, values: Sequence[int], min_pixels: float = 0) -> Iterator[Region]:
    """The regions of these labels, those first that end first going down the slide.

    Outer rings have a positive area in (x, y) and holes a negative one; no three successive points lie on a line. Rings
    of a polygon may touch each other in points, as OGC's simple features allow.

    Args:
      store: complete.
      values: the labels wanted; all others are as background.
      min_pixels: regions with fewer pixels are left out, those in their holes not counted; 0 gives all.

    Yields:
      Each region once; the order depends on the labels and on the size of the tiles alone.

    Raises:
      DataError: the store was damaged while it was read.
    """
    wanted = np.zeros(256, np.uint8)
    wanted[list(values)] = values
    # One more row and column where the slide ends with a tile: its lower and right edge have corners too.
    columns, rows = store.width // store.tile_size + 1, store.height // store.tile_size + 1
    growing = _Growing(columns * store.tile_size)
    for row in range(rows):
        tiles = TileRow(growing.labels, growing.components, len(growing.values), row, store.tile_size)
        for column in range(columns):
            inside = row < store.rows and column < store.columns
            value = store.constant(row, column) if inside else 0
            if value is None:
                tiles.add(wanted[store.tile(row, column)])
            else:
                tiles.add_uniform(int(wanted[value]))
        ended, labels = growing.advance(tiles)
        while ended:
            yield from _polygons(*ended.pop(), labels, min_pixels)


class _Growing:
    """The regions that may go on below: their corners so far, and the lowest pixels seen.

    Attributes:
      values: uint8 [n], the label of each component.
      corners: its corners, in pieces.
      labels: uint8 [1 + W], the lowest pixels; the first stands left of the slide.
      components: int64 [1 + W], which component they belong to, where a label is not 0.
    """

    def __init__(self, width: int):
        self.values = np.zeros(0, np.uint8)
        self.corners: list[list[np.ndarray]] = []
        self.labels = np.zeros(1 + width, np.uint8)
        self.components = np.zeros(1 + width, np.int64)

    def advance(self, tiles: TileRow) -> tuple[list[tuple[np.ndarray, np.ndarray]], np.ndarray]:
        """Goes on to below a row of tiles, and lets go of the regions that have ended.

        Returns:
          Of these in one or more parts: int32 [n] components, and int64 [n] their corners; uint8 [m], the labels of the
          components.
        """
        values = np.concatenate([self.values, *tiles.values])
        first, second = np.concatenate([np.zeros((0, 2), np.int64), *tiles.links]).T
        graph = coo_array((np.ones(len(first), bool), (first, second)), shape=(len(values) + 1, len(values) + 1))
        count, united = connected_components(graph, directed=False)
        united_values = np.zeros(count, np.uint8)
        united_values[united[:-1]] = values

        present = tiles.labels_below > 0
        goes_on = np.zeros(count, bool)
        goes_on[united[tiles.components_below[present]]] = True
        number = np.cumsum(goes_on) - 1  # of those that go on

        component = united[np.concatenate([np.zeros(0, np.int64), *(piece for piece, _ in tiles.corners)])]
        corners = np.concatenate([np.zeros(0, np.int64), *(piece for _, piece in tiles.corners)])
        stays = goes_on[component]
        kept = [[] for _ in range(int(goes_on.sum()))]
        ended: dict[int, list[np.ndarray]] = {}
        for new, pieces in zip(united.tolist(), self.corners, strict=False):
            mine = kept[number[new]] if goes_on[new] else ended.setdefault(new, [])
            if len(mine) < len(pieces):
                mine[:], pieces = pieces, mine.copy()
            mine.extend(pieces)
        parts = self._parts(ended, component[~stays], corners[~stays])
        component, corners = component[stays], corners[stays]
        order = np.argsort(component, kind="stable")
        component, corners = component[order], corners[order]
        bounds = [*np.flatnonzero(np.diff(component, prepend=-1)).tolist(), len(component)]
        for start, end in zip(bounds, bounds[1:], strict=False):
            kept[number[component[start]]].append(corners[start:end].copy())

        self.values, self.corners = united_values[goes_on], kept
        self.labels, self.components = tiles.labels_below, tiles.components_below
        self.components[present] = number[united[self.components[present]]]
        return parts, united_values

    @staticmethod
    def _parts(
        ended: dict[int, list[np.ndarray]], component: np.ndarray, corners: np.ndarray
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """Components and corners of the regions that have ended: each large one by itself, then all others.

        Args:
          ended: of regions from further up, the pieces of their corners by component; emptied.
          component: int32 [n], of the corners in the row of tiles.
          corners: int64 [n], these.
        """
        large, parts = [new for new, pieces in ended.items() if sum(map(len, pieces)) > _LARGE], []
        for new in large:
            part = np.concatenate([*ended.pop(new), corners[component == new]])
            parts.append((np.full(len(part), new, np.int32), part))
        rest = ~np.isin(component, large)
        components = [np.full(sum(map(len, pieces)), new, np.int32) for new, pieces in ended.items()]
        pieces = [piece for pieces in ended.values() for piece in pieces]
        ended.clear()
        parts.append((np.concatenate([component[rest], *components]), np.concatenate([corners[rest], *pieces])))
        return parts


def _polygons(component: np.ndarray, corners: np.ndarray, values: np.ndarray, min_pixels: float) -> Iterator[Region]:
    """The regions that have these corners, a part of what `advance` gives."""
    if not len(corners):
        return
    order = np.lexsort((corners, component))
    component, corners = component[order], corners[order]
    # Where two pixels in a diagonal are of one region, rings that turn around the pixels would touch themselves, which
    # polygons may not; rings that turn around the two gaps are two rings.
    twice = np.flatnonzero((component[1:] == component[:-1]) & (corners[1:] ^ corners[:-1] <= RIGHT | DOWN | CONVEX))
    for one in (twice, twice + 1):
        corners[one] ^= DOWN | CONVEX
    x, y = (along.astype(np.int32) for along in place(corners))
    order = np.lexsort((y << 1 | (corners & DOWN > 0), x, component)).astype(np.int32)
    along_column = np.empty_like(order)
    along_column[order[::2]], along_column[order[1::2]] = order[1::2], order[::2]
    points, ends = _rings(along_column)
    del order, along_column

    starts = np.concatenate([[0], ends[:-1]])
    steps = np.diff(y[points], append=0)
    steps[ends - 1] = y[points[starts]] - y[points[ends - 1]]
    areas = np.add.reduceat(x[points] * steps.astype(np.int64), starts)  # positive, as all rings start to the right
    # A ring starts at its upper left corner: a pixel of the region if it is the outer one, the only gap if it is a hole.
    first = corners[points[starts]]
    owner, outer = component[points[starts]], first & CONVEX > 0
    sizes = np.zeros(len(values), np.int64)
    np.add.at(sizes, owner, np.where(outer, areas, -areas))
    del component, corners, steps

    # Each component's outer ring, then its holes; the components in the order of their first corners.
    rank = np.zeros(len(values), np.int64)
    rank[owner[outer]] = first[outer]
    order = np.lexsort((~outer, rank[owner]))
    order = order[sizes[owner[order]] >= min_pixels]
    if not len(order):
        return
    lengths = (ends - starts)[order]
    # Along the outer rings, and back along the holes, which then have their pixels on the same side.
    before = np.cumsum(lengths) - lengths
    step = np.repeat(np.where(outer[order], 1, -1).astype(np.int32), lengths)
    start = np.where(outer[order], starts[order] - before, ends[order] - 1 + before).astype(np.int32)
    index = np.arange(len(step), dtype=np.int32)
    index *= step
    index += np.repeat(start, lengths)
    index = points[index]
    del points, step
    coordinates = np.empty((len(index), 2))
    coordinates[:, 0], coordinates[:, 1] = x[index], y[index]
    del x, y, index
    rings = shapely.linearrings(coordinates, indices=np.repeat(np.arange(len(order)), lengths))
    del coordinates
    polygons = shapely.polygons(rings, indices=np.cumsum(outer[order]) - 1)
    del rings
    owner = owner[order][outer[order]]
    for polygon, value, size in zip(polygons, values[owner].tolist(), sizes[owner].tolist(), strict=True):
        yield Region(value, polygon, size)


def _rings(along_column: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Follows the edges from corner to corner.

    Instead of a loop over the corners, the rings are cut open and strung together, and SciPy goes through the one long
    path.

    Args:
      along_column: int32 [n], the other end of each corner's vertical edge. Horizontal edges join 0 and 1, 2 and 3, ...

    Returns:
      int32 [n], all rings' corners one after the other, each from its first one to the right, and int64 [r], where in
      these the rings end.
    """
    count = len(along_column)
    numbers = np.arange(count, dtype=np.int32)
    following = along_column[numbers ^ 1]  # two edges further on
    bounds = np.arange(count + 1, dtype=np.int32)
    graph = csr_array((np.ones(count, bool), following, bounds), shape=(count, count))
    # Every ring gives two cycles of every other corner, one in each direction. That with the ring's first corner counts.
    cycles, cycle = connected_components(graph, connection="strong")
    starts, others = np.full((2, cycles), count, np.int32)
    np.minimum.at(starts, cycle, numbers)
    np.minimum.at(others, cycle, numbers ^ 1)
    sizes = np.bincount(cycle)
    del cycle, graph
    chosen = np.flatnonzero(starts < others)
    chosen = chosen[np.argsort(starts[chosen])]
    starts, ends = starts[chosen], np.cumsum(2 * sizes[chosen])
    following[along_column[starts[:-1]] ^ 1] = starts[1:]
    graph = csr_array((np.ones(count, bool), following, bounds), shape=(count, count))
    every_other = depth_first_order(graph, starts[0], return_predecessors=False)
    return np.stack([every_other, every_other ^ 1], 1).ravel(), ends
