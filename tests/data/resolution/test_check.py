import math
import re

import pytest

from bcss_jax.data.resolution.check import (
    StatedMpp,
    check_mpp,
    mpp_from_density,
    resolved_mpp,
    um_per_unit,
    warn_if_other_size,
)
from bcss_jax.errors import ConfigError, DataError


def resolved(found, given=None):
    stated = () if found is None else (StatedMpp(found, "its header"),)
    return resolved_of(*stated, given=given)


def resolved_of(*stated, given=None):
    warnings = []
    return resolved_mpp("a.svs", stated, given, warnings.append), warnings


@pytest.mark.parametrize("mpp", [0.25, 0.499, 0.1, 2.0])
def test_the_value_of_the_slide_is_used(mpp):
    assert resolved((mpp, mpp)) == ((mpp, mpp), [])


def test_a_slide_without_a_value_needs_the_option():
    with pytest.raises(DataError, match=r"^a\.svs: expected .*found no um per pixel; give it with --mpp"):
        resolved(None)
    assert resolved(None, 0.25) == ((0.25, 0.25), [])


@pytest.mark.parametrize("value", [0.0, -0.25, math.nan, math.inf, 250.0, 0.00025, 20.0])
def test_impossible_values_are_refused_in_the_slide_and_in_the_option(value):
    with pytest.raises(DataError, match="found .*by its header in the slide; give the right one with --mpp"):
        resolved((value, value))
    with pytest.raises(DataError):
        resolved((0.25, value))
    with pytest.raises(ConfigError, match="^--mpp="):
        resolved((0.25, 0.25), value)


@pytest.mark.parametrize("mpp", [11.0, 28.97, 64.5])
def test_the_option_is_not_advised_for_an_overview_of_a_slide(mpp):
    with pytest.raises(
        DataError, match="those of an overview or a thumbnail: give the file of the scan itself"
    ) as error:
        resolved((mpp, mpp))
    assert "--mpp" not in str(error.value)
    assert resolved((mpp, mpp), 0.25)[0] == (0.25, 0.25)


def test_the_message_guesses_the_unit():
    with pytest.raises(DataError, match=r"found 250 \(nanometers\? that would be 0\.25 um\)"):
        resolved((250.0, 250.0))
    with pytest.raises(ConfigError, match=r"found 0\.00025 \(millimeters\? that would be 0\.25 um\)"):
        resolved(None, 0.00025)


def test_the_option_replaces_impossible_values_of_the_slide():
    mpp, warnings = resolved((0.0, 0.0), 0.25)
    assert mpp == (0.25, 0.25)
    assert len(warnings) == 1 and "found 0.25 given" in warnings[0]
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
    assert len(warnings) == 1 and "expected 0.5 um per pixel by its header, found 0.25 given" in warnings[0]


def test_the_path_is_printable():
    with pytest.raises(DataError) as error:
        resolved_mpp("a\nb.svs", (), None)
    assert str(error.value).isprintable()


@pytest.mark.parametrize(
    "density, mpp",
    [
        ((40_000, 40_000, "centimeter"), (0.25, 0.25)),
        ((101_600, 50_800, "INCH"), (0.25, 0.5)),
        ((72, 72, "inch"), None),
        ((96, 96, "inch"), None),
        ((300, 300, "inch"), None),
        ((4, 2, "micron"), (0.25, 0.5)),
        ((40_000, 40_000, "none"), None),
        ((0, 40_000, "centimeter"), None),
        ((math.nan, 1, "centimeter"), None),
    ],
)
def test_resolution_fields_of_image_files(density, mpp):
    assert mpp_from_density(*density) == mpp


@pytest.mark.parametrize(
    "value, found",
    [
        (40, "40 (a magnification? 40x scans have about 0.25)"),
        (10.0, "10 (a magnification?"),
        (250, "250 (nanometers?"),
        (-0.25, "-0.25"),
        (math.nan, "nan"),
        (10**400, "1000"),
        ("0.25", "'0.25'"),
        (None, "None"),
        (True, "True"),
    ],
)
def test_settings_lists_and_names_are_judged_by_the_same_rule(value, found):
    with pytest.raises(
        DataError, match="^" + re.escape(f"list.csv, line 2: expected um per pixel such as 0.25, found {found}")
    ):
        check_mpp(value, "list.csv, line 2", error_type=DataError)
    with pytest.raises(ConfigError):
        check_mpp(value, "--mpp")
    assert check_mpp(1, "--mpp") == 1.0


def test_sources_in_one_file_that_differ_are_named():
    ome, tags = StatedMpp((0.25, 0.25), "OME-XML"), StatedMpp((0.5, 0.5), "the tags")
    assert resolved_of(ome, ome) == ((0.25, 0.25), [])
    mpp, (line,) = resolved_of(ome, tags)
    assert mpp == (0.25, 0.25) and "contradicts itself: 0.25 um per pixel by OME-XML, 0.5 by the tags" in line
    assert resolved_of(StatedMpp(None, "OME-XML", "in pixels"), tags) == ((0.5, 0.5), [])
    with pytest.raises(DataError, match=r"found 250 \(nanometers.* by OME-XML in the slide \(and 0.5 by the tags\)"):
        resolved_of(StatedMpp((250.0, 250.0), "OME-XML"), tags)
    with pytest.raises(DataError, match=r"found no um per pixel \(OME-XML: in pixels\); give it"):
        resolved_of(StatedMpp(None, "OME-XML", "in pixels"))
    assert len(resolved_of(ome, tags, given=0.25)[1]) == 1


def test_remarks_are_said_when_the_value_is_used_and_oblong_pixels_are_refused():
    one = StatedMpp((0.25, 0.25), "OME-XML", "one direction only")
    assert resolved_of(one)[1] == ["a.svs: OME-XML: one direction only; if that is wrong, give --mpp"]
    assert resolved_of(one, given=0.25)[1] == []
    with pytest.raises(DataError, match="nearly square, found 0.25 x 2.5 um"):
        resolved((0.25, 2.5))


@pytest.mark.parametrize(
    "unit, um",
    [("µm", 1), ("\u03bcm", 1), ("um", 1), (" micron ", 1), ("\\u00B5m", 1), ("nm", 1e-3), ("mm", 1e3),
     ("inch", 25_400), ("Mm", None), ("pixel", None), ("reference frame", None), ("", None)],
)  # fmt: skip
def test_units(unit, um):
    assert um_per_unit(unit) == um


def test_a_mask_that_states_another_size_of_its_pixels_than_its_place_gives_is_said():
    lines = []
    tags = [StatedMpp(None, "OME-XML", "in pixels"), StatedMpp((0.5, 0.5), "tags")]
    warn_if_other_size("mask.tif", tags, [(0.25, 0.25), (0.5, 0.5)], lines.append)
    warn_if_other_size("mask.tif", (), [(0.25, 0.25)], lines.append)
    assert lines == []
    warn_if_other_size("mask.tif", tags, [(0.25, 0.25)], lines.append)
    assert len(lines) == 1 and "0.5 um per pixel by tags, but laid over the slide its pixels have 0.25" in lines[0]
