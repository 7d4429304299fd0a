"""Reads polygons from GeoJSON files as QuPath writes them: annotations with classes, or regions of tissue.

What QuPath writes, and what it reads, is in qupath-core of 0.5 and 0.6 (QuPathTypeAdapters, ROITypeAdapters and
GsonTools): a FeatureCollection, an array of Features or one Feature, whose geometries may have the members `plane` and
`isEllipse`. The properties hold `objectType`, `classification` and `childObjects`.
"""

import collections
import itertools
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import shapely
from shapely.geometry.base import BaseGeometry

from bcss_jax.common.json_files import read_json
from bcss_jax.errors import DataError, printable
from bcss_jax.slides.annotations.annotation import MAX_COORDINATE, Annotation, checked_ring, covered

log = logging.getLogger(__name__)

_NAMED_CHANGE = 0.01  # share of the area by which a geometry may differ from its outlines without a warning
_MAX_BYTES = 1 << 29  # larger files are refused
_WITHOUT_AREA = ("Point", "MultiPoint", "LineString", "MultiLineString")  # types of geometries that cover nothing
_NO_GEOMETRY = {"type": "Feature without a geometry"}  # stands for the null that such a Feature has
# QuPath's objects that are no annotations, by the names of all versions.
_DETECTIONS = (
    "cell", "detection", "tile", "tmacore", "tma_core", "root",
    "pathcellobject", "pathdetectionobject", "pathtileobject", "tmacoreobject", "pathrootobject",
)  # fmt: skip
_MAX_DEPTH = 20  # of objects in each other
_ELLIPSE_POINTS = 256  # the polygon differs from the ellipse by 0.01 % of its area


class _Entry(NamedTuple):
    """A geometry of a file, with its number from 1 and the Feature that it belongs to, if any."""

    number: int
    geometry: Any
    feature: dict


