"""Reads polygons from GeoJSON files, such as tissue regions drawn in QuPath."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import shapely

from bcss_jax.common.json_files import read_json
from bcss_jax.errors import DataError

_MAX_BYTES = 1 << 29  # of a file that is read


_MAX_COORDINATE = 1e8


def read_regions(path: Path, origin: tuple[float, float] = (0, 0)) -> list[shapely.Polygon | shapely.MultiPolygon]:
    """The polygons of a GeoJSON file, of tissue say, in pixels of level 0.

    Args:
      path: a FeatureCollection, a Feature, an array of Features (QuPath writes these too) or a geometry, UTF-8.
      origin: what is 0 in the file, as in `write`.

    Returns:
      A valid geometry for each Polygon and MultiPolygon; rings that cross themselves are resolved by shapely's
      `make_valid`.

    Raises:
      DataError: no such file, too large, not JSON, no polygon in it, something that is not a polygon, or coordinates
        that are no finite numbers.
    """
    if path.is_file() and path.stat().st_size > _MAX_BYTES:
        raise DataError(
            f"{path}: {path.stat().st_size} bytes; GeoJSON of more than {_MAX_BYTES} is not read, give a mask image"
        )
    content = read_json(path, "GeoJSON", "export the regions again, or give a mask image")
    found = []
    for number, geometry in enumerate(_geometries(content), 1):
        where = f"{path}: geometry {number}"
        kind = geometry.get("type") if isinstance(geometry, dict) else geometry
        if kind not in ("Polygon", "MultiPolygon"):
            raise DataError(f"{where} is {ascii(kind)[:60]}, expected Polygon or MultiPolygon; take it out of the file")
        polygons = geometry.get("coordinates")
        try:
            parts = [
                shapely.Polygon(*_rings(rings, origin)) for rings in ([polygons] if kind == "Polygon" else polygons)
            ]
        except (TypeError, ValueError, OverflowError, shapely.errors.GEOSException) as error:
            raise DataError(f"{where}: {str(error)[:120]}") from error
        whole = shapely.make_valid(parts[0] if len(parts) == 1 else shapely.MultiPolygon(parts))
        areas = [part for part in shapely.get_parts(whole) if part.geom_type in ("Polygon", "MultiPolygon")]
        whole = shapely.union_all(areas)
        if whole.area == 0:
            raise DataError(f"{where} has no area")
        found.append(whole)
    if not found:
        raise DataError(f"{path}: no polygon; expected a FeatureCollection, a Feature or a geometry with some")
    return found


def _geometries(content: object) -> Iterator[object]:
    """The geometries in what a GeoJSON file holds; what is none of it, as it is."""
    if isinstance(content, list):
        for entry in content:
            yield from _geometries(entry)
        return
    kind = content.get("type") if isinstance(content, dict) else None
    if kind == "FeatureCollection" and isinstance(content.get("features"), list):
        yield from _geometries(content["features"])
    elif kind == "Feature":
        yield content.get("geometry")
    elif kind == "GeometryCollection" and isinstance(content.get("geometries"), list):
        yield from content["geometries"]
    else:
        yield content


def _rings(rings: object, origin: tuple[float, float]) -> tuple[np.ndarray, list[np.ndarray]]:
    """Shell and holes float64 [n, 2] of a Polygon's coordinates; ValueError says what is wrong with them."""
    if not isinstance(rings, list) or not rings or not all(isinstance(ring, list) and ring for ring in rings):
        raise ValueError("coordinates are not a list of rings")
    arrays = []
    for ring in rings:
        for point in ring:
            if not isinstance(point, list) or len(point) < 2:
                raise ValueError(f"{ascii(point)[:60]} is no point")
            for number in point[:2]:
                if isinstance(number, bool) or not isinstance(number, int | float):
                    raise ValueError(f"the coordinate {ascii(number)[:60]} is no number")
                if not abs(number) <= _MAX_COORDINATE:
                    raise ValueError(f"the coordinate {ascii(number)[:60]} is no pixel of a slide")
        array = np.array([point[:2] for point in ring], np.float64)
        if len(np.unique(array, axis=0)) < 3:
            raise ValueError(f"a ring of {len(np.unique(array, axis=0))} points")
        arrays.append(array + origin)
    return arrays[0], arrays[1:]
