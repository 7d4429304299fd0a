"""Reads prompts that were drawn on a slide, and groups them into objects.

- A rectangle stands for one object: a box. Any other polygon, ellipse or several of them in one annotation is an
  outline that is to be corrected: its mask and its box.
- Points of one annotation stand for one object, as for QuPath's extension for SAM; so do the corners of a line. If they
  all lie in the box of an object of their class, they belong to the smallest such object.
- Points of a class also lie outside of the objects of all other classes. Points of classes that the scheme ignores,
  such as QuPath's `Ignore*`, lie outside of all objects, and polygons of such classes are cut out of all objects.
"""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import shapely
from shapely.geometry.base import BaseGeometry

from bcss_jax.errors import DataError, printable
from bcss_jax.labels import LabelScheme
from bcss_jax.slides.annotations.annotation import Annotation
from bcss_jax.slides.annotations.class_names import labels_of_classes
from bcss_jax.slides.annotations.placement import check_placement
from bcss_jax.slides.annotations.slide_labels import read_annotations
from bcss_jax.slides.prompts.object_prompt import INSIDE, ObjectPrompt
from bcss_jax.slides.prompts.view import Box

MOST_POINTS = 64  # of an annotation; of more, evenly spaced ones count
_POINT = 1.0  # pixels of level 0, diameter of a point when its place is checked
_EXACT = 1e-6  # share of a rectangle's area that its bounding box may have more
log = logging.getLogger(__name__)


class SlideObject(NamedTuple):
    """An object with its prompts.

    Attributes:
      label: of its class in the scheme.
      place: of its first annotation in the file, for messages.
      prompt: without points outside.
      extent: bounding box of the prompts, pixels of level 0.
    """

    label: int
    place: str
    prompt: ObjectPrompt
    extent: Box


class SlidePrompts(NamedTuple):
    """The prompts on a slide.

    Attributes:
      objects: in the order of the file; at least one.
      points: all points, float64 [n, 2], pixels of level 0.
      labels: int64 [n], of the points' classes; objects of other labels do not contain them.
      cut_out: areas that belong to no object.
    """

    objects: tuple[SlideObject, ...]
    points: np.ndarray
    labels: np.ndarray
    cut_out: list[BaseGeometry]


def read_prompts(
    path: Path,
    scheme: LabelScheme,
    size: tuple[int, int],
    mpp: tuple[float, float],
    origin: tuple[float, float],
    tissue: Callable[[], np.ndarray] | None = None,
    warn: Callable[[str], None] = log.warning,
) -> SlidePrompts:
    """Reads a GeoJSON file of QuPath, or ASAP's XML.

    Args:
      path: the file.
      scheme: the labels, by whose names the prompts are classified.
      size: width and height of level 0.
      mpp: um per pixel of level 0 along x and y.
      origin: level-0 pixel of QuPath's point (0, 0).
      tissue: () -> bool [h, w] over the whole slide, to tell pixels from micrometers; called if that is in doubt.
      warn: called with one line about everything that is odd but usable.

    Raises:
      DataError: the file cannot be read, does not belong to this slide, has a class that the scheme does not know, or
        has no prompt of an evaluated class.
    """
    annotations = read_annotations(path, origin, warn, line_width=_POINT)
    check_placement(path, annotations, size, mpp, tissue, warn)
    labels = labels_of_classes(path, annotations, scheme, warn)
    if None in labels:
        warn(
            f"{printable(path)}: {labels.count(None)} of {len(annotations)} annotations have no class; they are left "
            "out"
        )
    known = [(each, label) for each, label in zip(annotations, labels, strict=True) if label is not None]
    drawn = [(each, label) for each, label in known if label in scheme.evaluated]
    if not drawn:
        found = sorted({each.names[0] for each, _ in known}) or ["annotations without a class"]
        raise DataError(
            f"{printable(path)}: expected prompts of a class to segment ({', '.join(scheme.evaluated_names)}), found "
            f"only {', '.join(ascii(name)[1:-1][:70] for name in found[:5])}; draw and classify some"
        )
    ignored = [each for each, label in known if label not in scheme.evaluated]
    if ignored:
        names = ", ".join(sorted({ascii(each.names[0])[1:-1][:70] for each in ignored})[:5])
        warn(
            f"{printable(path)}: {len(ignored)} annotations of classes that {scheme.name} ignores ({names}) say where "
            "no object is"
        )
    return SlidePrompts(
        tuple(_objects(path, drawn, size, warn)),
        *_all_points(known),
        [each.area for each in ignored if each.points is None],
    )


def _objects(
    path: Path, drawn: Sequence[tuple[Annotation, int]], size: tuple[int, int], warn: Callable[[str], None]
) -> list[SlideObject]:
    """Returns the objects: areas with the points in their boxes, then other points."""
    areas = [(each, label) for each, label in drawn if each.points is None]
    boxes = np.array([each.area.bounds for each, _ in areas]).reshape(-1, 4)
    sides = boxes[:, 2:] - boxes[:, :2]
    added: dict[int, list[np.ndarray]] = {}
    found, clipped = [], 0
    for each, label in drawn:
        if each.points is None:
            continue
        points = each.points.clip(0, size)
        if len(points) > MOST_POINTS:
            points, clipped = _thinned(points), clipped + 1
        holds = ((points[:, None] >= boxes[:, :2]) & (points[:, None] <= boxes[:, 2:])).all((0, 2))
        holds &= np.array([label == other for _, other in areas], bool)
        if holds.any():
            smallest = min(np.flatnonzero(holds).tolist(), key=lambda number: sides[number].prod())
            added.setdefault(smallest, []).append(points)
        else:
            extent = (*points.min(0).tolist(), *points.max(0).tolist())
            prompt = ObjectPrompt(points, np.full(len(points), INSIDE))
            found.append(SlideObject(label, each.place, prompt, extent))
    with_box = []
    for number, (each, label) in enumerate(areas):
        points = np.concatenate(added[number]) if number in added else None
        if points is not None and len(points) > MOST_POINTS:
            points, clipped = _thinned(points), clipped + 1
        labels = None if points is None else np.full(len(points), INSIDE)
        prompt = ObjectPrompt(points, labels, each.area.bounds, None if _is_box(each.area) else each.area)
        with_box.append(SlideObject(label, each.place, prompt, each.area.bounds))
    if clipped:
        warn(f"{printable(path)}: {clipped} objects have more than {MOST_POINTS} points; so many of each count")
    return [*with_box, *found]


def _thinned(points: np.ndarray) -> np.ndarray:
    """Returns as many of the points as count, evenly spaced."""
    return points[np.linspace(0, len(points) - 1, MOST_POINTS).round().astype(int)]


def _is_box(area: BaseGeometry) -> bool:
    return isinstance(area, shapely.Polygon) and area.area >= (1 - _EXACT) * shapely.box(*area.bounds).area


def _all_points(known: Sequence[tuple[Annotation, int]]) -> tuple[np.ndarray, np.ndarray]:
    """Returns the points of all classes with their labels."""
    found = [(each.points, label) for each, label in known if each.points is not None]
    if not found:
        return np.zeros((0, 2)), np.zeros(0, np.int64)
    return (
        np.concatenate([points for points, _ in found]),
        np.repeat([label for _, label in found], [len(points) for points, _ in found]),
    )
