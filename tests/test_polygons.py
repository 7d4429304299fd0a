from collections import Counter

import numpy as np
import rasterio.features
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from test_tile_store import filled_store

from bcss_jax.slides.polygons import regions


def drawn(found, shape):
    """The regions rasterised by GDAL: the labels, and how often each pixel was drawn."""
    labels, times = np.zeros(shape, np.uint8), np.zeros(shape, np.uint8)
    for region in found:
        mask = rasterio.features.rasterize([region.polygon], shape, dtype=np.uint8)
        assert mask.sum() == region.pixels == region.polygon.area
        labels[mask == 1] = region.value
        times += mask
    return labels, times


def by_rasterio(labels):
    """The same polygons by GDAL, from the whole array."""
    return Counter(
        (int(value), shapely.normalize(shapely.geometry.shape(shape)).wkt)
        for shape, value in rasterio.features.shapes(labels, mask=labels > 0, connectivity=4)
    )


def sound(polygon):
    """What QuPath and shapely want of a polygon, and what is left of seams."""
    assert polygon.geom_type == "Polygon" and polygon.is_valid, shapely.is_valid_reason(polygon)
    assert polygon.exterior.is_ccw and not any(hole.is_ccw for hole in polygon.interiors)
    for ring in (polygon.exterior, *polygon.interiors):
        steps = np.diff(np.asarray(ring.coords), axis=0)
        steps = np.vstack([steps, steps[:1]])
        assert ((steps != 0).sum(1) == 1).all()  # along an axis each
        assert (steps[1:, 0].astype(bool) != steps[:-1, 0].astype(bool)).all()  # a turn at each point


@st.composite
def label_images(draw):
    """Noise or blobs of one to three values, some with holes and diagonal contacts, and tiles of a few pixels."""
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
    return labels, draw(st.integers(1, 9))


@settings(max_examples=400, deadline=None)
@given(label_images())
def test_polygons_hold_exactly_the_pixels(tmp_path_factory, case):
    labels, tile_size = case
    found = list(regions(filled_store(tmp_path_factory.mktemp("s"), labels, tile_size), [1, 2, 3]))
    again, times = drawn(found, labels.shape)
    np.testing.assert_array_equal(again, labels)
    np.testing.assert_array_equal(times, labels > 0)
    for region in found:
        sound(region.polygon)
    ours = Counter((region.value, shapely.normalize(region.polygon).wkt) for region in found)
    assert sum(ours.values()) == sum(ndimage.label(labels == value)[1] for value in (1, 2, 3))
    theirs = by_rasterio(labels)
    assert sum(theirs.values()) == sum(ours.values())
    valid = Counter({key: n for key, n in theirs.items() if shapely.from_wkt(key[1]).is_valid})
    assert not valid - ours