def read_regions(
    path: Path, origin: tuple[float, float] = (0, 0), warn: Callable[[str], None] = log.warning
) -> list[BaseGeometry]:
    """Returns the polygons of a GeoJSON file in pixels of level 0, whatever objects they are.

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
    entries = _entries(path)
    _say_what_qupath_leaves_out(path, entries, warn)
    regions = []
    for entry in _with_area(path, entries, warn, "regions are Polygon and MultiPolygon"):
        region, stated = _area(path, entry, origin)
        if abs(region.area - stated) > _NAMED_CHANGE * region.area:
            warn(
                f"{printable(path)}: geometry {entry.number}: its outlines cross, overlap or lie outside each other; "
                f"what they cover is used, {region.area:.0f} pixels, where their areas add up to {max(stated, 0):.0f} "
                f"({100 * abs(region.area - stated) / region.area:.1f} % of it); look at overlay.png"
            )
        regions.append(region)
    return regions


def read_annotations(
    path: Path,
    origin: tuple[float, float] = (0, 0),
    warn: Callable[[str], None] = log.warning,
    *,
    line_width: float | None = None,
) -> list[Annotation]:
    """Returns the annotations of a GeoJSON file.

    Cells, detections, tiles and TMA cores are left out, and so are objects in other planes than the first (z or t above
    0), points and lines. `warn` is called with their number. Locked objects are annotations like others; QuPath does
    not write whether an object is hidden. Child objects are read too. An ellipse is that of its bounding box, as for
    QuPath. Measurements and `nucleusGeometry` are not used.

    Args:
      path: as in `read_regions`.
      origin: level-0 pixel x and y of the file's point (0, 0).
      warn: called with one line about everything that is left out.
      line_width: lines are areas of this width in pixels of level 0, and points discs of this diameter; None: they are
        left out.

    Raises:
      DataError: as in `read_regions`; or an outline crosses itself so that its area is in doubt by more than 1 %.
    """
    entries = _entries(path)
    kept = []
    detected = elsewhere = 0
    for entry in entries:
        if _kind(entry.feature) in _DETECTIONS:
            detected += 1
        elif _is_elsewhere(entry.geometry):
            elsewhere += 1
        else:
            kept.append(entry)
    for count, what in (
        (detected, "are cells, detections, tiles or cores of a TMA, not annotations"),
        (elsewhere, "lie in another plane (z or t above 0)"),
    ):
        if count:
            warn(f"{printable(path)}: {count} of {len(entries)} objects {what}; they are left out")
    annotations = []
    lines = _WITHOUT_AREA if line_width is not None else ()
    for entry in _with_area(path, kept, warn, "annotations are Polygon and MultiPolygon", lines):
        _check_class(path, entry)
        names = _class_names(entry.feature)
        place = f"geometry {entry.number}" + (f" ({ascii(names[0])[1:-1][:60]})" if names else "")
        if line_width is not None and entry.geometry["type"] in lines:
            area, points = _widened(path, entry, origin, line_width)
            annotations.append(Annotation(names, area, place, entry.feature, points))
            continue
        area, stated = _area(path, entry, origin)
        if abs(area.area - stated) > _NAMED_CHANGE * area.area:
            x, y = area.bounds[:2]
            raise DataError(
                f"{printable(path)}: {place} at ({x:.0f}, {y:.0f}): expected outlines that do not cross themselves, "
                f"found that they cover {area.area:.0f} pixels where their areas add up to {max(stated, 0):.0f}; "
                "draw it again, or remove it"
            )
        annotations.append(Annotation(names, area, place, entry.feature))
    return annotations


def _entries(path: Path) -> list[_Entry]:
    """Returns the geometries of a file, and whatever else stands in their place."""
    if path.is_file() and path.stat().st_size > _MAX_BYTES:
        raise DataError(
            f"{printable(path)}: expected GeoJSON of at most {_MAX_BYTES} bytes, found {path.stat().st_size}; "
            "give a mask image instead"
        )
    content = read_json(
        path,
        "GeoJSON",
        "export the regions again, or give a mask image",
        finite=False,  # QuPath writes NaN
    )
    return [_Entry(number, *found) for number, found in enumerate(_geometries(content), 1)]


def _with_area(
    path: Path, entries: list[_Entry], warn: Callable[[str], None], what: str, also: tuple[str, ...] = ()
) -> Iterator[_Entry]:
    """Yields Polygons, MultiPolygons and what is in `also`.

    Raises:
      DataError: there is none, or something is no geometry.
    """
    found, without_area = [], collections.Counter()
    for entry in entries:
        geometry = entry.geometry
        kind = geometry.get("type") if isinstance(geometry, dict) else geometry
        if isinstance(geometry, dict) and isinstance(kind, str) and kind in ("Polygon", "MultiPolygon", *also):
            found.append(entry)
        elif geometry is _NO_GEOMETRY or isinstance(kind, str) and kind in _WITHOUT_AREA:
            without_area[kind] += 1
        else:
            raise DataError(
                f"{printable(path)}: geometry {entry.number} is {_shown(kind)}, expected Polygon or MultiPolygon; "
                "remove it from the file"
            )
    listed = ", ".join(f"{count} {kind}" for kind, count in sorted(without_area.items()))
    if not found:
        only = f", only {listed}" if listed else ""
        wanted = "polygon or line" if also else "polygon"
        raise DataError(
            f"{printable(path)}: no {wanted}{only}; expected a FeatureCollection, a Feature or a geometry with polygons"
        )
    yield from found
    if listed:
        warn(f"{printable(path)}: {listed} are left out, because they have no area; {what}")


def _shown(kind: Any) -> str:
    return "an object without a type" if kind is None else ascii(kind)[:60]


def _area(path: Path, entry: _Entry, origin: tuple[float, float]) -> tuple[BaseGeometry, float]:
    """Returns what a Polygon or MultiPolygon covers, and the area that its outlines state."""
    where, geometry = f"{printable(path)}: geometry {entry.number}", entry.geometry
    polygons: Any = geometry.get("coordinates")
    if geometry["type"] == "Polygon":
        polygons = [polygons]
    try:
        parts = [covered(*_rings(rings, origin)) for rings in polygons]
        area = shapely.union_all([part for part, _ in parts]) if len(parts) != 1 else parts[0][0]
        if geometry.get("isEllipse") is True and area.area:
            area = _ellipse(*area.bounds)
            parts = [(area, area.area)]
    except (TypeError, ValueError, OverflowError, shapely.errors.GEOSException) as error:
        raise DataError(
            f"{where}: expected outlines of pixels, found {str(error)[:120]}; draw it again, or remove it"
        ) from error
    if area.area == 0:
        raise DataError(f"{where}: expected an area, found an outline that has no area; draw it again, or remove it")
    return area, sum(stated for _, stated in parts)


def _widened(path: Path, entry: _Entry, origin: tuple[float, float], width: float) -> tuple[BaseGeometry, np.ndarray]:
    """Returns what lines of a width cover, or points of a diameter, and the points themselves."""
    where, geometry = f"{printable(path)}: geometry {entry.number}", entry.geometry
    kind, parts = geometry["type"], geometry.get("coordinates")
    if kind in ("Point", "LineString"):
        parts = [parts]
    try:
        if not isinstance(parts, list) or not parts:
            raise ValueError("no coordinates")
        lines = [[part] if kind.endswith("Point") else part for part in parts]
        for line in lines:
            if not isinstance(line, list) or not line or not _are_points(line):
                _refuse(line if isinstance(line, list) else [line])
                raise ValueError("a line without points")
        arrays = [np.array([point[:2] for point in line]) + origin for line in lines]
        area = shapely.union_all([_thick(points, width) for points in arrays])
        return area, np.concatenate(arrays).astype(np.float64)
    except (TypeError, ValueError, OverflowError, shapely.errors.GEOSException) as error:
        raise DataError(
            f"{where}: expected lines or points of pixels, found {str(error)[:120]}; draw it again, or remove it"
        ) from error


def _thick(points: np.ndarray, width: float) -> BaseGeometry:
    """Returns what a pen of a width covers along points float64 [n, 2]."""
    line = shapely.Point(points[0]) if len(np.unique(points, axis=0)) == 1 else shapely.LineString(points)
    return line.buffer(width / 2)


def _ellipse(left: float, top: float, right: float, bottom: float) -> BaseGeometry:
    angles = np.arange(_ELLIPSE_POINTS) * 2 * np.pi / _ELLIPSE_POINTS
    x = (left + right) / 2 + np.cos(angles) * (right - left) / 2
    y = (top + bottom) / 2 + np.sin(angles) * (bottom - top) / 2
    return shapely.Polygon(np.stack([x, y], 1))


def _say_what_qupath_leaves_out(path: Path, entries: list[_Entry], warn: Callable[[str], None]) -> None:
    """Warns of features that QuPath itself does not count on this plane: they are regions here like all others."""
    features = [entry for entry in entries if entry.feature and entry.geometry is not _NO_GEOMETRY]
    ignored = sum(bool(names) and names[0].endswith("*") for names in (_class_names(each.feature) for each in features))
    elsewhere = sum(_is_elsewhere(each.geometry) for each in features)
    detected = sum(_kind(each.feature) in _DETECTIONS for each in features)
    for count, what in (
        (ignored, "have a class that QuPath ignores (its name ends in *)"),
        (elsewhere, "lie in another plane (z or t above 0)"),
        (detected, "are cells, detections or tiles, not annotations"),
    ):
        if count:
            warn(
                f"{printable(path)}: {count} of {len(features)} features {what}; they count as regions like the others"
            )


def _is_elsewhere(geometry: Any) -> bool:
    plane = geometry.get("plane") if isinstance(geometry, dict) else None
    return isinstance(plane, dict) and bool(plane.get("z") or plane.get("t"))


def _check_class(path: Path, entry: _Entry) -> None:
    """Raises a DataError for a class that is no name; without a class, an annotation has null or nothing there."""
    found = _properties(entry.feature).get("classification")
    name = found.get("names", found.get("name")) if isinstance(found, dict) else found
    parts = name if isinstance(name, list) else [name]
    if not (name is None or all(isinstance(part, str) for part in parts)):
        raise DataError(
            f"{printable(path)}: geometry {entry.number}: expected the name of a class, found {ascii(name)[:60]}; "
            "classify it again"
        )


def _class_names(feature: dict) -> tuple[str, ...]:
    """Returns the names of a Feature's class as `Annotation` has them; QuPath has written it in several ways."""
    found = _properties(feature).get("classification")
    if isinstance(found, dict) and isinstance(found.get("parentClass"), dict):  # before 0.4
        chain: list = []
        while isinstance(found, dict) and len(chain) < _MAX_DEPTH:
            chain, found = [found.get("name"), *chain], found.get("parentClass")
        found = chain
    elif isinstance(found, dict):
        found = found.get("names", found.get("name"))
    parts = found if isinstance(found, list) else found.split(":") if isinstance(found, str) else []
    texts = [part.strip() for part in parts if isinstance(part, str) and part.strip()]
    return tuple(": ".join(texts[:count]) for count in range(len(texts), 0, -1))


