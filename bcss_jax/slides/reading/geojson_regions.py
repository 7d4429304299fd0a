"""Reads polygons from GeoJSON files, for example tissue regions drawn in QuPath."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import shapely

from bcss_jax.common.json_files import read_json
from bcss_jax.errors import DataError

_MAX_BYTES = 1 << 29  # larger files are refused
_MAX_COORDINATE = 1e8  # pixels; larger coordinates are not on any slide


def read_regions(path: Path, origin: tuple[float, float] = (0, 0)) -> list[shapely.Polygon | shapely.MultiPolygon]:
    """Returns the polygons of a GeoJSON file in pixels of level 0.

    Args:
      path: a FeatureCollection, a Feature, an array of Features (QuPath also writes these) or a geometry, in UTF-8.
      origin: level-0 pixel x and y of the file's point (0, 0), as in `outputs.geojson.write`.

    Returns:
      A valid geometry for each Polygon and MultiPolygon. Shapely's `make_valid` resolves rings that cross themselves.

    Raises:
      DataError: the file does not exist, is too large, is not JSON or contains no polygon, contains something else than
        polygons, or has coordinates that are not finite numbers.
    """
    if path.is_file() and path.stat().st_size > _MAX_BYTES:
        raise DataError(
            f"{path}: expected GeoJSON of at most {_MAX_BYTES} bytes, found {path.stat().st_size}; "
            "give a mask image instead"
        )
    content = read_json(path, "GeoJSON", "export the regions again, or give a mask image")
    regions = []
    for number, geometry in enumerate(_geometries(content), 1):
        where = f"{path}: geometry {number}"
        kind = geometry.get("type") if isinstance(geometry, dict) else geometry
        if not isinstance(geometry, dict) or kind not in ("Polygon", "MultiPolygon"):
            raise DataError(f"{where} is {ascii(kind)[:60]}, expected Polygon or MultiPolygon; remove it from the file")
        polygons: Any = geometry.get("coordinates")
        try:
            parts = [
                shapely.Polygon(*_rings(rings, origin)) for rings in ([polygons] if kind == "Polygon" else polygons)
            ]
        except (TypeError, ValueError, OverflowError, shapely.errors.GEOSException) as error:
            raise DataError(f"{where}: {str(error)[:120]}") from error
        valid = shapely.make_valid(parts[0] if len(parts) == 1 else shapely.MultiPolygon(parts))
        areas = [part for part in shapely.get_parts(valid) if part.geom_type in ("Polygon", "MultiPolygon")]
        region = shapely.union_all(areas)
        if region.area == 0:
            raise DataError(f"{where} has no area")
        regions.append(region)
    if not regions:
        raise DataError(f"{path}: no polygon; expected a FeatureCollection, a Feature or a geometry with polygons")
    return regions


def _geometries(content: Any) -> Iterator[Any]:
    """Yields the geometries of a decoded GeoJSON file; anything that is not GeoJSON is yielded unchanged."""
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
    """Converts a Polygon's coordinates to shell and holes, float64 [n, 2]; raises a ValueError if they are wrong."""
    if not isinstance(rings, list) or not rings or not all(isinstance(ring, list) and ring for ring in rings):
        raise ValueError("coordinates are not a list of rings")
    arrays = []
    for ring in rings:
        for point in ring:
            if not isinstance(point, list) or len(point) < 2:
                raise ValueError(f"{ascii(point)[:60]} is not a point")
            for number in point[:2]:
                if isinstance(number, bool) or not isinstance(number, int | float):
                    raise ValueError(f"the coordinate {ascii(number)[:60]} is not a number")
                if not abs(number) <= _MAX_COORDINATE:
                    raise ValueError(f"the coordinate {ascii(number)[:60]} is not a pixel of a slide")
        array = np.array([point[:2] for point in ring], np.float64)
        if len(np.unique(array, axis=0)) < 3:
            raise ValueError(f"a ring of {len(np.unique(array, axis=0))} points")
        arrays.append(array + origin)
    return arrays[0], arrays[1:]
