"""Annotations of another slide, or in another unit."""

from pathlib import Path

import numpy as np
import pytest
import shapely

from bcss_jax.errors import DataError
from bcss_jax.slides.annotations.annotation import Annotation
from bcss_jax.slides.annotations.placement import check_placement

SIZE, MPP = (40_000, 20_000), (0.25, 0.25)
IN_PIXELS = [(8_000, 4_000, 12_000, 9_000), (30_000, 12_000, 36_000, 18_000)]


def check(boxes, factor=1.0, tissue=None, mpp=MPP):
    said = []
    areas = [shapely.box(*(factor * side for side in box)) for box in boxes]
    annotations = [Annotation(("Tumor",), area, f"geometry {number}") for number, area in enumerate(areas, 1)]
    check_placement(Path("a.geojson"), annotations, SIZE, mpp, tissue, said.append)
    return said


def tissue_of(boxes, factor=0.01):
    tissue = np.zeros((200, 400), bool)
    for x0, y0, x1, y1 in boxes:
        tissue[int(y0 * factor) : int(y1 * factor), int(x0 * factor) : int(x1 * factor)] = True
    return tissue


def test_annotations_in_pixels_are_accepted():
    assert check(IN_PIXELS) == [] == check(IN_PIXELS, tissue=tissue_of(IN_PIXELS))


def test_annotations_in_micrometers_are_refused_where_tissue_tells():
    with pytest.raises(DataError, match=r"pixels of level 0, found .* where 14 % .* as micrometers it is 100 %"):
        check(IN_PIXELS, 0.25, tissue_of(IN_PIXELS))
    with pytest.raises(DataError, match="as millimeters it is 100 %"):
        check(IN_PIXELS, 0.25 / 1000, tissue_of(IN_PIXELS))
    (line,) = check(IN_PIXELS, 0.25)
    assert "as if they were in micrometers; they are taken as pixels, look at them" in line


def test_annotations_at_the_upper_left_on_tissue_are_in_pixels():
    corner = [[side * 0.25 for side in box] for box in IN_PIXELS]
    assert check(corner, tissue=tissue_of([*IN_PIXELS, *corner])) == []


def test_annotations_outside_the_slide():
    with pytest.raises(DataError, match=r"expected annotations on the slide .40000x20000.*found 1 of 3 outside"):
        check([*IN_PIXELS, (41_000, 0, 42_000, 10)])
    (line,) = check([*IN_PIXELS, (39_000, 0, 41_000, 10)])
    assert "1 of 3 annotations lie outside the slide with up to 50 % of their area" in line
