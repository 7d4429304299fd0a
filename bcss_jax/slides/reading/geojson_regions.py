"""Reads polygons from GeoJSON files, for example tissue regions drawn in QuPath."""

import collections
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import shapely
from shapely.geometry.base import BaseGeometry

from bcss_jax.common.json_files import read_json
from bcss_jax.errors import DataError
from bcss_jax.slides.reading.outline_cover import covered_by_outline, drawn_area

log = logging.getLogger(__name__)

_NAMED_CHANGE = 0.01  # share of the area by which a geometry may differ from its outlines without a warning
_MAX_BYTES = 1 << 29  # larger files are refused
_WITHOUT_AREA = ("Point", "MultiPoint", "LineString", "MultiLineString")  # types of geometries that cover nothing
_NO_GEOMETRY = {"type": "Feature without a geometry"}  # stands for the null that such a Feature has
_DETECTIONS = ("cell", "detection", "tile", "tma_core")  # QuPath's objects that are no annotations
_MAX_COORDINATE = 1e8  # pixels; larger coordinates are not on any slide


def read_regions(
    path: Path, origin: tuple[float, float] = (0, 0), warn: Callable[[str], None] = log.warning
) -> list[BaseGeometry]:
    """Returns the polygons of a GeoJSON file in pixels of level 0.

    Args:
      path: a FeatureCollection, a Feature, an array of Features (QuPath also writes these) or a geometry, in UTF-8.
      origin: level-0 pixel x and y of the file's point (0, 0), as in `outputs.geojson.write`.
      warn: called with one line about each geometry that covers another area than its outlines state.

    Returns:
      A valid geometry for each Polygon and MultiPolygon; points and lines are left out, and `warn` is called with their
      number. A geometry is what its outlines cover (`covered_by_outline`), however often, without its holes.

    Raises:
      DataError: the file does not exist, is too large, is not JSON, contains no polygon or something
        that is no geometry, or has coordinates that are not finite numbers.
    """
    if path.is_file() and path.stat().st_size > _MAX_BYTES:
        raise DataError(
            f"{path}: expected GeoJSON of at most {_MAX_BYTES} bytes, found {path.stat().st_size}; "
            "give a mask image instead"
        )
    content = read_json(
        path,
        "GeoJSON",
        "export the regions again, or give a mask image",
        finite=False,  # QuPath writes NaN
    )
    _say_what_qupath_leaves_out(path, content, warn)
    regions, without_area = [], collections.Counter()
    for number, geometry in enumerate(_geometries(content), 1):
        where = f"{path}: geometry {number}"
        kind = geometry.get("type") if isinstance(geometry, dict) else geometry
        if geometry is _NO_GEOMETRY or isinstance(kind, str) and kind in _WITHOUT_AREA:
            without_area[kind] += 1
            continue
        if not isinstance(geometry, dict) or kind not in ("Polygon", "MultiPolygon"):
            raise DataError(f"{where} is {ascii(kind)[:60]}, expected Polygon or MultiPolygon; remove it from the file")
        polygons: Any = geometry.get("coordinates")
        try:
            parts = [_covered(*_rings(rings, origin)) for rings in ([polygons] if kind == "Polygon" else polygons)]
            region = shapely.union_all([part for part, _ in parts])
        except (TypeError, ValueError, OverflowError, shapely.errors.GEOSException) as error:
            raise DataError(f"{where}: {str(error)[:120]}") from error
        if region.area == 0:
            raise DataError(f"{where} has no area")
        stated = sum(area for _, area in parts)
        if abs(region.area - stated) > _NAMED_CHANGE * region.area:
            warn(
                f"{where}: its outlines cross, overlap or lie outside each other; what they cover is used, "
                f"{region.area:.0f} pixels, where their areas add up to {max(stated, 0):.0f} "
                f"({100 * abs(region.area - stated) / region.area:.1f} % of it); look at overlay.png"
            )
        regions.append(region)
    listed = ", ".join(f"{count} {kind}" for kind, count in sorted(without_area.items()))
    if not regions:
        also = f", only {listed}" if listed else ""
        raise DataError(
            f"{path}: no polygon{also}; expected a FeatureCollection, a Feature or a geometry with polygons"
        )
    if listed:
        warn(f"{path}: {listed} are left out, because they have no area; regions are Polygon and MultiPolygon")
    return regions


def _covered(shell: np.ndarray, holes: list[np.ndarray]) -> tuple[BaseGeometry, float]:
    """Returns what a polygon covers, and the area that its outlines state.

    A hole that lies outside of the shell is drawn too, so it is covered.
    """
    covered = covered_by_outline(shell)
    cut = [covered_by_outline(hole) for hole in holes]
    if any(hole.contains(covered) and hole.area > covered.area for hole in cut):
        raise ValueError("a hole that contains the outline; the first ring must be the outline")
    outside = [hole for hole in cut if not hole.intersects(covered)]
    inside = [hole for hole in cut if hole.intersects(covered)]
    stated = drawn_area(shell) - sum(drawn_area(hole) for hole in holes)
    return shapely.union_all([covered.difference(shapely.union_all(inside)), *outside]), stated


def _say_what_qupath_leaves_out(path: Path, content: Any, warn: Callable[[str], None]) -> None:
    """Warns of features that QuPath itself does not count on this plane: they are regions here like all others."""
    features = list(_features(content))
    ignored = sum(_class_name(feature).endswith("*") for feature in features)
    planes = [feature["geometry"].get("plane") for feature in features]
    elsewhere = sum(isinstance(plane, dict) and bool(plane.get("z") or plane.get("t")) for plane in planes)
    detected = sum(_property(feature, "objectType") in _DETECTIONS for feature in features)
    for count, what in (
        (ignored, "have a class that QuPath ignores (its name ends in *)"),
        (elsewhere, "lie in another plane (z or t above 0)"),
        (detected, "are cells, detections or tiles, not annotations"),
    ):
        if count:
            warn(f"{path}: {count} of {len(features)} features {what}; they count as regions like the others")


def _features(content: Any) -> Iterator[dict]:
    """Yields the features of a decoded GeoJSON file that have a geometry."""
    if isinstance(content, dict) and isinstance(content.get("features"), list):
        content = content["features"]
    for entry in content if isinstance(content, list) else [content]:
        if isinstance(entry, dict) and isinstance(entry.get("geometry"), dict):
            yield entry


def _class_name(feature: dict) -> str:
    found = _property(feature, "classification")
    name = found.get("name") if isinstance(found, dict) else None
    return name if isinstance(name, str) else ""


def _property(feature: dict, name: str) -> Any:
    properties = feature.get("properties")
    found = properties.get(name) if isinstance(properties, dict) else None
    return found if isinstance(found, str | dict) else None


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
        geometry = content.get("geometry")
        yield from [_NO_GEOMETRY] if geometry is None else _geometries(geometry)
    elif kind == "GeometryCollection" and isinstance(content.get("geometries"), list):
        yield from _geometries(content["geometries"])
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
