"""Fixtures: two runs, a small slide, and the slide segmented by the first run."""

import pytest

from helpers import slide_files
from helpers.segment_command import command
from helpers.slides_small import tissue_picture, write_run


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The folders of two runs with different weights."""
    folder = tmp_path_factory.mktemp("runs")
    return [write_run(folder / "one", seed=1), write_run(folder / "two", seed=2)]


@pytest.fixture(scope="module")
def slide(tmp_path_factory):
    """A tiled TIFF of 200 x 150 pixels at 0.25 um."""
    pixels, _ = tissue_picture(150, 200)
    return slide_files.tiled(tmp_path_factory.mktemp("slides") / "case.tif", pixels)


@pytest.fixture(scope="module")
def finished(runs, slide, tmp_path_factory):
    """The folder of the slide's results, with probabilities."""
    output = tmp_path_factory.mktemp("finished") / "out"
    assert command(runs[0], slide, output, "--probabilities") == 0
    return output / "case"
