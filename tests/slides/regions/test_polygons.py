import os
from collections import Counter
from typing import NamedTuple
from unittest import mock

import numpy as np
import pytest
import rasterio.features
import shapely
from helpers.filled_store import filled_store
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from bcss_jax.errors import StorageError
from bcss_jax.slides.regions import growing_region, polygons, spill
from bcss_jax.slides.regions.polygons import regions
from bcss_jax.slides.store.tile_store import TileStore


@pytest.fixture(autouse=True, scope="module")
def no_waiting_for_the_disk():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        yield


class Traced(NamedTuple):
    """A region as a shapely polygon."""

    value: int
    polygon: shapely.Polygon
    pixels: int


def traced(store, values, min_pixels=0):
    """Returns all regions of a store, and checks that the folder of the temporary file is unchanged."""
    before, found = sorted(os.listdir(store.folder)), []
    for region in regions(store, values, store.folder, min_pixels):
        rings = [np.concatenate(list(ring)) for ring in region.rings]
        found.append(Traced(region.value, shapely.Polygon(rings[0], rings[1:]), region.pixels))
    assert sorted(os.listdir(store.folder)) == before
    return found


def drawn(found, shape):
    """Rasterizes regions with GDAL; returns the labels, and how often each pixel was drawn."""
    labels, times = np.zeros(shape, np.uint8), np.zeros(shape, np.uint8)
    for region in found:
        mask = rasterio.features.rasterize([region.polygon], shape, dtype=np.uint8)
        assert mask.sum() == region.pixels == region.polygon.area
        labels[mask == 1] = region.value
        times += mask
    return labels, times


def by_rasterio(labels):
    """Returns the polygons that GDAL finds in the whole array."""
    return Counter(
        (int(value), shapely.normalize(shapely.geometry.shape(shape)).wkt)
        for shape, value in rasterio.features.shapes(labels, mask=labels > 0, connectivity=4)
    )


def assert_valid(polygon):
    """Checks what QuPath and shapely require of a polygon, and that it has no superfluous points."""
    assert polygon.geom_type == "Polygon" and polygon.is_valid, shapely.is_valid_reason(polygon)
    assert polygon.exterior.is_ccw and not any(hole.is_ccw for hole in polygon.interiors)
    for ring in (polygon.exterior, *polygon.interiors):
        steps = np.diff(np.asarray(ring.coords), axis=0)
        steps = np.vstack([steps, steps[:1]])
        assert ((steps != 0).sum(1) == 1).all()  # each step follows an axis
        assert (steps[1:, 0].astype(bool) != steps[:-1, 0].astype(bool)).all()  # a turn at each point


@st.composite
def label_images(draw):
    """Draws noise or blobs of one to three values, some with holes and diagonal contacts, and a small tile size."""
    height, width = draw(st.integers(1, 24)), draw(st.integers(1, 24))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    values = draw(st.integers(1, 3))
    noise = random.normal(size=(height, width))
    smooth = draw(st.sampled_from([0, 0.7, 1.5]))
    if smooth:
        noise = ndimage.gaussian_filter(noise, smooth)
    labels = np.digitize(noise, np.quantile(noise, np.linspace(0, 1, values + 2)[1:-1])).astype(np.uint8)
    if draw(st.booleans()):
        labels = (labels + 1) % (values + 1)
    return labels, draw(st.integers(1, 9)), draw(st.sampled_from([1, 8, 60, 1 << 20]))


@settings(max_examples=400, deadline=None)
@given(label_images())
def test_polygons_hold_exactly_the_pixels(tmp_path_factory, case):
    labels, tile_size, few = case
    with (
        mock.patch.object(polygons, "_LARGE", few),
        mock.patch.object(polygons, "_CORNERS_AT_A_TIME", few),
        mock.patch.object(growing_region, "_POINTS_AT_A_TIME", few),
    ):
        found = traced(filled_store(tmp_path_factory.mktemp("s"), labels, tile_size), [1, 2, 3])
    redrawn, times = drawn(found, labels.shape)
    np.testing.assert_array_equal(redrawn, labels)
    np.testing.assert_array_equal(times, labels > 0)
    for region in found:
        assert_valid(region.polygon)
    ours = Counter((region.value, shapely.normalize(region.polygon).wkt) for region in found)
    assert sum(ours.values()) == sum(ndimage.label(labels == value)[1] for value in (1, 2, 3))
    theirs = by_rasterio(labels)
    assert sum(theirs.values()) == sum(ours.values())
    valid = Counter({key: n for key, n in theirs.items() if shapely.from_wkt(key[1]).is_valid})
    assert not valid - ours


