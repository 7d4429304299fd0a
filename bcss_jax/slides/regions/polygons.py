"""Traces exact polygons of the regions in a slide's labels, tile by tile in one pass.

A region is a set of pixels with one label that are connected by their sides (4-connectivity). Its polygon follows the
pixels' edges, with holes, and rasterizing the polygon gives exactly these pixels.

Corners alone determine a polygon with horizontal and vertical edges: in each row and in each column of the pixel
lattice, they pair up into its edges. A tile therefore yields only its corners, each with the component that it belongs
to (`regions.corners`). Components that touch across a border between tiles are merged, and the corners of a row of
tiles are sorted, paired and followed (`regions.rings`). Because nothing is cut at the borders between tiles of a row,
nothing has to be merged there, and there are no superfluous points. The cost is that of sorting the corners. Uniform
tiles that are surrounded by their own label cost almost nothing.

For a region that may still grow, the rings that have closed and pieces of other rings are kept in a temporary file
(`regions.growing_region`). Memory holds the corners of one row of tiles and a few numbers for each piece. There are at
most as many pieces as vertical edges that cross from one row of tiles to the next. The construction makes the polygons
valid, so that no polygon has to be held as a whole for a check; the tests check them with shapely.

rasterio.features.shapes gives the same polygons for an array in memory, and the tests compare the two. For a slide it
would give pieces that shapely would have to merge.
"""

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from bcss_jax.common.files import storage_errors
from bcss_jax.common.interruption import safe_point
from bcss_jax.slides.regions.corners import TileRow, corner_positions
from bcss_jax.slides.regions.growing_region import GrowingRegion
from bcss_jax.slides.regions.rings import Band, Rings
from bcss_jax.slides.regions.spill import Spill

_LARGE = 1 << 20  # regions with more corners come after the other regions that end in the same row of tiles
_CORNERS_AT_A_TIME = 1 << 20  # corners that are followed at a time, in whole rows of pixels


class LabelTiles(Protocol):
    """Labels in square tiles, such as `store.tile_store.TileStore`.

    Attributes:
      width: pixels.
      height: pixels.
      tile_size: side of a tile.
      rows: of tiles.
      columns: of tiles.
    """

    width: int
    height: int
    tile_size: int

    @property
    def rows(self) -> int: ...  # noqa: D102

    @property
    def columns(self) -> int: ...  # noqa: D102

    def constant(self, row: int, column: int) -> int | None:
        """Returns the label of a tile that has only one, or None."""
        ...

    def tile(self, row: int, column: int) -> np.ndarray:
        """Returns a tile: uint8 [tile_size, tile_size]."""
        ...


class Region(NamedTuple):
    """A region, which must be used before the next one is requested.

    Attributes:
      value: its label.
      pixels: number of its pixels.
      rings: the outer ring, then the holes. Each ring is one or more arrays of successive points, int32 [n, 2], x and y
        in pixels of the grid. The first point is not repeated at the end.
    """

    value: int
    pixels: int
    rings: Iterable[Iterable[np.ndarray]]


def regions(store: LabelTiles, values: Sequence[int], folder: Path, min_pixels: float = 0) -> Iterator[Region]:
    """Yields the regions of some labels in the order in which they end, going down the slide.

    Outer rings have a positive area in (x, y), and holes a negative area. No three successive points are on a line. The
    rings of a polygon may touch each other at points, as OGC's simple features allow.

    Args:
      store: the labels of a slide; all rows exist.
      values: the labels to trace; all others count as background.
      folder: where the temporary file is created.
      min_pixels: regions with fewer pixels are left out; pixels in holes do not count. 0 keeps all regions.

    Yields:
      Each region once. The order depends only on the labels and on the size of the tiles.

    Raises:
      DataError: the store was damaged while it was read.
      StorageError: the temporary file cannot be written.
    """
    wanted = np.zeros(256, np.uint8)
    wanted[list(values)] = values
    # If the slide ends with a full tile, one more row and column, because its lower and right edges have corners too.
    columns, rows = store.width // store.tile_size + 1, store.height // store.tile_size + 1
    with storage_errors(folder):
        spill = Spill(folder, ".regions.geojson.")
    with contextlib.closing(spill):
        growing = _GrowingRegions(columns * store.tile_size, spill, min_pixels)
        for row in range(rows):
            safe_point()
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


