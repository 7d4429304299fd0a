"""Writes outlines on a slide as annotations for QuPath; `slides.outputs.geojson` says what QuPath expects."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import shapely
from shapely.geometry.base import BaseGeometry

from bcss_jax.common.files import write_text
from bcss_jax.labels import QUPATH_NAMES
from bcss_jax.slides.classes import SlideClass

DECIMALS = 2  # as QuPath writes


class Outline(NamedTuple):
    """An annotation.

    Attributes:
      area: valid Polygon or MultiPolygon in pixels of level 0.
      kind: its class.
      measurements: numbers by name.
    """

    area: BaseGeometry
    kind: SlideClass
    measurements: dict[str, float]


def feature_of(outline: Outline, origin: tuple[float, float] = (0, 0)) -> dict[str, Any]:
    """Returns an annotation as a Feature of GeoJSON; unlike a segmentation's regions, it can be edited at once.

    Outer rings run counter-clockwise in (x, y), as in RFC 7946.

    Args:
      outline: the annotation.
      origin: level-0 pixel of QuPath's point (0, 0).
    """
    parts = [
        [_ring(ring, origin) for ring in (part.exterior, *part.interiors)]
        for part in shapely.get_parts(shapely.orient_polygons(outline.area)).tolist()
    ]
    several = len(parts) != 1
    name = QUPATH_NAMES.get(outline.kind.name, outline.kind.name)
    return {
        "type": "Feature",
        "geometry": {"type": "MultiPolygon", "coordinates": parts}
        if several
        else {"type": "Polygon", "coordinates": parts[0]},
        "properties": {
            "objectType": "annotation",
            "classification": {"name": name, "color": list(outline.kind.color)},
            "measurements": outline.measurements,
        },
    }


def write_annotations(
    path: Path, outlines: Sequence[Outline], origin: tuple[float, float], about: dict[str, Any]
) -> None:
    """Writes a FeatureCollection, completely or not at all; raises errors as `files.whole_file`.

    Args:
      path: of the file.
      outlines: may be none.
      origin: level-0 pixel of QuPath's point (0, 0).
      about: JSON that is written beside the features.
    """
    about = {"coordinates": "pixels of level 0", "origin": list(origin), **about}
    features = ",\n".join(_json(feature_of(outline, origin)) for outline in outlines)
    write_text(path, f'{{"type":"FeatureCollection","bcss_jax":{_json(about)},"features":[\n{features}\n]}}\n')


def _ring(ring: Any, origin: tuple[float, float]) -> list[list[float]]:
    points = np.round(np.asarray(ring.coords)[:, :2] - origin, DECIMALS) + 0.0
    return [[int(each) if each.is_integer() else each for each in point] for point in points.tolist()]


def _json(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), allow_nan=False)