def found_in(tmp_path, labels, tile_size=4, values=(1, 2, 3), min_pixels=0):
    labels = np.asarray(labels, np.uint8)
    return traced(filled_store(tmp_path, labels, tile_size), values, min_pixels)


@pytest.mark.parametrize("tile_size", [1, 2, 3, 4, 8])
def test_a_ring_closed_in_a_diagonal_has_a_hole_that_touches_it(tmp_path, tile_size):
    labels = [[1, 1, 1, 0], [1, 0, 1, 0], [1, 1, 0, 1], [0, 0, 1, 1]]  # the gap touches the background in a corner
    found = found_in(tmp_path, labels, tile_size, [1])
    assert sorted(region.pixels for region in found) == [3, 7]
    region = max(found, key=lambda region: region.pixels)
    assert_valid(region.polygon)
    assert [len(ring.coords) - 1 for ring in (region.polygon.exterior, *region.polygon.interiors)] == [6, 4]
    closed = found_in(tmp_path / "b", [[1, 1, 1], [1, 0, 1], [1, 1, 0], [1, 1, 1]], tile_size, [1])
    assert len(closed) == 1 and closed[0].polygon.is_valid and len(closed[0].polygon.interiors) == 1


@pytest.mark.parametrize("tile_size", [1, 2, 3, 5, 8])
def test_diagonal_contact_separates_regions_and_gaps(tmp_path, tile_size):
    labels = np.kron(np.eye(4, dtype=np.uint8), np.ones((2, 2), np.uint8))
    found = found_in(tmp_path, labels, tile_size)
    assert [region.pixels for region in found] == [4, 4, 4, 4]
    assert all(region.polygon.equals(shapely.box(*region.polygon.bounds)) for region in found)
    gaps = np.ones((6, 6), np.uint8)
    gaps[1:3, 1:3] = gaps[3:5, 3:5] = 0
    (region,) = found_in(tmp_path / "b", gaps, tile_size)
    assert len(region.polygon.interiors) == 2 and region.polygon.is_valid and region.pixels == 28


def test_one_region_over_all_tiles(tmp_path):
    """A comb, whose teeth are connected only by its last row."""
    labels = np.zeros((300, 400), np.uint8)
    labels[:, ::2] = 1
    labels[-1] = 1
    (region,) = found_in(tmp_path, labels, 16)
    assert region.pixels == labels.sum() and len(region.polygon.exterior.coords) == 4 * 199 + 6 + 1
    assert_valid(region.polygon)


@pytest.mark.parametrize("tile_size", [4, 6, 32])
def test_nested_regions_and_uniform_tiles(tmp_path, tile_size):
    labels = np.zeros((48, 48), np.uint8)
    for inset, value in ((0, 1), (8, 2), (16, 0), (20, 1), (23, 3)):
        labels[inset : 48 - inset, inset : 48 - inset] = value
    found = found_in(tmp_path, labels, tile_size)
    assert sorted((region.value, region.pixels) for region in found) == [(1, 60), (1, 1280), (2, 768), (3, 4)]
    np.testing.assert_array_equal(drawn(found, labels.shape)[0], labels)
    for region in found:
        assert_valid(region.polygon)
        corners = shapely.get_num_coordinates(region.polygon)
        assert corners == (5 if region.value == 3 else 10)  # no points at the borders of tiles


def test_many_regions_in_large_tiles_equal_those_of_gdal(tmp_path):
    random = np.random.default_rng(3)
    noise = ndimage.gaussian_filter(random.normal(size=(1300, 1100)), 3)
    labels = np.digitize(noise, np.quantile(noise, [0.3, 0.6, 0.8])).astype(np.uint8)
    labels[:520, :520] = 0
    labels[600:1200, 500:1090] = 2
    found = traced(filled_store(tmp_path, labels), [1, 2, 3])
    assert len(found) > 300
    assert Counter((region.value, shapely.normalize(region.polygon).wkt) for region in found) == by_rasterio(labels)


