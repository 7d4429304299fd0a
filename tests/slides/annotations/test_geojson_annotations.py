"""Annotations read from GeoJSON as the versions of QuPath write it."""

import json

import pytest
import shapely

from bcss_jax.errors import DataError
from bcss_jax.slides.annotations.geojson import read_annotations

SQUARE = [[0, 0], [10, 0], [10, 10], [0, 10], [0, 0]]
POLYGON = {"type": "Polygon", "coordinates": [SQUARE]}


def feature(geometry=POLYGON, **properties):
    return {"type": "Feature", "id": "1b2e", "geometry": geometry, "properties": properties}


def read(tmp_path, content, **arguments):
    path, said = tmp_path / "a.geojson", []
    path.write_text(json.dumps(content))
    found = read_annotations(path, warn=said.append, **arguments)
    return found, [line.removeprefix(f"{path}: ") for line in said]


@pytest.mark.parametrize("kind", ["collection", "list", "feature"])
def test_all_forms_of_a_file_give_the_same(tmp_path, kind):
    one = feature(objectType="annotation", classification={"name": "Tumor", "color": [200, 0, 0]})
    content = {"collection": {"type": "FeatureCollection", "features": [one]}, "list": [one], "feature": one}[kind]
    ((annotation,), said) = read(tmp_path, content, origin=(3, 4))
    assert annotation.names == ("Tumor",) and annotation.area.bounds == (3, 4, 13, 14) and said == []


@pytest.mark.parametrize(
    "classification, names",
    [
        (None, ()),
        ({}, ()),
        ({"name": "Tumor", "color": [200, 0, 0]}, ("Tumor",)),
        ("Tumor", ("Tumor",)),
        ({"name": "Tumor", "colorRGB": -3670016}, ("Tumor",)),  # before 0.4
        ({"names": ["Tumor", "Positive"], "color": [250, 62, 62]}, ("Tumor: Positive", "Tumor")),
        ({"name": "Tumor: Positive", "color": [250, 62, 62]}, ("Tumor: Positive", "Tumor")),
        ({"name": "Positive", "parentClass": {"name": "Tumor", "colorRGB": 1}}, ("Tumor: Positive", "Tumor")),
    ],
)
def test_classes(tmp_path, classification, names):
    ((annotation,), _) = read(tmp_path, feature(objectType="annotation", classification=classification))
    assert annotation.names == names


@pytest.mark.parametrize("classification", [7, True, {"name": 5}, {"names": ["Tumor", None]}, ["Tumor", {}]])
def test_a_class_that_is_no_name_is_refused(tmp_path, classification):
    content = [feature(), feature(objectType="annotation", classification=classification)]
    with pytest.raises(DataError, match="geometry 2: expected the name of a class, found .*; classify it again"):
        read(tmp_path, content)


@pytest.mark.parametrize(
    "other",
    [
        feature(objectType="cell") | {"nucleusGeometry": POLYGON},
        *(feature(objectType=kind) for kind in ("detection", "Detection", "tile", "tmaCore", "tma_core", "root")),
        feature(object_type="cell"),
        feature() | {"id": "PathCellObject"},  # 0.2
    ],
)
def test_objects_that_are_no_annotations_are_left_out_and_counted(tmp_path, other):
    found, said = read(tmp_path, [feature(name="kept"), other])
    assert [each.place for each in found] == ["geometry 1"]
    assert said == ["1 of 2 objects are cells, detections, tiles or cores of a TMA, not annotations; they are left out"]


def test_locked_annotations_and_their_measurements_make_no_difference(tmp_path):
    annotated = {"objectType": "annotation", "isLocked": True, "measurements": {"Area": float("nan")}, "metadata": {}}
    found, said = read(tmp_path, [feature(**annotated), feature(measurements=[{"name": "a", "value": 3}])])
    assert len(found) == 2 and said == []


def test_other_planes_are_left_out_and_counted(tmp_path):
    planes = [{"c": -1, "z": 0, "t": 0}, {"c": -1, "z": 3, "t": 0}, {"c": -1, "z": 0, "t": 1}]
    found, said = read(tmp_path, [feature(POLYGON | {"plane": plane}) for plane in planes])
    assert len(found) == 1 and said == ["2 of 3 objects lie in another plane (z or t above 0); they are left out"]


def test_child_objects_are_read(tmp_path):
    child = feature(objectType="annotation", classification={"name": "Stroma", "color": [1, 2, 3]})
    detection = feature(objectType="detection", childObjects=[child])
    found, _ = read(tmp_path, feature(objectType="annotation", childObjects=[detection]))
    assert [each.names for each in found] == [(), ("Stroma",)]


