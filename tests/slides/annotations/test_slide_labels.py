"""Annotations and masks as labels of blocks of a slide."""

import gzip
import json
import re

import numpy as np
import pytest
import rasterio.features
import shapely
import tifffile
from PIL import Image

from bcss_jax.errors import DataError
from bcss_jax.labels import SCHEMES, read_scheme
from bcss_jax.slides.annotations.coverage import Coverage
from bcss_jax.slides.annotations.slide_labels import open_slide_labels

SCHEME = SCHEMES["five_classes"]
TUMOR, STROMA = (SCHEME.class_names.index(name) for name in ("tumor", "stroma"))


def rectangle(x0, y0, x1, y1):
    return [[x0, y0], [x1, y0], [x1, y1], [x0, y1], [x0, y0]]


def feature(name, *rings, **geometry):
    properties = {"objectType": "annotation"} | ({"classification": {"name": name, "color": [9, 9, 9]}} if name else {})
    return {
        "type": "Feature",
        "geometry": {"type": "Polygon", "coordinates": list(rings), **geometry},
        "properties": properties,
    }


def written(path, *features):
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    return path


def test_annotations_become_labels(tmp_path):
    path = written(
        tmp_path / "a.geojson",
        feature("Stroma", rectangle(0, 0, 8, 8), rectangle(5, 5, 7, 7)),
        feature("Tumor", rectangle(2, 2, 4, 4)),
    )
    expected = np.zeros((10, 10), int)
    expected[:8, :8] = STROMA
    expected[5:7, 5:7] = 0
    expected[2:4, 2:4] = TUMOR
    said = []
    with open_slide_labels(path, SCHEME, (10, 10), warn=said.append) as truth:
        np.testing.assert_array_equal(truth.labels(0, 0, 10, 10, 1), expected)
        np.testing.assert_array_equal(truth.labels(3, 1, 4, 6, 1), expected[1:7, 3:7])
        np.testing.assert_array_equal(truth.labels(0, 0, 5, 5, 2.0), expected[1::2, 1::2])  # under the centers
        assert truth.overlap == pytest.approx(4 / 60)
    assert said == [f"{path}: 6.7 % of the annotated area has annotations of different classes; the first of these "
                    "counts: tumor, stroma"]  # fmt: skip


def test_blocks_agree_with_the_whole_and_with_rasterio():
    random = np.random.default_rng(3)
    areas = []
    for _ in range(60):
        center, radii = random.uniform(0, 400, 2), random.uniform(3, 60, 12)
        angles = np.arange(12) * np.pi / 6
        points = center + radii[:, None] * np.stack([np.cos(angles), np.sin(angles)], 1)
        areas.append(shapely.Polygon(points, [0.5 * (points - center)[::-1] + center]))
    coverage = Coverage(areas)
    scale = (2.003, 1.997)
    whole = coverage.block(0, 0, 200, 200, scale)
    transform = rasterio.Affine.scale(*scale)
    np.testing.assert_array_equal(whole, rasterio.features.rasterize(areas, (200, 200), transform=transform) > 0)
    for x, y, size in ((0, 0, 64), (37, 111, 50), (150, 3, 50), (199, 199, 1)):
        block = coverage.block(x * scale[0], y * scale[1], size, size, scale)
        np.testing.assert_array_equal(block, whole[y : y + size, x : x + size])


@pytest.mark.parametrize("tiled", [False, True])
def test_masks_of_any_scale_become_labels(tmp_path, tiled):
    codes = np.random.default_rng(0).integers(0, 5, (90, 120)).astype(np.uint8)
    path = tmp_path / ("mask.tif" if tiled else "mask.png")
    if tiled:
        tifffile.imwrite(path, codes, tile=(16, 32), compression="zlib")
    else:
        Image.fromarray(codes).save(path)
    table = np.array([0, 1, 2, 3, 4])
    with open_slide_labels(path, SCHEME, (480, 360)) as truth:
        np.testing.assert_array_equal(truth.labels(0, 0, 120, 90, 4), table[codes])
        np.testing.assert_array_equal(truth.labels(40, 80, 50, 60, (4.0, 4.0)), table[codes[20:80, 10:60]])
        np.testing.assert_array_equal(truth.labels(472, 352, 4, 4, 4)[:2, :2], table[codes[88:, 118:]])
        assert (truth.labels(472, 352, 4, 4, 4)[2:] == SCHEME.ignore_index).all()  # outside the slide
    with (
        pytest.raises(DataError, match="proportions of the slide .400x360 pixels., found 120x90"),
        open_slide_labels(path, SCHEME, (400, 360)),
    ):
        pass


OWN_CODES = """
class_names = ["tumor", "stroma"]
[colors]
tumor = "#E69F00"
stroma = "#0072B2"
[own_codes]
tumor = [1]
stroma = [200]
ignored = [0]
"""


@pytest.mark.parametrize("kind", ["png", "tiled", "palette"])
def test_masks_of_codes_that_the_scheme_defines(tmp_path, kind):
    (tmp_path / "own.toml").write_text(OWN_CODES)
    scheme = read_scheme(tmp_path / "own.toml")
    codes = np.random.default_rng(0).choice(np.array([0, 1, 200], np.uint8), (40, 40))
    path = tmp_path / "mask.tif"

    def write():
        image = Image.fromarray(codes)
        if kind == "palette":
            image.putpalette(np.random.default_rng(0).integers(0, 256, 768, np.uint8).tobytes())
        image.save(path, format="PNG") if kind != "tiled" else tifffile.imwrite(path, codes, tile=(16, 16))

    write()
    said = []
    with open_slide_labels(path, scheme, (40, 40), region="ROI", warn=said.append) as truth:
        assert f"{path}: the region 'ROI' bounds annotations; a mask counts wherever it has codes" in said
        np.testing.assert_array_equal(truth.labels(0, 0, 40, 40, 1), np.select([codes == 1, codes == 200], [0, 1], 255))
    codes[3, 3] = 2
    write()
    with (
        open_slide_labels(path, scheme, (40, 40)) as truth,
        pytest.raises(DataError, match=r"expected the codes of the label scheme \(0, 1, 200\), found 1 of 1600 pixels "
                               r"with other values \(value: pixels = 2: 1\); list them .*\[own_codes\]"),
    ):  # fmt: skip
        truth.labels(0, 0, 40, 40, 1)
    with pytest.raises(DataError, match="codes of bcss22|expected the codes"):
        codes[3, 3] = 255
        write()
        with open_slide_labels(path, scheme, (40, 40)) as truth:
            truth.labels(0, 0, 40, 40, 1)


