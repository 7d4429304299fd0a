"""Writes regions.geojson: the regions of a slide as annotations for QuPath.

QuPath's reader (qupath-core, QuPathTypeAdapters, GsonTools and ROITypeAdapters of 0.5 and 0.6) expects a
FeatureCollection. Its features have a geometry and the properties `objectType`, `classification` with name *and* color,
and optionally `measurements`, a flat table of numbers. QuPath writes coordinates with two decimals. It counts pixels of
level 0 from the corner of the scanned area where OpenSlide knows one ("bounds": MIRAX, Leica, ...), unless the slide
was added with `--no-crop` (qupath#820, qupath#1278); `origin` accounts for this.
"""

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from bcss_jax.common.files import whole_file
from bcss_jax.labels import QUPATH_NAMES
from bcss_jax.slides.classes import SlideClass
from bcss_jax.slides.grid import Grid
from bcss_jax.slides.regions.polygons import Region, regions
from bcss_jax.slides.store.tile_store import TileStore

MIN_AREA_UM2 = 100.0  # about one cell
_POINTS_AT_A_TIME = 50_000  # that are written


def write(
    path: Path,
    store: TileStore,
    grid: Grid,
    classes: Sequence[SlideClass],
    *,
    origin: tuple[float, float] = (0, 0),
    min_area_um2: float = MIN_AREA_UM2,
) -> int:
    """Writes the regions of the classes piece by piece; the file is written whole or not at all.

    Each region is a Polygon in pixels of level 0, counted from `origin`, with two decimals (none where a pixel of the
    grid spans a whole number of level-0 pixels) and its area in um2 as the measurement `area_um2`. Outer rings run
    counter-clockwise in (x, y), as in RFC 7946. The polygons are valid: rounding keeps different coordinates apart.
    Unfinished regions wait in a temporary file in the same folder, up to about half as large as the result.

    Args:
      path: the file; replaced if it exists.
      store: complete.
      grid: of the store.
      classes: what its values mean; other values are not regions.
      origin: x and y in level-0 pixels that are 0 in the file. For QuPath those of OpenSlide's bounds, if there are
        any.
      min_area_um2: smaller regions are left out, which the file states; holes are never filled.

    Returns:
      The number of regions; a file with 0 regions is valid too.

    Raises:
      DataError: the store was damaged while it was read.
      StorageError: the file cannot be written.
    """
    pixel_um2 = grid.mpp**2
    found = regions(store, [entry.value for entry in classes], path.parent, min_area_um2 / pixel_um2)
    metadata = {
        "coordinates": "pixels of level 0",
        "origin": list(origin),
        "um_per_pixel_of_labels": grid.mpp,
        "regions_smaller_than_um2_left_out": min_area_um2,
    }
    properties = {
        entry.value: {
            "objectType": "annotation",
            "classification": {"name": QUPATH_NAMES.get(entry.name, entry.name), "color": list(entry.color)},
            "isLocked": True,  # so that no region is moved by mistake
        }
        for entry in classes
    }
    texts = tuple(_texts(*along) for along in zip((grid.width, grid.height), grid.scale, origin, strict=True))
    count = 0
    with whole_file(path) as unfinished, open(unfinished, "w", encoding="ascii") as file:
        file.write(f'{{"type":"FeatureCollection","bcss_jax":{_json(metadata)},"features":[')
        for count, region in enumerate(found, 1):
            area = {"measurements": {"area_um2": round(region.pixels * pixel_um2, 4)}}
            file.write("\n" if count == 1 else ",\n")
            file.write('{"type":"Feature","geometry":{"type":"Polygon","coordinates":[')
            file.writelines(_coordinates(region, *texts))
            file.write(f']}},"properties":{_json(properties[region.value] | area)}}}')
        file.write("\n]}\n")
    return count


def _texts(size: int, scale: float, origin: float) -> list[str]:
    """Returns the level-0 coordinate of each line of the grid along an axis, as JSON."""
    lines = np.arange(size + 1) * scale - origin
    if float(scale).is_integer() and float(origin).is_integer():
        return [str(round(line)) for line in lines.tolist()]
    decimals = max(2, 1 - math.floor(math.log10(scale)))  # keeps neighboring lines different
    return [repr(line) for line in (np.round(lines, decimals) + 0.0).tolist()]


def _coordinates(region: Region, across: list[str], down: list[str]) -> Iterator[str]:
    """Yields the rings as JSON in pieces; `across` and `down` are the coordinates of each line of the grid as text."""
    for number, ring in enumerate(region.rings):
        yield ",[[" if number else "[["
        start = ""
        for points in ring:
            for begin in range(0, len(points), _POINTS_AT_A_TIME):
                x, y = points[begin : begin + _POINTS_AT_A_TIME].T.tolist()
                text = "],[".join(map(",".join, zip(map(across.__getitem__, x), map(down.__getitem__, y), strict=True)))
                yield f"],[{text}" if start else text
                start = start or f"{across[x[0]]},{down[y[0]]}"
        yield f"],[{start}]]"


def _json(value: object) -> str:
    return json.dumps(value, separators=(",", ":"), allow_nan=False)
