import xml.etree.ElementTree as ElementTree
from collections import Counter

import numpy as np
import openslide
import pytest
import rasterio
import tifffile
import tiffslide
from helpers.filled_store import filled_store, read_back, some_labels
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from bcss_jax.common import files
from bcss_jax.errors import StorageError
from bcss_jax.slides.classes import SlideClass
from bcss_jax.slides.outputs import label_pyramid
from bcss_jax.slides.store.tile_store import TILE, TileStore

CLASSES = (
    SlideClass(1, "tumor", (230, 159, 0)),
    SlideClass(2, "stroma", (0, 114, 178)),
    SlideClass(3, "a<b", (1, 2, 3)),
)
NAME = 'case "7" <é>\x01.svs'


def regions(height, width, seed=0):
    """Labels in blocks of 100 pixels; the upper left is background, the lower right one class."""
    random = np.random.default_rng(seed)
    blocks = random.choice(np.array([0, 1, 2, 3, 255], np.uint8), (height // 100 + 1, width // 100 + 1))
    labels = np.kron(blocks, np.ones((100, 100), np.uint8))[:height, :width].copy()
    labels[: height // 2, : width // 2] = 0
    labels[2 * height // 3 :, width // 3 :] = 2
    return labels


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pyramid")
    labels = regions(2311, 3433)
    path = folder / "labels.ome.tif"
    label_pyramid.write(path, filled_store(folder / "store", labels), mpp=0.25, classes=CLASSES, name=NAME)
    return path, labels


def majority_by_counting(labels):
    height, width = labels.shape
    labels = np.pad(labels, ((0, height % 2), (0, width % 2)), mode="edge")
    result = np.zeros((labels.shape[0] // 2, labels.shape[1] // 2), np.uint8)
    for y, x in np.ndindex(result.shape):
        values = labels[2 * y : 2 * y + 2, 2 * x : 2 * x + 2].ravel().tolist()
        counts = Counter(values)
        result[y, x] = max(values, key=lambda value: (counts[value], -values.index(value)))
    return result


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(0, 2**32 - 1))
def test_the_majority_of_four_labels_wins_or_the_first_of_equally_frequent_ones(height, width, seed):
    labels = np.random.default_rng(seed).choice(np.array([0, 1, 2, 255], np.uint8), (height, width))
    np.testing.assert_array_equal(label_pyramid.majority(labels), majority_by_counting(labels))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.sampled_from([2, 4, 16]), st.integers(0, 2**32 - 1))
def test_tiles_are_reduced_like_the_whole_array(tmp_path_factory, height, width, tile_size, seed):
    random = np.random.default_rng(seed)
    labels = np.kron(random.integers(0, 3, (10, 10)), np.ones((4, 4), int)).astype(np.uint8)[:height, :width]
    labels[random.random(labels.shape) < 0.1] = 255
    labels[: random.integers(0, height + 1)] = random.integers(0, 2)
    folder = tmp_path_factory.mktemp("store")
    half = label_pyramid.reduced(filled_store(folder / "whole", labels, tile_size), folder / "half")
    np.testing.assert_array_equal(read_back(half), label_pyramid.majority(labels))
    for row, column in np.ndindex(half.rows, half.columns):  # the padding is 0 here too
        assert half.tile(row, column).sum() == half.pixels(row, column).sum()


def test_tifffile_reads_all_levels(written):
    path, labels = written
    with tifffile.TiffFile(path) as file:
        assert file.is_ome and len(file.series) == 1 and not file.is_bigtiff
        levels = file.series[0].levels
        assert [level.shape for level in levels] == [(2311, 3433), (1156, 1717), (578, 859), (289, 430)]
        for level in levels:
            np.testing.assert_array_equal(level.asarray(), labels)
            assert (
                level.keyframe.tile == (TILE, TILE) and level.keyframe.compression == tifffile.COMPRESSION.ADOBE_DEFLATE
            )
            labels = label_pyramid.majority(labels)
        assert "DateTime" not in file.pages[0].tags


def test_level_0_holds_the_bytes_of_the_store_and_shared_constant_tiles(written, tmp_path):
    path, labels = written
    store = filled_store(tmp_path, labels)
    with tifffile.TiffFile(path) as file:
        page = file.pages[0]
        places = list(zip(page.dataoffsets, page.databytecounts, strict=True))
        for index, (offset, count) in enumerate(places):
            file.filehandle.seek(offset)
            assert file.filehandle.read(count) == store.encoded(*divmod(index, store.columns))
    assert store.constant(0, 0) == store.constant(0, 1) == 0 and places[0] == places[1]
    assert len(set(places)) < len(places)


def test_the_metadata_are_ome_xml(written):
    path, labels = written
    with tifffile.TiffFile(path) as file:
        text = file.ome_metadata
        parsed = tifffile.xml2dict(text)["OME"]
        colors = file.pages[0].colormap
    root = ElementTree.fromstring(text)
    assert root.tag == "{http://www.openmicroscopy.org/Schemas/OME/2016-06}OME"
    pixels = parsed["Image"]["Pixels"]
    assert parsed["Image"]["Name"] == 'case "7" <é>\ufffd.svs'
    assert (pixels["SizeX"], pixels["SizeY"], pixels["Type"]) == (3433, 2311, "uint8")
    assert (pixels["PhysicalSizeX"], pixels["PhysicalSizeY"]) == (0.25, 0.25)
    assert (pixels["PhysicalSizeXUnit"], pixels["PhysicalSizeYUnit"]) == ("µm", "µm")
    assert pixels["Channel"]["Name"] == "labels"
    names, hexadecimal = parsed["StructuredAnnotations"]["MapAnnotation"]
    assert {m["K"]: m["value"] for m in names["Value"]["M"]} == {
        0: "background",
        1: "tumor",
        2: "stroma",
        3: "a<b",
        255: "unreadable",
    }
    assert {m["K"]: m["value"] for m in hexadecimal["Value"]["M"]}[1] == "#E69F00"
    assert [ref["ID"] for ref in parsed["Image"]["AnnotationRef"]] == [names["ID"], hexadecimal["ID"]]
    assert tuple(colors[:, 1] // 257) == (230, 159, 0) and tuple(colors[:, 0] // 257) == (255, 255, 255)


def test_openslide_shows_the_colors(written):
    path, labels = written
    with openslide.OpenSlide(path) as slide:
        assert slide.dimensions == (3433, 2311)
        assert float(slide.properties["openslide.mpp-x"]) == pytest.approx(0.25)
        seen = np.asarray(slide.read_region((1500, 800), 0, (900, 900)))[..., :3]
    palette = np.zeros((256, 3), np.uint8)
    palette[0], palette[255] = 255, 150
    for entry in CLASSES:
        palette[entry.value] = entry.color
    np.testing.assert_array_equal(seen, palette[labels[800:1700, 1500:2400]])


def test_tiffslide_gdal_and_pillow_read_the_values(written):
    path, labels = written
    with tiffslide.TiffSlide(path) as slide:
        assert slide.level_dimensions == ((3433, 2311), (1717, 1156), (859, 578), (430, 289))
        assert slide.properties["tiffslide.mpp-x"] == pytest.approx(0.25)
        np.testing.assert_array_equal(
            np.asarray(slide.read_region((1500, 800), 0, (99, 98))), labels[800:898, 1500:1599]
        )
    with pytest.warns(rasterio.errors.NotGeoreferencedWarning), rasterio.open(path) as image:
        assert image.overviews(1) == [2, 4, 8] and image.colormap(1)[1] == (230, 159, 0, 255)
        np.testing.assert_array_equal(image.read(1), labels)
    with Image.open(path) as image:
        assert image.mode == "P"
        np.testing.assert_array_equal(np.asarray(image), labels)


def test_labels_for_a_thumbnail(written):
    path, labels = written
    np.testing.assert_array_equal(label_pyramid.read_resized(path, *labels.shape), labels)
    half = label_pyramid.majority(labels)
    np.testing.assert_array_equal(label_pyramid.read_resized(path, *half.shape), half)
    small = label_pyramid.read_resized(path, 231, 343)
    assert small.shape == (231, 343)
    assert (small == labels[5::10, 5::10][:231, :343]).mean() > 0.95
    large = label_pyramid.read_resized(path, 2 * 2311, 2 * 3433)  # a slide with a coarser resolution than the model
    np.testing.assert_array_equal(large[::2, ::2], labels)


def test_the_same_labels_give_the_same_bytes(written, tmp_path):
    path, labels = written
    files.write_bytes(tmp_path / "again.ome.tif", b"old")
    label_pyramid.write(
        tmp_path / "again.ome.tif", filled_store(tmp_path / "s", labels), mpp=0.25, classes=CLASSES, name=NAME
    )
    assert (tmp_path / "again.ome.tif").read_bytes() == path.read_bytes()
    assert sorted(child.name for child in tmp_path.iterdir()) == [".lock", "again.ome.tif", "s"]


@pytest.mark.parametrize("height, width", [(1, 1), (3, 513), (1025, 1)])
def test_sizes_at_the_limits(tmp_path, height, width):
    labels = some_labels(height, width)
    path = tmp_path / "labels.ome.tif"
    label_pyramid.write(path, filled_store(tmp_path / "s", labels), mpp=1, classes=CLASSES, name="x")
    np.testing.assert_array_equal(tifffile.imread(path), labels)


def test_a_sparse_slide_is_small(tmp_path):
    store = TileStore(tmp_path / "s", 60_000, 60_000)
    for row in range(store.rows):
        store.write_tiles(row, [0] * store.columns)
    path = tmp_path / "labels.ome.tif"
    label_pyramid.write(path, store, mpp=0.25, classes=CLASSES, name="x")
    assert path.stat().st_size < 40 * store.rows * store.columns
    with tifffile.TiffFile(path) as file:
        assert file.series[0].levels[-1].shape == (469, 469) and not file.series[0].levels[-1].asarray().any()


def test_bigtiff_is_used_where_4_gib_may_not_be_enough(tmp_path, monkeypatch):
    store = filled_store(tmp_path / "s", some_labels(600, 600))
    monkeypatch.setattr(TileStore, "encoded_size", lambda *_: 2**31)
    label_pyramid.write(tmp_path / "labels.ome.tif", store, mpp=0.25, classes=CLASSES, name="x")
    with tifffile.TiffFile(tmp_path / "labels.ome.tif") as file:
        assert file.is_bigtiff
        np.testing.assert_array_equal(file.asarray(), some_labels(600, 600))


def test_a_failed_write_is_one_line_and_leaves_nothing(tmp_path, monkeypatch):
    store = filled_store(tmp_path / "s", some_labels(600, 1100))

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tifffile.TiffWriter, "write", full)
    with pytest.raises(StorageError, match="labels.ome.tif: cannot be written .No space left"):
        label_pyramid.write(tmp_path / "labels.ome.tif", store, mpp=0.25, classes=CLASSES, name="x")
    assert [child.name for child in tmp_path.iterdir()] == ["s"]
