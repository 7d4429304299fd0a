"""An annotation of a slide, whatever kind of file it comes from."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import shapely
from shapely.geometry.base import BaseGeometry

from bcss_jax.slides.annotations.outline_cover import covered_by_outline, drawn_area

MAX_COORDINATE = 1e8  # pixels; larger coordinates are not on any slide


class Annotation(NamedTuple):
    """An annotated area.

    Attributes:
      names: of its class, the most specific first: QuPath's class "Tumor: Positive" is ("Tumor: Positive", "Tumor"), an
        ASAP group is followed by the groups that it is part of. Empty if the annotation has no class.
      area: valid Polygon or MultiPolygon in pixels of level 0, x and y.
      place: where it stands in the file, for messages, for example "geometry 3 (Tumor)".
      feature: the GeoJSON Feature that it was read from, with its id and properties; None: it was another file.
      points: of an annotation of points or lines, which `area` widens, float64 [n, 2]; None for polygons.
    """

    names: tuple[str, ...]
    area: BaseGeometry
    place: str
    feature: Mapping[str, Any] | None = None
    points: np.ndarray | None = None


def checked_ring(points: list[tuple[float, float]], origin: tuple[float, float]) -> np.ndarray:
    """Returns the points of a ring plus the origin: float64 [n, 2].

    Raises:
      ValueError: fewer than three of the points are different.
    """
    different = len({(x, y) for x, y in points})
    if different < 3:
        raise ValueError(f"a ring of {different} points")
    return np.array(points, np.float64) + origin


def covered(shell: np.ndarray, holes: list[np.ndarray]) -> tuple[BaseGeometry, float]:
    """Returns what a polygon covers, and the area that its outlines state.

    A hole that lies outside of the shell is drawn too, so it is covered.

    Raises:
      ValueError: a hole contains the shell, or an outline crosses itself too often.
    """
    whole = covered_by_outline(shell)
    if not holes:
        return whole, drawn_area(shell)
    cut = [covered_by_outline(hole) for hole in holes]
    if any(hole.contains(whole) and hole.area > whole.area for hole in cut):
        raise ValueError("a hole that contains the outline; the first ring must be the outline")
    outside = [hole for hole in cut if not hole.intersects(whole)]
    inside = [hole for hole in cut if hole.intersects(whole)]
    stated = drawn_area(shell) - sum(drawn_area(hole) for hole in holes)
    return shapely.union_all([whole.difference(shapely.union_all(inside)), *outside]), stated
