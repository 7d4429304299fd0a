"""The viewer's pages: the list of results, and a slide with its result.

Names come from files: Jinja escapes them, and what cannot be printed is escaped too.
"""

from collections.abc import Sequence
from typing import Any
from urllib.parse import quote

from bcss_jax.common.formatting import format_table_score
from bcss_jax.common.html import html_environment
from bcss_jax.errors import printable
from bcss_jax.slides.classes import UNREADABLE
from bcss_jax.slides.slide_summary import SlideSummary
from bcss_jax.viewer.label_tiles import LabelTiles
from bcss_jax.viewer.results import Result
from bcss_jax.viewer.slide_tiles import SlideTiles

UNREADABLE_COLOR = (150, 150, 150)


def url(result: Result) -> str:
    """Returns the path of a result's page."""
    return "/result/" + quote(result.key)


def list_page(found: Sequence[Result]) -> str:
    """Returns the page of all results; the results of one slide share a card."""
    slides = {}
    for result in found:
        slides.setdefault(result.summary.slide.path if result.summary else result.key, []).append(result)
    return _template("list.html").render(slides=list(slides.values()), legend=_legend(found))


def slide_page(
    result: Result,
    models: Sequence[Result],
    slide_tiles: SlideTiles | None,
    label_tiles: LabelTiles | None,
    notes: Sequence[str],
    moved_to: str | None,
    alone: bool,
) -> str:
    """Returns the page of a slide.

    Args:
      result: to be shown.
      models: the results of all models for this slide, including this one.
      slide_tiles: None if the slide cannot be read.
      label_tiles: None if the labels cannot be read.
      notes: the problems, one line each.
      moved_to: the file that is shown, if the slide is not where it was segmented.
      alone: there is no other result to go to.
    """
    summary = result.summary
    rows = _rows(summary) if summary else []
    view = _view(result, summary, rows, slide_tiles, label_tiles) if summary and (slide_tiles or label_tiles) else None
    return _template("slide.html").render(
        result=result, models=models, rows=rows, notes=notes, moved_to=moved_to, alone=alone, view=view
    )


def _view(result, summary, rows, slide_tiles, label_tiles) -> dict[str, Any]:
    """What viewer.js needs, as JSON."""
    bounds = summary.slide.bounds
    return {
        "url": url(result),
        "mpp": summary.grid.mpp / summary.grid.scale[0],
        "bounds": bounds if bounds and bounds[2] > 0 and bounds[3] > 0 else None,
        "size": [summary.slide.width, summary.slide.height],
        "slide": _source(slide_tiles.geometry) if slide_tiles else None,
        "labels": _source(label_tiles.geometry) if label_tiles else None,
        "colors": {row["value"]: row["color"] for row in rows},
    }


def _rows(summary: SlideSummary) -> list[dict]:
    """The rows of the table: one for each class, and one for unreadable tissue if there is any."""
    total = sum(each.area_mm2 for each in summary.classes)
    rows = [
        {
            "value": each.value,
            "name": each.name,
            "color": each.color,
            "area": each.area_mm2,
            "share": each.area_mm2 / total if total else None,
            "dice": (summary.dice or {}).get(each.name),
        }
        for each in summary.classes
    ]
    if summary.unreadable_area_mm2:
        rows.append(
            {
                "value": UNREADABLE,
                "name": "unreadable",
                "color": UNREADABLE_COLOR,
                "area": summary.unreadable_area_mm2,
                "share": None,
                "dice": None,
            }
        )
    return rows


def _legend(found):
    classes = ((each.name, _hex(each.color)) for result in found if result.summary for each in result.summary.classes)
    return list(dict.fromkeys(classes))


def _source(geometry):
    return {"width": geometry.width, "height": geometry.height, "maxLevel": geometry.max_level}


def _hex(color):
    return "#" + bytes(color).hex()


def _area(mm2):
    """At least three significant digits down to 1 mm2, then three decimals: 123, 12.3, 1.23, 0.012."""
    if not mm2:
        return "0"
    return f"{mm2:,.0f}" if mm2 >= 100 else f"{mm2:.1f}" if mm2 >= 10 else f"{mm2:.2f}" if mm2 >= 1 else f"{mm2:.3f}"


def _printable(value):
    """Escapes characters that cannot be printed or encoded. The text must not be markup."""
    return printable(value) if type(value) is str else value


def _template(name):
    environment = html_environment("bcss_jax.viewer", finalize=_printable)
    environment.filters |= {"area": _area, "score": format_table_score, "url": url, "hex": _hex}
    return environment.get_template(name)
