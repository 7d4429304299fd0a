"""Polygons read from GeoJSON files, and files that are refused in one line."""

import json
import re

import pytest

from bcss_jax.errors import DataError
from bcss_jax.slides.reading import geojson_regions

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
        ('{"type": "Point", "coordinates": [1, 2]}', "geometry 1 is 'Point', expected Polygon"),
        ('{"type": "Feature", "geometry": null}', "geometry 1 is None"),
        ('{"type": ["Polygon"]}', "geometry 1 is"),
        ('{"type": "Polygon"}', "coordinates are not a list of rings"),
        ('{"type": "MultiPolygon", "coordinates": 5}', "geometry 1: "),
        ('{"type": "MultiPolygon", "coordinates": []}', "has no area"),
        (with_points([0, 0], [1, float("nan")], [1, 1]), "the coordinate nan is not a pixel"),
        (with_points([0, 0], [1, float("inf")], [1, 1]), "the coordinate inf is not a pixel"),
        (with_points([0, 0], [1, 10**400], [1, 1]), "is not a pixel"),
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
    with pytest.raises(DataError, match="expected GeoJSON, found: No such file"):
        geojson_regions.read_regions(path)
    path.write_text(json.dumps(POLYGON))
    monkeypatch.setattr(geojson_regions, "_MAX_BYTES", 10)
    with pytest.raises(DataError, match="give a mask image"):
        geojson_regions.read_regions(path)