def test_only_the_requested_values_are_traced(tmp_path):
    labels = np.array([[1, 2, 255], [1, 3, 255]], np.uint8)
    assert [(region.value, region.pixels) for region in found_in(tmp_path, labels, 2, [1, 3])] == [(1, 2), (3, 1)]
    assert not found_in(tmp_path / "b", np.zeros((5, 5)), 2)


def test_small_regions_are_left_out_and_holes_are_kept(tmp_path):
    labels = np.zeros((10, 10), np.uint8)
    labels[:6, :6] = 1
    labels[2, 2] = 0
    labels[8, 8] = labels[9, 0] = 2
    assert [region.pixels for region in found_in(tmp_path, labels, 3, min_pixels=1)] == [35, 1, 1]
    (region,) = found_in(tmp_path / "b", labels, 3, min_pixels=1.01)
    assert len(region.polygon.interiors) == 1
    assert not found_in(tmp_path / "c", labels, 3, min_pixels=36)  # 36 with its hole


def test_one_spot_on_an_empty_slide(tmp_path):
    store = TileStore(tmp_path, 60_000, 60_000)
    for row in range(store.rows):
        store.write_tiles(row, [0] * store.columns)
    spot = np.zeros((512, 512), np.uint8)
    spot[510:, 511] = 1
    store.write_tiles(20, [spot if column == 30 else 0 for column in range(store.columns)])
    (region,) = traced(store, [1])
    assert region.polygon.bounds == (30 * 512 + 511, 20 * 512 + 510, 31 * 512, 21 * 512)


def test_the_same_labels_give_the_same_polygons_in_the_same_order(tmp_path):
    labels = np.random.default_rng(0).integers(0, 4, (60, 70))
    first, second = (found_in(tmp_path / name, labels, 16) for name in "ab")
    assert [(region.value, region.polygon.wkt) for region in first] == [
        (region.value, region.polygon.wkt) for region in second
    ]


@pytest.mark.parametrize("tile_size", [1, 2, 3, 4, 16])
@pytest.mark.parametrize("closed", [True, False])
def test_diagonal_contact_of_pixels_that_are_connected_further_down(tmp_path, tile_size, closed):
    labels = np.zeros((12, 8), np.uint8)
    labels[1:4, 1:4] = labels[4:8, 4:7] = 1  # touch in (4, 4)
    labels[3:10, 1] = labels[7:10, 6] = 1
    labels[10, 1:7] = closed
    found = found_in(tmp_path, labels, tile_size)
    for region in found:
        assert_valid(region.polygon)
    assert len(found) == (1 if closed else 2)
    assert [len(region.polygon.interiors) for region in found] == ([1] if closed else [0, 0])
    np.testing.assert_array_equal(drawn(found, labels.shape)[0], labels)


def test_regions_that_are_merged_at_the_bottom_have_sorted_holes(tmp_path):
    labels = np.ones((60, 90), np.uint8)
    labels[:-1, 30] = labels[:-1, 60] = 0
    labels[2:58:4, 3:90:5] = 0
    labels[5:40, 10] = 0  # over several tiles
    (region,) = found_in(tmp_path, labels, 16)
    firsts = [min((y, x) for x, y in hole.coords) for hole in region.polygon.interiors]
    assert len(firsts) > 200 and firsts == sorted(firsts)
    assert_valid(region.polygon)


def test_corners_go_to_the_temporary_file_row_by_row(tmp_path, monkeypatch):
    """A network over the whole slide, whose corners are written to the file as they are found."""
    put, sizes = spill.Spill.put, []

    def noted(self, array):
        sizes.append(array.size)
        return put(self, array)

    monkeypatch.setattr(spill.Spill, "put", noted)
    labels = np.ones((800, 200), np.uint8)
    labels[::2, 1::3] = 0
    labels[3::4, 0] = 0
    (region,) = found_in(tmp_path, labels, 32)
    corners = sum(len(ring.coords) - 1 for ring in (region.polygon.exterior, *region.polygon.interiors))
    assert corners > 100_000 and sum(sizes) > 2 * corners and max(sizes) < corners / 10


def test_a_full_disk_gives_one_error(tmp_path, monkeypatch):
    labels = np.ones((9, 9), np.uint8)
    labels[4, 4] = 0

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(spill.Spill, "put", full)
    with pytest.raises(StorageError, match="cannot be written .No space left"):
        found_in(tmp_path, labels, 3)
