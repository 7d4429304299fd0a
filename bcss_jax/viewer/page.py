"""The viewer's pages: the list of results, and a slide with its result. Names come from files and are escaped by Jinja."""

from collections.abc import Sequence
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined

from bcss_jax.common.formatting import format_table_score
from bcss_jax.slides.classes import UNREADABLE
from bcss_jax.viewer.label_tiles import LabelTiles
from bcss_jax.viewer.results import Result, Summary
from bcss_jax.viewer.slide_tiles import SlideTiles

UNREADABLE_COLOR = (150, 150, 150)


def url(result: Result) -> str:
    """The path of a result's page."""
    return "/result/" + quote(result.key)


def list_of(found: Sequence[Result]) -> str:
    """The page of all results, those of one slide together."""
    slides = {}
    for result in found:
        slides.setdefault(result.summary.slide_path if result.summary else result.key, []).append(result)
    return _environment().get_template("list.html").render(slides=list(slides.values()), legend=_legend(found))


def slide(
    result: Result,
    models: Sequence[Result],
    slide_tiles: SlideTiles | None,
    label_tiles: LabelTiles | None,
    notes: Sequence[str],
    moved_to: str | None,
    alone: bool,
) -> str:
    """The page of a slide.

    Args:
      result: to be shown.
      models: the results of all models for this slide, this one among them.
      slide_tiles: None if the slide cannot be read.
      label_tiles: None if the labels cannot be read.
      notes: what is wrong, a line each.
      moved_to: the file that is shown, if it is not where it was segmented.
      alone: whether there is no other result to go to.
    """
    summary = result.summary
    rows = _rows(summary) if summary else []
    view = {
        "url": url(result),
        "mpp": summary.grid.mpp / summary.grid.scale[0],
        "bounds": summary.bounds,
        "size": [summary.width, summary.height],
        "slide": _source(slide_tiles.geometry) if slide_tiles else None,
        "labels": _source(label_tiles.geometry) if label_tiles else None,
        "colors": {row["value"]: row["rgb"] for row in rows},
    } if summary and (slide_tiles or label_tiles) else None  # fmt: skip
    return (
        _environment()
        .get_template("slide.html")
        .render(
            result=result,
            summary=summary,
            models=models,
            rows=rows,
            notes=notes,
            moved_to=moved_to,
            alone=alone,
            view=view,
        )
    )


def _rows(summary: Summary) -> list[dict]:
    """Legend, switches and areas: a row for each class, and one for what could not be read if there is such."""
    total = sum(each.area_mm2 for each in summary.classes)
    rows = [
        {
            "value": each.value,
            "name": each.name,
            "rgb": each.color,
            "area": each.area_mm2,
            "share": each.area_mm2 / total if total else None,
            "dice": (summary.dice or {}).get(each.name),
        }
        for each in summary.classes
    ]
    if summary.unreadable_mm2:
        rows.append(
            {
                "value": UNREADABLE,
                "name": "unreadable",
                "rgb": UNREADABLE_COLOR,
                "area": summary.unreadable_mm2,
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
    """Three digits that mean something: 12.3, 1.23, 0.0123."""
    if not mm2:
        return "0"
    return f"{mm2:,.0f}" if mm2 >= 100 else f"{mm2:.1f}" if mm2 >= 10 else f"{mm2:.2f}" if mm2 >= 1 else f"{mm2:.3f}"


def _environment():
    environment = Environment(
        loader=PackageLoader("bcss_jax.viewer"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"area": _area, "score": format_table_score, "url": url, "hex": _hex}
    return environment
