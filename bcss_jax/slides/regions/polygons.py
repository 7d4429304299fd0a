"""Exact polygons of the regions of a slide's labels, found tile by tile in one pass.

A region is a set of pixels with one value that hang together by their sides (4-connectivity); its polygon runs along the
pixels' edges, with holes, and rasterising it gives back exactly its pixels.

A polygon with horizontal and vertical edges is given by its corners alone: in each row and in each column of the pixel
lattice they pair up into its edges. So a tile gives only its corners, each with the component that it belongs to
(`slides.corners`); components that touch across a border of tiles are united, and the corners of a row of tiles are
sorted, paired and followed (`slides.rings`). Nothing is cut at the borders of tiles in a row, so nothing has to be merged
there and no superfluous points arise; the cost is that of sorting the corners. Uniform tiles among their like cost next
to nothing.

What a region that may still grow has so far, rings that have closed and pieces of others, waits in a temporary file;
memory holds a row of tiles' corners and a few numbers for each piece, so at most as many as vertical edges cross from one
row of tiles to the next. The polygons are valid by how they are made, so nobody has to hold one whole for a check; the
tests have shapely judge them.

rasterio.features.shapes gives the same polygons of an array in memory, and the tests compare. Of a slide it would give
pieces to be united with shapely.
"""

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from bcss_jax.common.files import storage_errors
from bcss_jax.slides.regions.corners import TileRow, place
from bcss_jax.slides.regions.growing_region import GrowingRegion
from bcss_jax.slides.regions.rings import Band, Rings
from bcss_jax.slides.regions.spill import Spill
from bcss_jax.slides.store.tile_store import TileStore

_LARGE = 1 << 20  # corners of a region that comes after the others that end in the same row of tiles
_AT_A_TIME = 1 << 20  # corners that are followed at a time, in whole rows of pixels


class Region(NamedTuple):
    """A region, to be used before the next is asked for.

    Attributes:
      value: its label.
      pixels: how many it has.
      rings: the outer one, then the holes; each in the order of its points, int32 [n, 2] x and y in pixels of the grid, in
        one or more arrays. The first point is not repeated at the end.
    """

    value: int
    pixels: int
    rings: Iterable[Iterable[np.ndarray]]


def regions(store: TileStore, values: Sequence[int], folder: Path, min_pixels: float = 0) -> Iterator[Region]:
    """The regions of these labels, those first that end first going down the slide.

    Outer rings have a positive area in (x, y) and holes a negative one; no three successive points lie on a line. Rings
    of a polygon may touch each other in points, as OGC's simple features allow.

    Args:
      store: complete.
      values: the labels wanted; all others are as background.
      folder: where a temporary file can be.
      min_pixels: regions with fewer pixels are left out, those in their holes not counted; 0 gives all.

    Yields:
      Each region once; the order depends on the labels and on the size of the tiles alone.

    Raises:
      DataError: the store was damaged while it was read.
      StorageError: the temporary file cannot be written.
    """
    wanted = np.zeros(256, np.uint8)
    wanted[list(values)] = values
    # One more row and column where the slide ends with a tile: its lower and right edge have corners too.
    columns, rows = store.width // store.tile_size + 1, store.height // store.tile_size + 1
    with storage_errors(folder):
        spill = Spill(folder, ".regions.geojson.")
    with contextlib.closing(spill):
        growing = _Growing(columns * store.tile_size, spill, min_pixels)
        for row in range(rows):
            tiles = TileRow(growing.labels, growing.components, len(growing.values), row, store.tile_size)
            for column in range(columns):
                inside = row < store.rows and column < store.columns
                value = store.constant(row, column) if inside else 0
                if value is None:
                    tiles.add(wanted[store.tile(row, column)])
                else:
                    tiles.add_uniform(int(wanted[value]))
            with storage_errors(folder):
                ended = growing.advance(tiles)
            del tiles
            yield from ended


