"""What outlines of a polygon cover, however often they run around it."""

import numpy as np
import shapely
from shapely.geometry.base import BaseGeometry

_MOST_WORK = 2 * 10**9  # faces of an outline, times its points


def covered_by_outline(points: np.ndarray) -> BaseGeometry:
    """Returns what one closed outline runs around, by the nonzero rule.

    Unlike shapely's `make_valid`, which counts crossings, this keeps what a freehand outline covers twice. What the
    outline runs around once in each direction is not covered; the lobes of a figure eight are.

    Args:
      points: float64 [n, 2], closed or not.

    Raises:
      ValueError: the outline crosses itself too often.
    """
    polygon = shapely.Polygon(points)
    if polygon.is_valid:
        return polygon
    faces = shapely.get_parts(shapely.polygonize([shapely.union_all([shapely.LinearRing(points)])]))
    if len(faces) * len(points) > _MOST_WORK:
        raise ValueError(f"an outline that encloses {len(faces)} areas")
    return shapely.union_all([face for face in faces if _winding(points, face.representative_point())])


def _winding(points: np.ndarray, point: shapely.Point) -> int:
    """Returns how often a closed outline runs around a point, counterclockwise."""
    start, end = points, np.roll(points, -1, axis=0)
    below, end_below = start[:, 1] <= point.y, end[:, 1] <= point.y
    step = end - start
    left = step[:, 0] * (point.y - start[:, 1]) - (point.x - start[:, 0]) * step[:, 1]
    return int(np.sum(below & ~end_below & (left > 0))) - int(np.sum(~below & end_below & (left < 0)))


def drawn_area(points: np.ndarray) -> float:
    """Returns the area by the formula for outlines that do not cross themselves."""
    x, y = (points - points[0]).T  # the first point, to which the outline returns, is 0
    return abs(float(np.dot(x[:-1], y[1:]) - np.dot(y[:-1], x[1:]))) / 2
