"""Polygons read from GeoJSON files, and files that are refused in one line."""

import json
import re

import pytest

from bcss_jax.errors import DataError
from bcss_jax.slides.annotations import geojson as geojson_regions

SQUARE = [[[0, 0], [10, 0], [10, 10], [0, 10], [0, 0]]]
POLYGON = {"type": "Polygon", "coordinates": SQUARE}
FEATURE = {"type": "Feature", "geometry": POLYGON, "properties": None}


@pytest.mark.parametrize(
    "content, areas",
    [
        (POLYGON, [100]),
        (FEATURE, [100]),
        ([FEATURE, FEATURE], [100, 100]),
        ({"type": "FeatureCollection", "features": [FEATURE, POLYGON]}, [100, 100]),
        ({"type": "MultiPolygon", "coordinates": [SQUARE, [[[20, 0, 5], [30, 0, 5], [30, 10, 5]]]]}, [150]),
        ({"type": "Polygon", "coordinates": [*SQUARE, [[2, 2], [2, 4], [4, 4], [4, 2], [2, 2]]]}, [96]),
        ({"type": "GeometryCollection", "geometries": [POLYGON]}, [100]),
        ({"type": "Polygon", "coordinates": [[[0, 0], [10, 10], [10, 0], [0, 10], [0, 0]]]}, [50]),  # crosses itself
    ],
)
def test_regions_are_read(tmp_path, content, areas):
    path = tmp_path / "tissue.geojson"
    for encoding in ("utf-8", "utf-8-sig"):
        path.write_text(json.dumps(content), encoding=encoding)
        found = geojson_regions.read_regions(path)
        assert [geometry.area for geometry in found] == areas and all(geometry.is_valid for geometry in found)
    assert geojson_regions.read_regions(path, (5, 7))[0].bounds[:2] == (5, 7)


def with_points(*points):
    return json.dumps({"type": "Polygon", "coordinates": [list(points)]})


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "expected GeoJSON, found: no JSON"),
        ("\x89PNG", "expected GeoJSON, found: no JSON"),
        ("[" * 100_000, "expected GeoJSON, found: no JSON"),
        ("[]", "no polygon"),
        ('{"type": "FeatureCollection", "features": []}', "no polygon"),
        ("7", "geometry 1 is 7, expected Polygon"),
        ('{"type": "Point", "coordinates": [1, 2]}', "no polygon, only 1 Point;"),
        ('{"type": "Feature", "geometry": null}', "no polygon, only 1 Feature without a geometry;"),
        ('{"type": "Circle", "coordinates": [1, 2]}', "geometry 1 is 'Circle', expected Polygon"),
        ('{"type": "GeometryCollection", "geometries": [7]}', "geometry 1 is 7, expected Polygon"),
        ('{"type": ["Polygon"]}', "geometry 1 is"),
        ('{"images": []}', "geometry 1 is an object without a type, expected Polygon"),
        ('{"type": "Polygon"}', "coordinates are not a list of rings"),
        ('{"type": "MultiPolygon", "coordinates": 5}', "geometry 1: "),
        ('{"type": "MultiPolygon", "coordinates": []}', "has no area"),
        (with_points([0, 0], [1, float("nan")], [1, 1]), "the coordinate nan is not a pixel"),
        (with_points([0, 0], [1, float("inf")], [1, 1]), "the coordinate inf is not a pixel"),
        (with_points([0, 0], [1, 10**400], [1, 1]), "an integer of more than 64 bits"),
        (with_points([0, 0], [1, 10**9], [1, 1]), "the coordinate 1000000000 is not a pixel"),
        (with_points([0, 0], [1, "7"], [1, 1]), "the coordinate '7' is not a number"),
        (with_points([0, 0], [1, True], [1, 1]), "the coordinate True is not a number"),
        (with_points([0, 0], [1], [1, 1]), "is not a point"),
        (with_points([0, 0], [1, 1], [0, 0]), "a ring of 2 points"),
        (with_points([0, 0], [1, 1], [2, 2], [0, 0]), "has no area"),
    ],
)
def test_what_is_wrong_is_one_line(tmp_path, text, message):
    path = tmp_path / "tissue.geojson"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(DataError, match=re.escape(message)) as caught:
        geojson_regions.read_regions(path)
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)


def test_no_file_and_a_file_that_is_too_large(tmp_path, monkeypatch):
    path = tmp_path / "tissue.geojson"
    with pytest.raises(DataError, match="expected GeoJSON, found no such file"):
        geojson_regions.read_regions(path)
    path.write_text(json.dumps(POLYGON))
    monkeypatch.setattr(geojson_regions, "_MAX_BYTES", 10)
    with pytest.raises(DataError, match="give a mask image"):
        geojson_regions.read_regions(path)