class _Growing:
    """The regions that may go on below, and the lowest pixels seen.

    Attributes:
      values: uint8 [n], the label of each component.
      labels: uint8 [1 + W], the lowest pixels; the first stands left of the slide.
      components: int64 [1 + W], which component they belong to, where a label is not 0.
    """

    def __init__(self, width: int, spill: Spill, min_pixels: float):
        self.values = np.zeros(0, np.uint8)
        self.labels = np.zeros(1 + width, np.uint8)
        self.components = np.zeros(1 + width, np.int64)
        self._open: list[GrowingRegion] = []  # of each component
        self._rings, self._parts = Rings(), 0
        self._spill, self._min_pixels = spill, min_pixels

    def advance(self, tiles: TileRow) -> list[Region]:
        """Goes on to below a row of tiles, and lets go of the regions that have ended; OSError if the disk is full."""
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

        grown: dict[int, GrowingRegion] = {}
        for new, before in zip(united.tolist(), self._open, strict=False):
            if new in grown:
                grown[new].take(before)
            else:
                grown[new] = before
        large = [new for new, region in grown.items() if not goes_on[new] and region.corners > _LARGE]
        self._rings.rename(united)
        _hand_out(self._rings.decide(goes_on), grown, "links")
        component = united[np.concatenate([np.zeros(0, np.int64), *(piece for piece, _ in tiles.corners)])]
        corners = np.concatenate([np.zeros(0, np.int64), *(piece for _, piece in tiles.corners)])
        tiles.corners.clear()
        ended: list[tuple[int, Region]] = []  # with their first corners
        for mine in _rows_together(corners):
            part = self._rings.add(component[mine], corners[mine], united_values, goes_on)
            ended += self._add(part, grown, goes_on, united_values)
        del component, corners

        done = {new: grown.pop(new) for new in [new for new in grown if not goes_on[new]]}
        traced = {
            new: Region(int(united_values[new]), region.pixels, region.rings(self._spill))
            for new, region in done.items()
        }
        ended += [(done[new].first, region) for new, region in traced.items() if new not in large]
        ended.sort(key=lambda entry: entry[0])
        in_order = [region for _, region in ended] + [traced[new] for new in reversed(large)]

        self.values = united_values[goes_on]
        self._open = [grown[new] for new in np.flatnonzero(goes_on).tolist()]
        self._rings.rename(number)
        self.labels, self.components = tiles.labels_below, tiles.components_below
        self.components[present] = number[united[self.components[present]]]
        return [region for region in in_order if region.pixels >= self._min_pixels]

    def _add(
        self, part: Band, grown: dict[int, GrowingRegion], goes_on: np.ndarray, values: np.ndarray
    ) -> Iterator[tuple[int, Region]]:
        """Takes a part of a row of tiles; gives the first corners of the regions that it holds whole, and these."""
        held = goes_on.copy()
        held[list(grown)] = True
        held[part.pieces[:, 0]] = True
        bounds = np.searchsorted(part.rings[:, 0], np.stack([part.totals[:, 0], part.totals[:, 0] + 1]))
        ends = np.cumsum(part.rings[:, 1])
        mine = held[part.totals[:, 0]]
        for (new, first, pixels, corners), start, end in zip(
            part.totals[mine].tolist(), *bounds[:, mine].tolist(), strict=True
        ):
            region = grown.setdefault(new, GrowingRegion())
            region.add(first, pixels, corners)
            points = part.points[ends[start] - part.rings[start, 1] : ends[end - 1]] if end > start else part.points[:0]
            region.put_rings(self._parts, points, part.rings[start:end, 1], self._spill)
        self._parts += 1
        if len(part.pieces):
            inside = int(ends[-1]) if len(ends) else 0
            place_in_file = self._spill.put(part.points[inside:])
            part.pieces[:, 3] = place_in_file + (part.pieces[:, 3] - inside) * part.points.itemsize * 2
        _hand_out(part.pieces, grown, "pieces")
        _hand_out(part.links, grown, "links")
        whole = ~mine & (part.totals[:, 2] >= self._min_pixels)
        for (new, first, pixels, _), start, end in zip(
            part.totals[whole].tolist(), *bounds[:, whole].tolist(), strict=True
        ):
            begin = ends[start] - part.rings[start, 1]
            yield first, Region(int(values[new]), pixels, _cut(part.points[begin:], part.rings[start:end, 1]))


def _rows_together(corners: np.ndarray) -> Iterator[np.ndarray | slice]:
    """Which corners are followed together, from the uppermost down: rows of pixels that have about `_AT_A_TIME`."""
    if len(corners) <= _AT_A_TIME:
        yield slice(None)
        return
    y = place(corners)[1]
    y -= y.min()
    total = np.cumsum(np.bincount(y))
    part = ((total - 1) // _AT_A_TIME).astype(np.uint16)[y]
    order = np.argsort(part, kind="stable")
    yield from (mine for mine in np.split(order, np.cumsum(np.bincount(part))[:-1]) if len(mine))


def _hand_out(rows: np.ndarray, grown: dict[int, GrowingRegion], name: str) -> None:
    """Gives each region its rows; they are in the order of the components, which stand first in them."""
    bounds = [*np.flatnonzero(np.diff(rows[:, 0], prepend=-1)).tolist(), len(rows)]
    for start, end in zip(bounds, bounds[1:], strict=False):
        getattr(grown.setdefault(int(rows[start, 0]), GrowingRegion()), name).append(rows[start:end].copy())


def _cut(points: np.ndarray, lengths: np.ndarray) -> Iterator[tuple[np.ndarray]]:
    """The rings of these lengths, one after the other in the points."""
    end = 0
    for length in lengths.tolist():
        yield (points[end : end + length],)
        end += length
