"""Writes the outcomes of all parts into one JSON file and one page of Markdown tables."""

import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu.parts import TITLES
from benchmarks.gpu.scheduler import Outcome

JSON, MARKDOWN = "results.json", "results.md"


def read(folder: Path) -> list[Outcome]:
    """Returns the outcomes that an earlier call wrote into the folder."""
    path = folder / JSON
    return [Outcome(**each) for each in json.loads(path.read_text())["parts"]] if path.is_file() else []


def write(folder: Path, outcomes: Sequence[Outcome], about: dict[str, Any]) -> None:
    """Writes both files; `about` is how the parts were run."""
    content = {**about, "parts": [dataclasses.asdict(outcome) for outcome in outcomes]}
    for name, text in ((JSON, json.dumps(content, indent=1) + "\n"), (MARKDOWN, markdown(outcomes, about))):
        partial = folder / f"{name}.partial"
        partial.write_text(text)
        partial.replace(folder / name)


def markdown(outcomes: Sequence[Outcome], about: dict[str, Any]) -> str:
    """Returns a table for each module with rows, and one of all parts."""
    described = ", ".join(f"{name} {value}" for name, value in about.items())
    lines = ["# Measured on this machine", "", f"{described}.", ""]
    for module, title in TITLES.items():
        rows = [row for outcome in outcomes if outcome.module == module for row in outcome.rows]
        if rows:
            lines += [f"## {title}", "", *table(rows), ""]
    parts = [
        {"part": each.name, "outcome": each.state, "seconds": round(each.seconds), "reason": each.reason}
        for each in outcomes
    ]
    return "\n".join([*lines, "## Parts", "", *table(parts), ""])


def table(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Returns the lines of a table whose columns are all keys, in the order in which they first occur."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    cells = [columns, ["---"] * len(columns), *([_cell(row.get(column)) for column in columns] for row in rows)]
    return [f"| {' | '.join(line)} |" for line in [[name.replace("_", " ") for name in cells[0]], *cells[1:]]]


def _cell(value: Any) -> str:
    if value is None or value == "":
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "NO"
    if isinstance(value, float):
        return f"{value:.0f}" if math.isfinite(value) and abs(value) >= 1000 else f"{value:.3g}"
    return str(value).replace("|", "\\|").replace("\n", " ")