class _GrowingRegions:
    """The regions that may continue below, and the lowest pixels so far.

    Attributes:
      values: uint8 [n], the label of each component.
      labels: uint8 [1 + W], the lowest pixels; the first entry lies left of the slide.
      components: int64 [1 + W], the components of these pixels, where their label is not 0.
    """

    def __init__(self, width: int, spill: Spill, min_pixels: float):
        self.values = np.zeros(0, np.uint8)
        self.labels = np.zeros(1 + width, np.uint8)
        self.components = np.zeros(1 + width, np.int64)
        self._regions: list[GrowingRegion] = []  # of each component
        self._rings, self._bands = Rings(), 0
        self._spill, self._min_pixels = spill, min_pixels

    def advance(self, tiles: TileRow) -> list[Region]:
        """Adds a row of tiles and returns the regions that end in it; raises an OSError if the disk is full."""
        values = np.concatenate([self.values, *tiles.values])
        first, second = np.concatenate([np.zeros((0, 2), np.int64), *tiles.links]).T
        graph = coo_array((np.ones(len(first), bool), (first, second)), shape=(len(values) + 1, len(values) + 1))
        count, merged = connected_components(graph, directed=False)  # merged: the new component of each old one
        merged_values = np.zeros(count, np.uint8)
        merged_values[merged[:-1]] = values

        present = tiles.labels_below > 0
        continues = np.zeros(count, bool)
        continues[merged[tiles.components_below[present]]] = True
        number = np.cumsum(continues) - 1  # of the components that continue

        grown: dict[int, GrowingRegion] = {}
        for new, before in zip(merged.tolist(), self._regions, strict=False):
            if new in grown:
                grown[new].merge(before)
            else:
                grown[new] = before
        large = [new for new, region in grown.items() if not continues[new] and region.corners > _LARGE]
        self._rings.rename(merged)
        _append_rows(self._rings.resolve_joints(continues), grown, "links")
        component = merged[np.concatenate([np.zeros(0, np.int64), *(piece for piece, _ in tiles.corners)])]
        corners = np.concatenate([np.zeros(0, np.int64), *(piece for _, piece in tiles.corners)])
        tiles.corners.clear()
        ended: list[tuple[int, Region]] = []  # with their first corners
        for chosen in _bands(corners):
            band = self._rings.add(component[chosen], corners[chosen], merged_values, continues)
            ended += self._add_band(band, grown, continues, merged_values)
        del component, corners

        done = {new: grown.pop(new) for new in [new for new in grown if not continues[new]]}
        traced = {
            new: Region(int(merged_values[new]), region.pixels, region.rings(self._spill))
            for new, region in done.items()
        }
        ended += [(done[new].first, region) for new, region in traced.items() if new not in large]
        ended.sort(key=lambda entry: entry[0])
        in_order = [region for _, region in ended] + [traced[new] for new in reversed(large)]

        self.values = merged_values[continues]
        self._regions = [grown[new] for new in np.flatnonzero(continues).tolist()]
        self._rings.rename(number)
        self.labels, self.components = tiles.labels_below, tiles.components_below
        self.components[present] = number[merged[self.components[present]]]
        return [region for region in in_order if region.pixels >= self._min_pixels]

    def _add_band(
        self, band: Band, grown: dict[int, GrowingRegion], continues: np.ndarray, values: np.ndarray
    ) -> Iterator[tuple[int, Region]]:
        """Adds a band; yields the regions that lie entirely within it, each with its first corner."""
        is_growing = continues.copy()
        is_growing[list(grown)] = True
        is_growing[band.pieces[:, 0]] = True
        bounds = np.searchsorted(band.rings[:, 0], np.stack([band.totals[:, 0], band.totals[:, 0] + 1]))
        ends = np.cumsum(band.rings[:, 1])
        growing = is_growing[band.totals[:, 0]]
        for (new, first, pixels, corners), start, end in zip(
            band.totals[growing].tolist(), *bounds[:, growing].tolist(), strict=True
        ):
            region = grown.setdefault(new, GrowingRegion())
            region.add(first, pixels, corners)
            points = band.points[ends[start] - band.rings[start, 1] : ends[end - 1]] if end > start else band.points[:0]
            region.put_rings(self._bands, points, band.rings[start:end, 1], self._spill)
        self._bands += 1
        if len(band.pieces):
            in_rings = int(ends[-1]) if len(ends) else 0
            start_in_file = self._spill.put(band.points[in_rings:])
            band.pieces[:, 3] = start_in_file + (band.pieces[:, 3] - in_rings) * band.points.itemsize * 2
        _append_rows(band.pieces, grown, "pieces")
        _append_rows(band.links, grown, "links")
        complete = ~growing & (band.totals[:, 2] >= self._min_pixels)
        for (new, first, pixels, _), start, end in zip(
            band.totals[complete].tolist(), *bounds[:, complete].tolist(), strict=True
        ):
            start_of_points = ends[start] - band.rings[start, 1]
            rings = _split_rings(band.points[start_of_points:], band.rings[start:end, 1])
            yield first, Region(int(values[new]), pixels, rings)


def _bands(corners: np.ndarray) -> Iterator[np.ndarray | slice]:
    """Yields the indices of the corners in each band, from top to bottom.

    A band is some rows of pixels with about `_CORNERS_AT_A_TIME` corners.
    """
    if len(corners) <= _CORNERS_AT_A_TIME:
        yield slice(None)
        return
    y = corner_positions(corners)[1]
    y -= y.min()
    total = np.cumsum(np.bincount(y))
    band = ((total - 1) // _CORNERS_AT_A_TIME).astype(np.uint16)[y]
    order = np.argsort(band, kind="stable")
    yield from (indices for indices in np.split(order, np.cumsum(np.bincount(band))[:-1]) if len(indices))


def _append_rows(rows: np.ndarray, grown: dict[int, GrowingRegion], name: str) -> None:
    """Appends its rows to each region's list of that name; rows start with the component and are sorted by it."""
    bounds = [*np.flatnonzero(np.diff(rows[:, 0], prepend=-1)).tolist(), len(rows)]
    for start, end in zip(bounds, bounds[1:], strict=False):
        getattr(grown.setdefault(int(rows[start, 0]), GrowingRegion()), name).append(rows[start:end].copy())


def _split_rings(points: np.ndarray, lengths: np.ndarray) -> Iterator[tuple[np.ndarray]]:
    """Yields the rings of these lengths, which follow each other in the points."""
    end = 0
    for length in lengths.tolist():
        yield (points[end : end + length],)
        end += length