def _kind(feature: dict) -> Any:
    """Returns what kind of object QuPath takes a Feature for, in lower case."""
    properties = _properties(feature)
    found = [properties[name] for name in ("objectType", "object_type", "type") if name in properties]
    kind = found[0] if found else feature.get("id")  # 0.2 wrote the type as the id
    return kind.casefold() if isinstance(kind, str) else None


def _properties(feature: dict) -> dict:
    properties = feature.get("properties")
    return properties if isinstance(properties, dict) else {}


def _geometries(content: Any, feature: dict | None = None, depth: int = 0) -> Iterator[tuple[Any, dict]]:
    """Yields the geometries of a decoded GeoJSON file, each with its Feature or {}.

    Anything that is not GeoJSON is yielded unchanged.
    """
    feature = {} if feature is None else feature
    if isinstance(content, list):
        for entry in content:
            yield from _geometries(entry, feature, depth)
        return
    kind = content.get("type") if isinstance(content, dict) else None
    if kind == "FeatureCollection" and isinstance(content.get("features"), list):
        yield from _geometries(content["features"], feature, depth)
    elif kind == "Feature":
        geometry = content.get("geometry")
        yield from [(_NO_GEOMETRY, content)] if geometry is None else _geometries(geometry, content, depth)
        properties = _properties(content)
        children = properties.get("childObjects", properties.get("children"))
        if isinstance(children, list) and depth < _MAX_DEPTH:
            yield from _geometries(children, {}, depth + 1)
    elif kind == "GeometryCollection" and isinstance(content.get("geometries"), list):
        yield from _geometries(content["geometries"], feature, depth)
    else:
        yield content, feature


