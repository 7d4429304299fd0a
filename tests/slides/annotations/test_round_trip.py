"""Regions of a model, corrected in QuPath, are the pixels that a model is trained on again."""

import json
import uuid

import numpy as np
import pytest
from helpers.filled_store import filled_store
from scipy import ndimage

from bcss_jax.labels import SCHEMES
from bcss_jax.slides.annotations.slide_labels import open_slide_labels
from bcss_jax.slides.classes import SlideClass
from bcss_jax.slides.grid import grid_of
from bcss_jax.slides.outputs import geojson

SCHEME = SCHEMES["tumor_stroma"]
CLASSES = (SlideClass(1, "tumor", (230, 159, 0)), SlideClass(2, "stroma", (0, 114, 178)))


def regions_of(shape):
    random = np.random.default_rng(5)
    smooth = [ndimage.gaussian_filter(random.normal(size=shape), 3) for _ in range(3)]
    return np.argmax(smooth, 0).astype(np.uint8)


def as_qupath_writes(features, random):
    """The features with ids, in another order, with the members that QuPath 0.5 and 0.6 write, and other rings."""
    for index in random.permutation(len(features)):
        feature = features[index]
        properties = feature["properties"]
        rings = []
        for ring in feature["geometry"]["coordinates"]:
            points = ring[:-1][:: random.choice([-1, 1])]
            start = int(random.integers(len(points)))
            points = [*points[start:], *points[:start]]
            rings.append([[round(x, 2), round(y, 2)] for x, y in [*points, points[0]]])
        geometry = {"type": "Polygon", "coordinates": [rings[0], *reversed(rings[1:])]}
        if random.integers(2):
            geometry = {"type": "MultiPolygon", "coordinates": [geometry["coordinates"]]}
        kept = {"name": f"{index}", "objectType": "annotation", "classification": properties["classification"]}
        measured = {"measurements": properties["measurements"] | {"Length µm": "NaN"}, "metadata": {"a": "b"}}
        yield {"type": "Feature", "id": str(uuid.UUID(int=int(index))), "geometry": geometry,
               "properties": kept | {"isLocked": True} | measured}  # fmt: skip


@pytest.mark.parametrize("scale, origin", [(1.0, (0, 0)), (2.0, (10, 20)), (2.0137, (7.0, 3.0)), (0.497, (0, 0))])
def test_polygons_give_back_every_pixel(tmp_path, scale, origin):
    labels = regions_of((150, 190))
    size = (round(190 * scale), round(150 * scale))
    grid = grid_of(*size, (0.25, 0.25), 0.25 * scale)
    labels = labels[: grid.height, : grid.width]
    labels = np.pad(labels, [(0, grid.height - labels.shape[0]), (0, grid.width - labels.shape[1])])
    path = tmp_path / "regions.geojson"
    geojson.write(path, filled_store(tmp_path / "store", labels, 64), grid, CLASSES, origin=origin, min_area_um2=0)
    content = json.loads(path.read_text())
    corrected = list(as_qupath_writes(content["features"], np.random.default_rng(1)))
    for form in ("collection", "list"):
        written = {"type": "FeatureCollection", "features": corrected} if form == "collection" else corrected
        path.write_text(json.dumps(written).replace('"NaN"', "NaN"))
        with open_slide_labels(path, SCHEME, size, mpp=(0.25, 0.25), origin=origin) as truth:
            assert truth.overlap == 0
            np.testing.assert_array_equal(truth.labels(0, 0, grid.width, grid.height, grid.scale), labels)
            x, y = 33 * grid.scale[0], 21 * grid.scale[1]
            np.testing.assert_array_equal(truth.labels(x, y, 70, 80, grid.scale), labels[21:101, 33:103])


def test_corrections_are_what_is_trained_on(tmp_path):
    labels = np.zeros((100, 100), np.uint8)
    labels[10:60, 10:60], labels[20:30, 20:30], labels[70:90, 70:90] = 1, 0, 2
    path = tmp_path / "regions.geojson"
    grid = grid_of(200, 200, (0.25, 0.25), 0.5)
    geojson.write(path, filled_store(tmp_path / "store", labels, 64), grid, CLASSES)
    features = json.loads(path.read_text())["features"]
    for feature in features:
        if feature["properties"]["classification"]["name"] == "Stroma":
            feature["properties"]["classification"] = {"name": "Tumor", "color": [200, 0, 0]}
    drawn = {  # in the hole, as an ellipse is written, and outside an area to ignore
        "Stroma": {"type": "Polygon", "isEllipse": True,
                   "coordinates": [[[60, 50], [50, 60], [40, 50], [50, 40], [60, 50]]]},
        "Ignore*": {"type": "Polygon", "coordinates": [[[20, 20], [40, 20], [40, 30], [20, 30], [20, 20]]]},
    }  # fmt: skip
    for name, geometry in drawn.items():
        properties = {"objectType": "annotation", "classification": {"name": name, "color": [1, 2, 3]}}
        features.append({"type": "Feature", "id": str(uuid.uuid4()), "geometry": geometry, "properties": properties})
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    expected = np.where(labels == 2, 1, labels)
    y, x = np.mgrid[:100, :100]
    expected[(x - 24.5) ** 2 + (y - 24.5) ** 2 < 25] = 2
    expected[10:15, 10:20] = SCHEME.ignore_index
    with open_slide_labels(path, SCHEME, (200, 200), warn=lambda line: None) as truth:
        found = truth.labels(0, 0, 100, 100, grid.scale)
    np.testing.assert_array_equal(found, expected)
