"""Segmenting slides from Python: results that notebooks show, and the errors of the command as exceptions."""

# ruff: noqa: F811 (fixtures are imported, and named by the tests that use them)

import pytest
from helpers.segmented_slide import runs, slide  # noqa: F401 (fixtures)

import bcss_jax
from bcss_jax.errors import ConfigError, DataError


@pytest.fixture(scope="module")
def results(runs, slide, tmp_path_factory):
    output = tmp_path_factory.mktemp("segmented") / "out"
    return bcss_jax.segment(runs[0], slide, output=output, tissue="all", glass="keep", readers=1, min_area_um2=0)


def test_a_slide_shows_areas_and_overlay(results, slide):
    (result,) = results
    assert set(result.areas_mm2) == {"tumor", "stroma"}
    assert result.overlay().width > 100
    html = result._repr_html_()
    assert html == results._repr_html_()
    assert html.count('<img src="data:image/png;base64,') == 1 and "<td>stroma</td>" in html and slide.name in html


def test_results_are_found_in_their_folder(results, tmp_path):
    found = bcss_jax.SlideResults(results[0].folder.parent)
    assert [each.folder.resolve() for each in found] == [results[0].folder.resolve()]
    with pytest.raises(DataError, match="expected results of slides"):
        bcss_jax.SlideResults(tmp_path)


def test_a_damaged_summary_is_shown_as_such(results, tmp_path):
    (tmp_path / "summary.json").write_text("{<b>")
    html = bcss_jax.SlideResult(tmp_path)._repr_html_()
    assert "summary.json: expected the summary of a segmented slide" in html and "<b>" not in html


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"window": -3}, "--window=-3: must be a whole number from 1"),
        ({"window": "32"}, "--window=32: must be a whole number"),
        ({"overlap": 2.0}, "--overlap=2.0: must be from 0"),
        ({"blend": "center"}, "--blend=center: choose one of"),
        ({"truth_region": (1, 2, 3)}, "--truth_region=.*must be x,y,width,height"),
        ({"slides": "list.csv"}, "give one of --slide and --slides"),
    ],
)
def test_arguments_are_checked(runs, slide, tmp_path, arguments, message):
    with pytest.raises(ConfigError, match=message):
        bcss_jax.segment(runs[0], slide, output=tmp_path / "out", **arguments)
    assert not (tmp_path / "out").exists()


def test_a_slide_that_is_not_there_is_a_data_error(runs, tmp_path):
    with pytest.raises(DataError, match="nowhere.svs"):
        bcss_jax.segment(runs[0], tmp_path / "nowhere.svs", output=tmp_path / "out")
