import json
import os

import numpy as np
import pytest
import rasterio.features
import shapely
from helpers.filled_store import filled_store
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from bcss_jax.common import files
from bcss_jax.errors import StorageError
from bcss_jax.slides.annotations import geojson as geojson_regions
from bcss_jax.slides.classes import SlideClass
from bcss_jax.slides.grid import Grid, grid_of
from bcss_jax.slides.outputs import geojson

CLASSES = (SlideClass(1, "tumor", (230, 159, 0)), SlideClass(2, "stroma", (0, 114, 178)))

# What QuPath's reader takes: QuPathTypeAdapters.PathObjectTypeAdapter, GsonTools.PathClassTypeAdapter (a classification
# without color is an error there), ROITypeAdapters, MeasurementListTypeAdapter. In the words of JSON Schema.
COLOR = {"type": "array", "minItems": 3, "maxItems": 3, "items": {"type": "integer", "minimum": 0, "maximum": 255}}
POINT = {"type": "array", "minItems": 2, "maxItems": 2, "items": {"type": "number"}}
RINGS = {"type": "array", "minItems": 1, "items": {"type": "array", "minItems": 4, "items": POINT}}
QUPATH = {
    "type": "object",
    "required": ["type", "features"],
    "properties": {
        "type": {"enum": ["FeatureCollection"]},
        "features": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["type", "geometry", "properties"],
                "properties": {
                    "type": {"enum": ["Feature"]},
                    "geometry": {
                        "type": "object",
                        "required": ["type", "coordinates"],
                        "properties": {"type": {"enum": ["Polygon"]}, "coordinates": RINGS},
                    },
                    "properties": {
                        "type": "object",
                        "required": ["objectType", "classification"],
                        "properties": {
                            "objectType": {"enum": ["annotation", "detection", "cell", "tile", "tmaCore"]},
                            "isLocked": {"type": "boolean"},
                            "classification": {
                                "type": "object",
                                "required": ["name", "color"],
                                "properties": {"name": {"type": "string", "minLength": 1}, "color": COLOR},
                            },
                            "measurements": {"type": "object", "additionalProperties": {"type": "number"}},
                        },
                    },
                },
            },
        },
    },
}
TYPES = {"object": dict, "array": list, "string": str, "boolean": bool, "integer": int, "number": (int, float)}


def complaints(value, schema, where="$"):
    """The part of JSON Schema that the test needs."""
    if "enum" in schema and value not in schema["enum"]:
        yield f"{where}: {value!r} is none of {schema['enum']}"
    kind = schema.get("type")
    if kind and (not isinstance(value, TYPES[kind]) or (isinstance(value, bool) and kind != "boolean")):
        yield f"{where}: {type(value).__name__}, not {kind}"
        return
    if kind in ("array", "string"):
        unit = "Items" if kind == "array" else "Length"
        if not schema.get(f"min{unit}", 0) <= len(value) <= schema.get(f"max{unit}", len(value)):
            yield f"{where}: {len(value)} long"
        for i, entry in enumerate(value if kind == "array" else ()):
            yield from complaints(entry, schema.get("items", {}), f"{where}[{i}]")
    if kind in ("integer", "number") and not schema.get("minimum", value) <= value <= schema.get("maximum", value):
        yield f"{where}: {value}"
    if kind == "object":
        yield from (f"{where}: no {key}" for key in schema.get("required", ()) if key not in value)
        for key, entry in value.items():
            rule = schema.get("properties", {}).get(key, schema.get("additionalProperties", {}))
            yield from complaints(entry, rule, f"{where}.{key}")


def blobs(height=180, width=150, seed=0):
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=(height, width)), 2)
    return np.digitize(noise, np.quantile(noise, [0.4, 0.7])).astype(np.uint8)


def grid_for(labels, scale=(1.0, 1.0), mpp=0.5):
    height, width = labels.shape
    return Grid(width, height, mpp, scale)


def written(tmp_path, labels, grid=None, classes=CLASSES, tile_size=64, **options):
    path = tmp_path / "regions.geojson"
    store = filled_store(tmp_path / "store", labels, tile_size)
    count = geojson.write(path, store, grid or grid_for(labels), classes, **({"min_area_um2": 0} | options))
    content = json.loads(path.read_text())
    assert len(content["features"]) == count
    return content


def drawn(content, shape, names, scale=(1, 1), origin=(0, 0)):
    """Returns the features rasterized on the grid."""
    labels = np.zeros(shape, np.uint8)
    for feature in content["features"]:
        polygon = shapely.geometry.shape(feature["geometry"])
        back = shapely.transform(polygon, lambda points: (points + origin) / scale)
        mask = rasterio.features.rasterize([back], shape, dtype=np.uint8)
        assert not labels[mask == 1].any()
        labels[mask == 1] = names[feature["properties"]["classification"]["name"]]
    return labels


