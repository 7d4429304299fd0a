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
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from bcss_jax.slides.corners import CORNER, TileRow
from bcss_jax.slides.tile_store import TileStore


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
        yield from growing.advance(tiles, min_pixels)


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

    def advance(self, tiles: TileRow, min_pixels: float) -> Iterator[Region]:
        """Goes on to below a row of tiles; yields the regions that have ended."""
        values = np.concatenate([self.values, *tiles.values])
        if not len(values):
            return
        first, second = np.concatenate([np.zeros((0, 2), np.int64), *tiles.links]).T
        graph = coo_array((np.ones(len(first), bool), (first, second)), shape=(len(values), len(values)))
        count, united = connected_components(graph, directed=False)
        united_values = np.zeros(count, np.uint8)
        united_values[united] = values

        present = tiles.labels_below > 0
        goes_on = np.zeros(count, bool)
        goes_on[united[tiles.components_below[present]]] = True
        number = np.cumsum(goes_on) - 1  # of those that go on

        new = np.concatenate([np.zeros(0, CORNER), *tiles.corners])
        new["component"] = united[new["component"]]
        stays = goes_on[new["component"]]
        ended, kept = [new[~stays]], [[] for _ in range(int(goes_on.sum()))]
        for component, pieces in zip(united[: len(self.corners)].tolist(), self.corners, strict=True):
            if goes_on[component]:
                few, many = sorted((kept[number[component]], pieces), key=len)
                kept[number[component]] = many
                many.extend(few)
            else:
                for piece in pieces:
                    piece["component"] = component
                ended.extend(pieces)
        new = new[stays]
        new = new[np.argsort(new["component"], kind="stable")]
        bounds = [*np.flatnonzero(np.diff(new["component"], prepend=-1)).tolist(), len(new)]
        for start, end in zip(bounds, bounds[1:], strict=False):
            kept[number[new["component"][start]]].append(new[start:end].copy())

        self.values, self.corners = united_values[goes_on], kept
        self.labels, self.components = tiles.labels_below, tiles.components_below
        self.components[present] = number[united[self.components[present]]]
        yield from _polygons(np.concatenate(ended), united_values, min_pixels)


def _polygons(corners: np.ndarray, values: np.ndarray, min_pixels: float) -> Iterator[Region]:
    """The regions that have these corners; values: uint8 [n], the label of each component."""
    if not len(corners):
        return
    corners = corners[np.lexsort([corners[key] for key in ("right", "x", "y", "component")])]
    component, x, y = corners["component"], corners["x"].astype(np.int64), corners["y"].astype(np.int64)
    down, convex = corners["down"].copy(), corners["convex"].copy()
    # Where two pixels in a diagonal are of one region, rings that turn around the pixels would touch themselves, which
    # polygons may not; rings that turn around the two gaps are two rings.
    twice = np.flatnonzero((component[1:] == component[:-1]) & (x[1:] == x[:-1]) & (y[1:] == y[:-1]))
    down[twice], down[twice + 1] = corners["down"][twice + 1], corners["down"][twice]
    convex[twice] = convex[twice + 1] = False

    points, ends = _rings(_partners(np.arange(len(corners))), _partners(np.lexsort((down, y, x, component))))
    starts = np.concatenate([[0], ends[:-1]])
    following = np.arange(1, len(points) + 1)
    following[ends - 1] = starts
    areas = np.add.reduceat(
        x[points] * (y[points[following]] - y[points]), starts
    )  # positive, as rings start rightward
    # A ring starts at its upper left corner: a pixel of the region if it is the outer one, the only gap if it is a hole.
    owner, outer = component[points[starts]], convex[points[starts]]
    sizes = np.zeros(len(values), np.int64)
    np.add.at(sizes, owner, np.where(outer, areas, -areas))

    # Each component's outer ring, then its holes; the components in the order of their first corners.
    rank = np.zeros(len(values), np.int64)
    rank[owner[outer]] = (y * 2**31 + x)[points[starts[outer]]]
    order = np.lexsort((~outer, rank[owner]))
    order = order[sizes[owner[order]] >= min_pixels]
    lengths = (ends - starts)[order]
    within = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    forward, backward = np.repeat(starts[order], lengths) + within, np.repeat(ends[order] - 1, lengths) - within
    index = points[np.where(np.repeat(outer[order], lengths), forward, backward)]
    rings = shapely.linearrings(
        np.stack([x[index], y[index]], 1).astype(np.float64), indices=np.repeat(np.arange(len(order)), lengths)
    )
    polygons = shapely.polygons(rings, indices=np.cumsum(outer[order]) - 1) if len(order) else []
    owner = owner[order][outer[order]]
    for polygon, value, size in zip(polygons, values[owner].tolist(), sizes[owner].tolist(), strict=True):
        yield Region(value, polygon, size)


def _partners(order: np.ndarray) -> np.ndarray:
    """The other end of each corner's edge, the corners being sorted along the edges: int64 [n]."""
    partners = np.empty_like(order)
    partners[order[::2]], partners[order[1::2]] = order[1::2], order[::2]
    return partners


def _rings(along_row: np.ndarray, along_column: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Follows the edges: all rings' corners one after the other, each from its first one along the row; their ends."""
    horizontal, vertical = along_row.tolist(), along_column.tolist()
    seen = bytearray(len(horizontal))
    points, ends = [], []
    for start in range(len(horizontal)):
        if seen[start]:
            continue
        corner = start
        while not seen[corner]:
            other = horizontal[corner]
            seen[corner] = seen[other] = 1
            points += (corner, other)
            corner = vertical[other]
        ends.append(len(points))
    return np.array(points, np.int64), np.array(ends, np.int64)