def square(x, y, side):
    return [[x, y], [x + side, y], [x + side, y + side], [x, y + side], [x, y]]


@pytest.mark.parametrize(
    "geometry, area, said",
    [
        ({"type": "Polygon", "coordinates": [square(0, 0, 10)]}, 100, None),
        ({"type": "Polygon", "coordinates": [square(0, 0, 10)[::-1], square(2, 2, 2)]}, 96, None),
        ({"type": "Polygon", "coordinates": [square(0, 0, 10) * 2]}, 100, "100.0 %"),
        ({"type": "Polygon", "coordinates": [square(0, 0, 10), square(2, 2, 2), square(2, 2, 2)]}, 96, "4.2 %"),
        ({"type": "Polygon", "coordinates": [square(0, 0, 10), square(20, 0, 10)]}, 200, "add up to 0"),
        ({"type": "Polygon", "coordinates": [square(0, 0, 10), square(8, 0, 10)]}, 80, "add up to 0"),
        ({"type": "MultiPolygon", "coordinates": [[square(0, 0, 10)], [square(5, 0, 10)]]}, 150, "33.3 %"),
        ({"type": "MultiPolygon", "coordinates": [[square(0, 0, 10)], [square(0, 0, 10)]]}, 100, "100.0 %"),
        ({"type": "MultiPolygon", "coordinates": [[square(0, 0, 10)], [square(10, 0, 10)]]}, 200, None),
    ],
)
def test_what_is_drawn_is_covered_and_changes_of_the_area_are_named(tmp_path, geometry, area, said):
    path, lines = tmp_path / "tissue.geojson", []
    path.write_text(json.dumps({"type": "FeatureCollection", "features": [FEATURE, {**FEATURE, "geometry": geometry}]}))
    region = geojson_regions.read_regions(path, warn=lines.append)[1]
    assert region.is_valid and region.area == pytest.approx(area)
    assert len(lines) == (said is not None)
    if said:
        assert lines[0].startswith(f"{path}: geometry 2: ") and said in lines[0]


@pytest.mark.parametrize(
    "rings, message",
    [
        ([square(2, 2, 2), square(0, 0, 10)], "a hole that contains the outline"),
        ([square(0, 0, 10), square(0, 0, 10)], "has no area"),
    ],
)
def test_holes_that_leave_nothing_are_refused(tmp_path, rings, message):
    path = tmp_path / "tissue.geojson"
    path.write_text(json.dumps({"type": "Polygon", "coordinates": rings}))
    with pytest.raises(DataError, match=message):
        geojson_regions.read_regions(path)


def test_features_that_qupath_leaves_out_are_said(tmp_path):
    square = {"type": "Polygon", "coordinates": [[[0, 0], [9, 0], [9, 9], [0, 9], [0, 0]]]}
    features = [
        {"type": "Feature", "geometry": square, "properties": {"classification": {"name": "Ignore*"}}},
        {"type": "Feature", "geometry": square | {"plane": {"c": -1, "z": 3, "t": 0}}, "properties": None},
        {"type": "Feature", "geometry": square | {"plane": {"c": -1, "z": 0, "t": 0}}, "properties": {}},
    ]
    (tmp_path / "a.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    said = []
    assert len(geojson_regions.read_regions(tmp_path / "a.geojson", warn=said.append)) == 3
    assert [re.findall(r"1 of 3 features (have|lie)", line) for line in said] == [["have"], ["lie"]]


def test_points_and_lines_are_left_out_and_counted(tmp_path):
    point, line = {"type": "Point", "coordinates": [3, 4]}, {"type": "LineString", "coordinates": [[0, 0], [5, 5]]}
    inner = {"type": "GeometryCollection", "geometries": [POLYGON]}
    nested = {"type": "GeometryCollection", "geometries": [point, inner]}
    features = [
        {"type": "Feature", "geometry": geometry, "properties": {"objectType": "annotation"}}
        for geometry in (POLYGON, point, line, nested, None)
    ]
    (tmp_path / "a.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    said = []
    assert [each.area for each in geojson_regions.read_regions(tmp_path / "a.geojson", warn=said.append)] == [100, 100]
    assert len(said) == 1
    assert "1 Feature without a geometry, 1 LineString, 2 Point are left out, because they have no area" in said[0]


def test_objects_that_are_no_annotations_are_said(tmp_path):
    cell = FEATURE | {"properties": {"objectType": "cell"}, "nucleusGeometry": POLYGON}
    (tmp_path / "a.geojson").write_text(json.dumps([cell, FEATURE | {"properties": {"objectType": "annotation"}}]))
    said = []
    assert len(geojson_regions.read_regions(tmp_path / "a.geojson", warn=said.append)) == 2
    assert (
        len(said) == 1 and "1 of 2 features are cells, detections or tiles, not annotations; they count as" in said[0]
    )
