"""The stain of pixels is measured as it was drawn, and what is not hematoxylin and eosin is named."""

import dataclasses

import numpy as np
import pytest
from helpers.stained_pixels import OTHER_VECTORS, VECTORS, amounts, stained

from bcss_jax.data.stain.measured_stain import MeasuredStain, NotMeasurable, measure, typical

AMOUNTS = amounts(256, 256)


def pixels(amounts=AMOUNTS, **options):
    return stained(amounts, **options).reshape(-1, 3)


@pytest.mark.parametrize("vectors", [VECTORS, OTHER_VECTORS])
@pytest.mark.parametrize("factors", [(1, 1), (0.6, 1.3), (1.4, 0.7)])
@pytest.mark.parametrize("white", [(240, 240, 240), (225, 215, 228)])
def test_colors_and_strengths_are_those_that_were_drawn(vectors, factors, white):
    found = measure(pixels(AMOUNTS * factors, vectors=vectors, white=np.array(white)), np.array(white))
    np.testing.assert_allclose(found.vectors, vectors, atol=0.03)
    expected = np.percentile((AMOUNTS * factors).reshape(-1, 2), 99, axis=0)
    np.testing.assert_allclose(found.strengths, expected, rtol=0.06)
    assert found.white == white


def test_glass_does_not_count():
    much_glass = np.concatenate([pixels(), np.full((10 * AMOUNTS[..., 0].size, 3), 240, np.uint8)])
    assert measure(much_glass, np.full(3, 240.0)) == measure(pixels(), np.full(3, 240.0))


NOISE = np.random.default_rng(0).integers(-2, 3, (256 * 256, 3))
GRAY = np.repeat(np.random.default_rng(1).integers(20, 250, (256 * 256, 1)), 3, axis=1)


@pytest.mark.parametrize(
    "image, reason",
    [
        (np.full((4000, 3), 240), "hardly any stained tissue"),
        (pixels()[:900], "hardly any stained tissue"),
        (GRAY, "a single stain, or shades of gray"),
        (GRAY + NOISE, "a single stain, or shades of gray"),
        (pixels(AMOUNTS * (1, 0)) + NOISE, "a single stain, or shades of gray"),
        (pixels(AMOUNTS * (0, 1)) + NOISE, "a single stain, or shades of gray"),
        (pixels(vectors=np.array([[0.9, 0.3, 0.32], [0.3, 0.9, 0.32]])), "colors that are not those of hematoxylin"),
        (pixels(vectors=np.array([[0.65, 0.70, 0.29], [0.27, 0.57, 0.78]])), "colors that are not those of eosin"),
    ],
)
def test_what_is_not_measurable_is_named(image, reason):
    with pytest.raises(NotMeasurable, match=reason):
        measure(image.clip(0, 255).astype(np.uint8), None)


def test_the_typical_stain_counts_each_slide_once():
    stains = [
        measure(pixels(AMOUNTS * factor, white=white), np.full(3, white))
        for factor, white in ((0.5, 240), (0.9, 236), (1, 230))
    ]
    found = typical([*stains[:2], dataclasses.replace(stains[2], white=None)])
    np.testing.assert_allclose(found.vectors, VECTORS, atol=0.03)
    np.testing.assert_allclose(np.linalg.norm(found.vectors, axis=1), 1)
    assert found.strengths == pytest.approx(stains[1].strengths) and found.white == (238, 238, 238)
    assert typical([dataclasses.replace(stains[0], white=None)]).white is None


def test_json_is_read_as_it_was_written_and_refused_if_it_was_changed():
    stain = measure(pixels(), np.full(3, 240.0))
    values = stain.to_json()
    assert MeasuredStain.from_json(values) == stain
    assert MeasuredStain.from_json(values | {"white": None}).white is None
    for change in (
        {"vectors": values["vectors"][:1]},
        {"vectors": [values["vectors"][0]] * 2},
        {"vectors": [[0.5, 0.5, 0.5], values["vectors"][1]]},
        {"strengths": [1.0, 0.0]},
        {"strengths": [1.0, float("nan")]},
        {"white": [240, 240, 300]},
    ):
        with pytest.raises(ValueError):
            MeasuredStain.from_json(values | change)
    for value in (None, [], {"vectors": values["vectors"]}):
        with pytest.raises(ValueError):
            MeasuredStain.from_json(value)
