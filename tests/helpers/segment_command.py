"""How tests call the command that segments slides, and read what it left."""

import csv
import json

from bcss_jax import segment

# 0.05 mm on a side: all of it is below the size of dust.
EVERYTHING = ("--tissue=all", "--min_area_um2=0")
OF_THE_SESSION = ("seconds", "peak_memory_mb", "resumed")  # in a summary, what a clock and the machine give


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
    """Nothing in the product catches it."""


def statuses_in(output):
    with open(output / "summary.csv", newline="") as file:
        return [row["status"] for row in csv.DictReader(file)]


def contents(folder):
    """Bytes of all results; of the summary without what a clock and the machine give."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name not in (".lock", "summary.json"):
            found[path.relative_to(folder)] = path.read_bytes()
    summary = summary_of(folder)
    return found, {name: value for name, value in summary.items() if name not in OF_THE_SESSION}
