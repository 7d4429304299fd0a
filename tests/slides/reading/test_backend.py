import pytest

from bcss_jax.slides.reading import backend
from bcss_jax.slides.reading.backend import Level, levels_of


def test_levels_span_whole_pixels_where_sizes_allow_it():
    assert levels_of([(3391, 2418), (1695, 1209), (847, 604)]) == (
        Level(3391, 2418, 1.0), Level(1695, 1209, 2.0), Level(847, 604, 4.0),
    )  # fmt: skip
    assert levels_of([(1000, 1000), (300, 300)])[1].downsample == pytest.approx(10 / 3)
    assert levels_of([(1, 200_000), (1, 50_000)])[1] == Level(1, 50_000, 4.0)


def test_levels_that_do_not_form_a_pyramid_are_left_out():
    assert len(levels_of([(1000, 1000), (1000, 1000), (500, 500)])) == 1
    assert len(levels_of([(1000, 1000), (500, 500), (2000, 2000)])) == 2
    assert len(levels_of([(1000, 1000), (500, 100)])) == 1
    for size in ((0, 10), (10, backend.MAX_SIDE + 1)):
        with pytest.raises(ValueError):
            levels_of([size])
