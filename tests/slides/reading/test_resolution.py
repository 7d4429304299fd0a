import math

import pytest

from bcss_jax.errors import ConfigError, DataError
from bcss_jax.slides.reading.resolution import mpp_from_density, resolved_mpp


def resolved(found, given=None):
    warnings = []
    return resolved_mpp("a.svs", found, given, warnings.append), warnings


@pytest.mark.parametrize("mpp", [0.25, 0.499, 0.1, 2.0])
def test_the_value_of_the_slide_is_used(mpp):
    assert resolved((mpp, mpp)) == ((mpp, mpp), [])


def test_a_slide_without_a_value_needs_the_option():
    with pytest.raises(DataError, match=r"^a\.svs: expected .*found no um per pixel; give it with --mpp"):
        resolved(None)
    assert resolved(None, 0.25) == ((0.25, 0.25), [])


@pytest.mark.parametrize("value", [0.0, -0.25, math.nan, math.inf, 250.0, 0.00025, 11.0])
def test_impossible_values_are_refused_in_the_slide_and_in_the_option(value):
    with pytest.raises(DataError, match="found .*in the slide; give the right one with --mpp"):
        resolved((value, value))
    with pytest.raises(DataError):
        resolved((0.25, value))
    with pytest.raises(ConfigError, match="^--mpp="):
        resolved((0.25, 0.25), value)


def test_the_message_guesses_the_unit():
    with pytest.raises(DataError, match=r"found 250 \(nanometers\? that would be 0\.25 um\)"):
        resolved((250.0, 250.0))
    with pytest.raises(ConfigError, match=r"found 0\.00025 \(millimeters\? that would be 0\.25 um\)"):
        resolved(None, 0.00025)


def test_the_option_replaces_impossible_values_of_the_slide():
    mpp, warnings = resolved((0.0, 0.0), 0.25)
    assert mpp == (0.25, 0.25)
    assert len(warnings) == 1 and "--mpp says 0.25" in warnings[0]
    assert len(resolved((math.nan, math.nan), 0.25)[1]) == 1


@pytest.mark.parametrize("mpp", [0.05, 2.5])
def test_unusual_values_are_used_with_a_warning(mpp):
    found, warnings = resolved((mpp, mpp))
    assert found == (mpp, mpp)
    assert len(warnings) == 1 and "unusual" in warnings[0]
    assert resolved(None, mpp) == ((mpp, mpp), warnings)


def test_pixels_that_are_not_square_are_used_as_they_are():
    assert resolved((0.25, 0.2549)) == ((0.25, 0.2549), [])
    mpp, warnings = resolved((0.25, 0.26))
    assert mpp == (0.25, 0.26)
    assert len(warnings) == 1 and "0.25 x 0.26" in warnings[0]


def test_the_option_takes_precedence_over_the_slide_with_a_warning():
    assert resolved((0.2521, 0.2521), 0.25) == ((0.25, 0.25), [])
    mpp, warnings = resolved((0.5, 0.5), 0.25)
    assert mpp == (0.25, 0.25)
    assert len(warnings) == 1 and "the slide says 0.5" in warnings[0]


def test_the_path_is_printable():
    with pytest.raises(DataError) as error:
        resolved_mpp("a\nb.svs", None, None)
    assert str(error.value).isprintable()


@pytest.mark.parametrize(
    "density, mpp",
    [
        ((40_000, 40_000, "centimeter"), (0.25, 0.25)),
        ((101_600, 50_800, "INCH"), (0.25, 0.5)),
        ((72, 72, "inch"), None),
        ((96, 96, "inch"), None),
        ((300, 300, "inch"), None),
        ((40_000, 40_000, "none"), None),
        ((0, 40_000, "centimeter"), None),
        ((math.nan, 1, "centimeter"), None),
    ],
)
def test_resolution_fields_of_image_files(density, mpp):
    assert mpp_from_density(*density) == mpp