def test_an_ellipse_is_that_of_its_bounding_box(tmp_path):
    diamond = [[10, 0], [20, 5], [10, 10], [0, 5], [10, 0]]
    ((ellipse,), _) = read(tmp_path, feature({"type": "Polygon", "coordinates": [diamond], "isEllipse": True}))
    assert ellipse.area.bounds == (0, 0, 20, 10)
    assert ellipse.area.area == pytest.approx(3.14159 * 10 * 5, rel=1e-3)


def test_multipolygons_and_holes(tmp_path):
    hole = [[2, 2], [4, 2], [4, 4], [2, 4], [2, 2]]
    far = [[20, 0], [30, 0], [30, 10], [20, 0]]
    ((annotation,), _) = read(tmp_path, feature({"type": "MultiPolygon", "coordinates": [[SQUARE, hole], [far]]}))
    assert annotation.area.area == 96 + 50 and not annotation.area.contains(shapely.Point(3, 3))


def test_points_and_lines_bear_no_area(tmp_path):
    line = {"type": "LineString", "coordinates": [[0, 0], [5, 5]]}
    found, said = read(tmp_path, [feature(), feature(line), feature({"type": "Point", "coordinates": [1, 1]})])
    assert len(found) == 1 and "1 LineString, 1 Point are left out, because they have no area" in said[0]


@pytest.mark.parametrize(
    "ring, refused",
    [
        ([[0, 0], [100, 0], [100, 100], [99.5, 100.5], [99.5, 99.5], [99, 100], [0, 100], [0, 0]], False),
        ([[0, 0], [100, 100], [100, 0], [0, 100], [0, 0]], True),
        ([[0, 0], [100, 0], [100, 100], [60, 140], [140, 140], [80, 100], [0, 100], [0, 0]], True),
    ],
)
def test_an_outline_that_crosses_itself_is_repaired_or_named(tmp_path, ring, refused):
    content = feature({"type": "Polygon", "coordinates": [ring]}, classification={"name": "Tumor", "color": [1, 1, 1]})
    if refused:
        with pytest.raises(DataError, match=r"geometry 1 \(Tumor\) at \(0, 0\): expected outlines that do not cross"):
            read(tmp_path, content)
    else:
        ((annotation,), said) = read(tmp_path, content)
        assert annotation.area.is_valid and annotation.area.area == pytest.approx(10_000, rel=0.01) and said == []


@pytest.mark.parametrize(
    ("geometry", "bounds", "area"),
    [
        ({"type": "LineString", "coordinates": [[0, 5], [20, 5]]}, (0, 3, 24, 7), 80),
        ({"type": "MultiLineString", "coordinates": [[[0, 5], [20, 5]], [[0, 50], [0, 70]]]}, (0, 3, 24, 72), 160),
        ({"type": "LineString", "coordinates": [[3, 3], [3, 3]]}, (3, 1, 7, 5), 0),
        ({"type": "Point", "coordinates": [3, 3]}, (3, 1, 7, 5), 0),
        ({"type": "MultiPoint", "coordinates": [[3, 3], [30, 3]]}, (3, 1, 34, 5), 0),
    ],
)
def test_lines_and_points_have_an_area_where_a_width_is_given(tmp_path, geometry, bounds, area):
    content = [feature(), feature(geometry, classification={"name": "Tumor"})]
    found, said = read(tmp_path, content, origin=(2, 0), line_width=4)
    assert len(found) == 2 and said == [] and found[1].names == ("Tumor",)
    assert found[1].area.bounds == pytest.approx(bounds, abs=0.1)
    ends = {"LineString": 1, "MultiLineString": 2, "Point": 1, "MultiPoint": 2}[geometry["type"]]
    assert found[1].area.area == pytest.approx(area + ends * 3.14159 * 4, rel=0.02)
    found, said = read(tmp_path, content, origin=(2, 0))
    assert len(found) == 1 and "left out, because they have no area" in said[0]


@pytest.mark.parametrize(
    ("coordinates", "said"),
    [
        ([], "a line without points"),
        ([[1, 2], [3, "a"]], "the coordinate 'a' is not a number"),
        ([[1, 2], 3], "3 is not a point"),
        ([[1, 2], [3, 1e12]], "is not a pixel of a slide"),
        (None, "None is not a point"),
        ("abc", "no coordinates|point"),
    ],
)
def test_lines_of_something_else_are_refused(tmp_path, coordinates, said):
    content = [feature({"type": "LineString", "coordinates": coordinates})]
    with pytest.raises(DataError, match=f"geometry 1: expected lines or points of pixels, found .*({said})"):
        read(tmp_path, content, line_width=4)