@pytest.mark.parametrize(
    "scale, origin", [((1.0, 1.0), (0, 0)), ((2.0, 4.0), (100, 7)), ((0.501, 0.5007), (0, 0)), ((1.37, 1.4), (33.5, 1))]
)
def test_qupath_can_read_the_file_and_no_pixel_is_lost(tmp_path, scale, origin):
    labels = blobs()
    content = written(tmp_path, labels, grid_for(labels, scale), origin=origin)
    assert list(complaints(content, QUPATH)) == []
    np.testing.assert_array_equal(drawn(content, labels.shape, {"Tumor": 1, "Stroma": 2}, scale, origin), labels)
    for feature in content["features"]:
        polygon = shapely.geometry.shape(feature["geometry"])
        assert polygon.is_valid and polygon.exterior.is_ccw and not any(hole.is_ccw for hole in polygon.interiors)
        for ring in feature["geometry"]["coordinates"]:
            assert ring[0] == ring[-1]
            assert all(round(number, 2) == number for point in ring for number in point)
            if scale == (2.0, 4.0):
                assert all(type(number) is int for point in ring for number in point)
        properties = feature["properties"]
        assert properties["objectType"] == "annotation" and properties["isLocked"] is True
        expected = polygon.area / scale[0] / scale[1] * 0.25
        assert properties["measurements"]["area_um2"] == pytest.approx(expected, rel=0.1)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0.011, 9), st.floats(0.011, 9))
def test_rounding_keeps_polygons_valid(tmp_path_factory, seed, across, down):
    labels = np.random.default_rng(seed).integers(0, 3, (12, 13)).astype(np.uint8)
    content = written(tmp_path_factory.mktemp("g"), labels, grid_for(labels, (across, down)), tile_size=8)
    for feature in content["features"]:
        polygon = shapely.geometry.shape(feature["geometry"])
        assert polygon.is_valid, shapely.is_valid_reason(polygon)


def test_the_schema_rejects_files_that_qupath_cannot_read(tmp_path):
    content = written(tmp_path, blobs())
    feature = content["features"][0]
    for damage in (
        lambda: feature["properties"]["classification"].pop("color"),
        lambda: feature["geometry"].update(type="MultiPolygon"),
        lambda: feature["properties"]["measurements"].update(area_um2="7"),
        lambda: content.update(type="Feature"),
    ):
        before = len(list(complaints(content, QUPATH)))
        damage()
        assert len(list(complaints(content, QUPATH))) == before + 1


def test_level_0_coordinates_reach_the_edges_of_the_slide(tmp_path):
    grid = grid_of(2221, 1003, (0.499, 0.499), 0.25)
    labels = np.full((grid.height, grid.width), 1, np.uint8)
    (feature,) = written(tmp_path, labels, grid)["features"]
    assert shapely.geometry.shape(feature["geometry"]).bounds == (0, 0, 2221, 1003)


def test_small_regions_are_left_out_and_the_file_states_it(tmp_path):
    labels = np.zeros((60, 60), np.uint8)
    labels[:20, :20] = 1  # 400 pixels of 0.25 um2
    labels[5, 5] = 0
    labels[30:50, 30:50] = 2
    content = written(tmp_path, labels, min_area_um2=100)
    (feature,) = content["features"]
    assert feature["properties"]["classification"]["name"] == "Stroma"
    assert content["bcss_jax"]["regions_smaller_than_um2_left_out"] == 100
    assert len(written(tmp_path, labels)["features"]) == 2


def test_a_file_without_regions_is_valid(tmp_path):
    labels = np.zeros((100, 100), np.uint8)
    labels[3:50, 3:50] = 255
    content = written(tmp_path, labels)
    assert content["features"] == [] and list(complaints(content, QUPATH)) == []


def test_names_of_classes(tmp_path):
    names = ["tumor", "stroma", "inflammatory", "necrosis", "other", 'x"},{\n\\u0000é']
    classes = [SlideClass(value, name, (value, 2, 3)) for value, name in enumerate(names, 1)]
    labels = np.arange(7, dtype=np.uint8)[None].repeat(3, 0)
    seen = [feature["properties"]["classification"] for feature in written(tmp_path, labels, None, classes)["features"]]
    assert [entry["name"] for entry in seen] == ["Tumor", "Stroma", "Immune cells", "Necrosis", "Other", names[-1]]
    assert seen[2]["color"] == [3, 2, 3]


def test_the_same_labels_give_the_same_bytes(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        written(tmp_path / folder, blobs())
    first, second = ((tmp_path / folder / "regions.geojson").read_bytes() for folder in "ab")
    assert first == second and sorted(os.listdir(tmp_path / "a")) == [".lock", "regions.geojson", "store"]


def test_long_rings_are_written_in_pieces(tmp_path, monkeypatch):
    content = written(tmp_path, blobs())
    monkeypatch.setattr(geojson, "_POINTS_AT_A_TIME", 7)
    assert written(tmp_path, blobs()) == content


def test_a_failed_write_is_one_line_and_leaves_the_old_file(tmp_path, monkeypatch):
    files.write_text(tmp_path / "regions.geojson", "old")
    store = filled_store(tmp_path / "store", blobs())

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="regions.geojson: cannot be written .No space left"):
        geojson.write(tmp_path / "regions.geojson", store, grid_for(blobs()), CLASSES)
    assert sorted(os.listdir(tmp_path)) == [".lock", "regions.geojson", "store"]
    assert (tmp_path / "regions.geojson").read_text() == "old"


def test_what_was_written_is_read(tmp_path):
    labels = blobs()
    content = written(tmp_path, labels, origin=(10, 20))
    found = geojson_regions.read_regions(tmp_path / "regions.geojson", (10, 20))
    assert len(found) == len(content["features"])
    mask = rasterio.features.rasterize(found, labels.shape, dtype=np.uint8)
    np.testing.assert_array_equal(mask, labels > 0)