@pytest.mark.parametrize(
    "features, message",
    [
        ([feature("Tumour", rectangle(0, 0, 5, 5))], r"geometry 1 \(Tumour\): expected a class .*five_classes knows, "
         "found 'Tumour'; correct it, or add it to .*; did you mean 'tumor'"),
        ([feature("Tumor", rectangle(0, 0, 5, 5)), feature("Tumor", rectangle(50, 0, 55, 5))],
         r"on the slide \(20x20 pixels\), found 1 of 2 outside, for example geometry 2 \(Tumor\) from \(50, 0\)"),
        ([feature(None, rectangle(0, 0, 5, 5))], "expected annotations with a class, found none"),
        ([feature("Tumor", [[0, 0], [10, 10], [10, 0], [0, 10], [0, 0]])], "that do not cross themselves"),
    ],
)  # fmt: skip
def test_what_cannot_be_truth_is_one_line(tmp_path, features, message):
    path = written(tmp_path / "a.geojson", *features)
    with pytest.raises(DataError, match=message) as caught, open_slide_labels(path, SCHEME, (20, 20)):
        pass
    assert re.match(re.escape(str(path)), str(caught.value)) and "\n" not in str(caught.value)


def test_an_outline_that_crosses_itself_a_little_is_repaired(tmp_path):
    ring = [[0, 0], [100, 0], [100, 100], [99.5, 100.5], [99.5, 99.5], [99, 100], [0, 100], [0, 0]]
    path = written(tmp_path / "a.geojson", feature("Tumor", ring))
    with open_slide_labels(path, SCHEME, (200, 200)) as truth:
        assert truth.labels(0, 0, 99, 99, 1).all()


OWN = """
class_names = ["tumor", "rest"]
unannotated = "rest"

[colors]
tumor = "#E69F00"
rest = "#0072B2"

[annotations]
tumor = ["Tumor"]
"""


def test_a_region_bounds_what_is_annotated(tmp_path):
    (tmp_path / "own.toml").write_text(OWN)
    scheme = read_scheme(tmp_path / "own.toml")
    path = written(
        tmp_path / "a.geojson",
        feature("ROI", rectangle(2, 2, 12, 12)),
        feature("Tumor", rectangle(0, 0, 5, 5)),
    )
    expected = np.full((20, 20), scheme.ignore_index)
    expected[2:12, 2:12] = 1
    expected[2:5, 2:5] = 0
    with open_slide_labels(path, scheme, (20, 20), region="roi") as truth:
        np.testing.assert_array_equal(truth.labels(0, 0, 20, 20, 1), expected)
        assert truth.boxes.tolist() == [[2, 2, 12, 12]]
    with (
        pytest.raises(DataError, match="an annotation of the class 'Bounds', .* found only ROI, Tumor; draw it"),
        open_slide_labels(path, scheme, (20, 20), region="Bounds"),
    ):
        pass
    with (
        pytest.raises(DataError, match="found 'ROI'.*named by config.data.region"),
        open_slide_labels(path, scheme, (20, 20)),
    ):
        pass


def test_more_general_names_count_and_are_said(tmp_path):
    one = feature(None, rectangle(0, 0, 5, 5))
    one["properties"]["classification"] = {"names": ["Tumor", "Positive"], "color": [1, 2, 3]}
    said = []
    path = written(tmp_path / "a.geojson", one, feature(None, rectangle(0, 0, 9, 9)))
    with open_slide_labels(path, SCHEME, (20, 20), warn=said.append) as truth:
        assert (truth.labels(0, 0, 9, 9, 1) == TUMOR).sum() == 25
    assert [line.removeprefix(f"{path}: ") for line in said] == [
        "1 of 2 annotations have no class; they are left out, and their pixels count as not annotated",
        "annotations of the class 'Tumor: Positive' count as 'Tumor'",
    ]


@pytest.mark.parametrize(
    "content, found",
    [
        (b"", "an empty file; export it again"),
        (b" \n", "an empty file; export it again"),
        (b"slide,mask\n", "a file that starts with b'slide,ma'; export it again"),
        (b"\x00\x01", "a file that starts with"),
        ("{}".encode("utf-16"), "text in UTF-16; save it as UTF-8"),
        ("<a/>".encode("utf-16"), "text in UTF-16; save it as UTF-8"),
        (gzip.compress(b"{}", mtime=0), "a gzip file; unpack it"),
        (b"PK\x03\x04", "a zip file; unpack it"),
    ],
)
def test_files_of_another_kind_are_one_line(tmp_path, content, found):
    (tmp_path / "a.csv").write_bytes(content)
    with (
        pytest.raises(
            DataError, match=f"expected annotations as GeoJSON or ASAP's XML, or a mask as PNG or TIFF, found {found}"
        ),
        open_slide_labels(tmp_path / "a.csv", SCHEME, (20, 20)),
    ):
        pass