def _rings(rings: object, origin: tuple[float, float]) -> tuple[np.ndarray, list[np.ndarray]]:
    """Converts a Polygon's coordinates to shell and holes, float64 [n, 2]; raises a ValueError if they are wrong."""
    if not isinstance(rings, list) or not rings or not all(isinstance(ring, list) and ring for ring in rings):
        raise ValueError("coordinates are not a list of rings")
    arrays = []
    for ring in rings:
        if not _are_points(ring):
            _refuse(ring)
        arrays.append(checked_ring([point[:2] for point in ring], origin))
    return arrays[0], arrays[1:]


def _are_points(ring: list) -> bool:
    """Returns whether a ring consists of points on slides; a file may have millions."""
    if set(map(type, ring)) != {list} or min(map(len, ring)) < 2:
        return False
    numbers = list(itertools.chain.from_iterable(ring))
    return set(map(type, numbers)) <= {int, float} and bool((np.abs(np.array(numbers)) <= MAX_COORDINATE).all())


def _refuse(ring: list) -> None:
    """Raises a ValueError with what is wrong with a ring, if it is within the first two numbers of a point."""
    for point in ring:
        if not isinstance(point, list) or len(point) < 2:
            raise ValueError(f"{ascii(point)[:60]} is not a point")
        for number in point[:2]:
            if isinstance(number, bool) or not isinstance(number, int | float):
                raise ValueError(f"the coordinate {ascii(number)[:60]} is not a number")
            if not abs(number) <= MAX_COORDINATE:
                raise ValueError(f"the coordinate {ascii(number)[:60]} is not a pixel of a slide")
