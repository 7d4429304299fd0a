"""An outlined area of a slide with its class, and the operations on areas that keep them valid."""

import dataclasses

import numpy as np
import shapely
from shapely.geometry.base import BaseGeometry

DECIMALS = 2  # of coordinates in pixels of level 0, as QuPath writes them
SMALLEST = 1.0  # pixels of level 0; smaller parts are what rounding leaves over

PROMPT, BRUSH, FILE, MODEL = "prompt", "brush", "file", "model"  # sources of outlines


@dataclasses.dataclass(frozen=True, eq=False)
class Outline:
    """An outlined area.

    Attributes:
      id: UUID, which QuPath keeps.
      name: of its class as files have it, for example "Tumor"; None: it has no class.
      area: valid Polygon or MultiPolygon in pixels of level 0, with two decimals.
      source: what made it: `PROMPT`, `BRUSH`, `FILE` (read from a file of the user) or `MODEL` (a suggestion).
      clicks: clicks, boxes and strokes that it took.
      seconds: that it took.
      accepted: the user has made or accepted it; False: a suggestion, which is not saved.
    """

    id: str
    name: str | None
    area: BaseGeometry
    source: str
    clicks: int = 0
    seconds: float = 0.0
    accepted: bool = True


def cleaned(area: BaseGeometry) -> BaseGeometry | None:
    """Returns the polygons of an area with rounded coordinates, without tiny parts; None if nothing is left."""
    rounded = shapely.set_precision(area, 10.0**-DECIMALS)
    parts = [part for part in shapely.get_parts(rounded) if part.geom_type == "Polygon" and part.area >= SMALLEST]
    if not parts:
        return None
    return shapely.MultiPolygon(parts) if len(parts) > 1 else parts[0]


def without(area: BaseGeometry, taken: BaseGeometry) -> BaseGeometry | None:
    """Returns an area without another one; None if nothing is left."""
    return cleaned(shapely.difference(area, taken))


def joined(area: BaseGeometry, other: BaseGeometry) -> BaseGeometry | None:
    """Returns two areas as one."""
    return cleaned(shapely.union(area, other))


def rings_of(area: BaseGeometry, origin: tuple[float, float] = (0, 0)) -> list[list[list[list[float]]]]:
    """Returns the coordinates of a MultiPolygon as GeoJSON has them, outer rings counter-clockwise in (x, y).

    Args:
      area: Polygon or MultiPolygon.
      origin: x and y in pixels of level 0 that are 0 in the result.
    """
    parts = shapely.get_parts(shapely.orient_polygons(area))
    return [[_ring(ring, origin) for ring in (part.exterior, *part.interiors)] for part in parts]


def _ring(ring: BaseGeometry, origin: tuple[float, float]) -> list[list[float]]:
    points = np.round(shapely.get_coordinates(ring) - origin, DECIMALS) + 0.0
    return [[int(x) if x == int(x) else x, int(y) if y == int(y) else y] for x, y in points.tolist()]
