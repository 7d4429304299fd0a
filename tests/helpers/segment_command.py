"""Calls the command that segments slides, reads its results, and has fixtures of small slides and their results."""

import csv
import json

import pytest

from bcss_jax import segment
from helpers import slide_files
from helpers.slides_small import tissue_picture, write_run

# Slides with a side of 0.05 mm are smaller than what is removed as dust.
EVERYTHING = ("--tissue=all", "--min_area_um2=0")
SESSION_FIELDS = ("seconds", "peak_memory_mb", "resumed")  # fields of a summary that differ between sessions


def call(*options):
    return segment.main([*map(str, options)])


def command(run, slide, output, *options):
    return call(f"--checkpoint={run}", f"--slide={slide}", f"--output={output}", "--readers=1", *EVERYTHING, *options)


def one_line(capsys):
    captured = capsys.readouterr()
    lines = [line for line in captured.err.splitlines() if line.startswith(("error:", "note:"))]
    assert len(lines) == 1 and "Traceback" not in captured.err
    return lines[0]


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


def summary_of(folder):
    return json.loads((folder / "summary.json").read_text())


class Killed(BaseException):
    """Raised in place of a kill; the package does not catch it."""


def statuses_in(output):
    with open(output / "summary.csv", newline="") as file:
        return [row["status"] for row in csv.DictReader(file)]


def contents(folder):
    """Returns the bytes of all results, and the summary without `SESSION_FIELDS`."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name not in (".lock", "summary.json"):
            found[path.relative_to(folder)] = path.read_bytes()
    summary = summary_of(folder)
    return found, {name: value for name, value in summary.items() if name not in SESSION_FIELDS}
