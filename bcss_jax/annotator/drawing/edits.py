"""What each tool changes. All return changes for `Document.apply`: id -> the outline from now on, or None.

What is drawn last counts: a new area is cut out of the areas of other classes, and out of all suggestions, so that
no place has two classes. Areas whose class the label scheme does not know, such as the outline of a region of
interest, stay whole.
"""

import dataclasses
from collections.abc import Iterable

import shapely
from shapely.geometry.base import BaseGeometry

from bcss_jax.annotator.drawing.document import Document
from bcss_jax.annotator.drawing.outline import Outline, cleaned, joined, without
from bcss_jax.annotator.drawing.palette import Palette, PaletteClass

Changes = dict[str, Outline | None]


def add(document: Document, palette: Palette, outline: Outline) -> Changes:
    """Adds an outline of a class of the palette."""
    changes: Changes = {outline.id: outline}
    _cut(changes, document, palette, outline.name, outline.area, {outline.id})
    return changes


def extend(
    document: Document, palette: Palette, outline: Outline, area: BaseGeometry, effort: tuple[int, float]
) -> Changes:
    """Adds an area to an outline, which is accepted by that.

    Args:
      document: the outlines.
      palette: the classes.
      outline: to be extended.
      area: that is added.
      effort: clicks and seconds that this took.
    """
    larger = joined(outline.area, area)
    assert larger is not None  # it holds the outline
    changes: Changes = {outline.id: _worked(outline, effort, area=larger)}
    _cut(changes, document, palette, outline.name, area, {outline.id})
    return changes


def erase(outlines: Iterable[Outline], area: BaseGeometry, effort: tuple[int, float]) -> Changes:
    """Takes an area away from outlines. Suggestions are accepted by that, as what is left was corrected."""
    changes: Changes = {}
    for outline in outlines:
        if not shapely.intersects(outline.area, area):
            continue
        left = without(outline.area, area)
        changes[outline.id] = None if left is None else _worked(outline, effort, area=left)
        effort = (0, 0.0)  # one outline counts it
    return changes


def set_class(document: Document, palette: Palette, outlines: Iterable[Outline], to: PaletteClass) -> Changes:
    """Gives outlines a class, and accepts them."""
    found = list(outlines)
    changes: Changes = {each.id: dataclasses.replace(each, name=to.name, accepted=True) for each in found}
    for each in found:
        _cut(changes, document, palette, to.name, each.area, {each.id for each in found})
    return changes


def accept(document: Document, palette: Palette, outlines: Iterable[Outline]) -> Changes:
    """Accepts suggestions as they are."""
    found = [each for each in outlines if not each.accepted]
    changes: Changes = {each.id: dataclasses.replace(each, accepted=True) for each in found}
    for each in found:
        _cut(changes, document, palette, each.name, each.area, {each.id for each in found})
    return changes


def suggested(suggestions: Iterable[Outline], outlines: Iterable[Outline]) -> list[Outline]:
    """Returns what suggestions leave beside the outlines that are there."""
    areas = [each.area for each in outlines]
    index, found = shapely.STRtree(areas), []
    for suggestion in suggestions:
        taken = [areas[number] for number in index.query(suggestion.area, predicate="intersects")]
        left = without(suggestion.area, shapely.union_all(taken)) if taken else suggestion.area
        if left is not None:
            found.append(suggestion if left is suggestion.area else dataclasses.replace(suggestion, area=left))
    return found


def brushed(points: list[tuple[float, float]], radius: float, size: tuple[int, int]) -> BaseGeometry | None:
    """Returns what a round brush covers on a slide; None if it misses it.

    Args:
      points: of its way, in pixels of level 0; at least one.
      radius: in pixels of level 0.
      size: width and height of level 0.
    """
    line = shapely.LineString(points) if len(set(points)) > 1 else shapely.Point(points[0])
    return cleaned(shapely.intersection(line.buffer(radius, quad_segs=12), shapely.box(0, 0, *size)))


def _cut(
    changes: Changes, document: Document, palette: Palette, name: str | None, area: BaseGeometry, kept: set[str]
) -> None:
    """Cuts an area of a class out of the outlines of others, except those with the ids in `kept`, into `changes`."""
    own = palette.of(name)
    if own is None:
        return
    for outline in document.outlines():
        other = palette.of(outline.name)
        if outline.id in kept or other is None or (outline.accepted and other.label == own.label):
            continue
        current = changes.get(outline.id, outline)
        if current is not None and shapely.intersects(current.area, area):
            left = without(current.area, area)
            changes[outline.id] = None if left is None else dataclasses.replace(current, area=left)


def _worked(outline: Outline, effort: tuple[int, float], *, area: BaseGeometry) -> Outline:
    clicks, seconds = outline.clicks + effort[0], outline.seconds + effort[1]
    return dataclasses.replace(outline, area=area, clicks=clicks, seconds=seconds, accepted=True)
