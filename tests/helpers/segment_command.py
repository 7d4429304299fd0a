"""Calls the command that segments slides and reads its results."""

import csv
import json

from bcss_jax.commands import segment

# Slides with a side of 0.05 mm are smaller than what is removed as dust, and their glass is labeled too.
EVERYTHING = ("--tissue=all", "--glass=keep", "--min_area_um2=0")
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
