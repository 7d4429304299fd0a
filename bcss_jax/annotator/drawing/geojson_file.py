"""The annotations of a slide as a file: GeoJSON that QuPath opens and that the layout `slides` trains on.

QuPath (0.5 and 0.6, QuPathTypeAdapters) keeps `id`, `classification`, `measurements` and `metadata` of a Feature, and
leaves out members of the FeatureCollection that it does not know. So clicks and seconds of an annotation are
measurements, and what is true of the whole file stands in the member `bcss_jax`, by which the file is recognized as one
that this program wrote: QuPath writes a file without it.
"""

import json
import re
import uuid
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bcss_jax.annotator.drawing.outline import BRUSH, FILE, MODEL, PROMPT, Outline, cleaned, rings_of
from bcss_jax.annotator.drawing.palette import Palette
from bcss_jax.common.json_files import read_json
from bcss_jax.errors import DataError, printable
from bcss_jax.slides.annotations.annotation import Annotation
from bcss_jax.slides.annotations.placement import check_placement
from bcss_jax.slides.annotations.slide_labels import read_annotations

COMMAND = "annotate"
_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_AREA, _CLICKS, _SECONDS = "area_um2", "clicks", "seconds"  # measurements
_SOURCE = "source"  # of the metadata


class SlideFacts(NamedTuple):
    """What the file depends on.

    Attributes:
      name: of the slide's file.
      size: width and height of level 0.
      mpp: um per pixel of level 0 along x and y.
      origin: x and y in pixels of level 0 that are 0 in the file, as QuPath counts.
    """

    name: str
    size: tuple[int, int]
    mpp: tuple[float, float]
    origin: tuple[float, float]


class Effort(NamedTuple):
    """What the annotations of a file took, those that were deleted included."""

    clicks: int = 0
    seconds: float = 0.0


class Contents(NamedTuple):
    """What a file holds.

    Attributes:
      outlines: the annotations.
      effort: that they took.
      handled: by the file of suggestions (its digest), the ids of those that were accepted or deleted.
      is_own: this program wrote the file.
    """

    outlines: list[Outline]
    effort: Effort = Effort()
    handled: Mapping[str, list[str]] = {}
    is_own: bool = True


def content_of(
    outlines: Iterable[Outline],
    palette: Palette,
    slide: SlideFacts,
    effort: Effort,
    handled: Mapping[str, list[str]],
) -> bytes:
    """Returns a file with the accepted ones of some outlines; see `Contents`."""
    metadata = {
        "command": COMMAND,
        "slide": slide.name,
        "size": list(slide.size),
        "coordinates": "pixels of level 0",
        "origin": list(slide.origin),
        "clicks": effort.clicks,
        "minutes": round(effort.seconds / 60, 2),
        "handled_suggestions": dict(handled),
    }
    features = ",\n".join(_feature(each, palette, slide) for each in outlines if each.accepted)
    return f'{{"type":"FeatureCollection","bcss_jax":{_json(metadata)},"features":[\n{features}\n]}}\n'.encode("ascii")


def _feature(outline: Outline, palette: Palette, slide: SlideFacts) -> str:
    polygons = rings_of(outline.area, slide.origin)
    geometry = (
        {"type": "Polygon", "coordinates": polygons[0]}
        if len(polygons) == 1
        else {"type": "MultiPolygon", "coordinates": polygons}
    )
    properties: dict[str, Any] = {"objectType": "annotation"}
    if outline.name is not None:
        properties["classification"] = {"name": outline.name, "color": list(palette.color(outline.name))}
    properties["measurements"] = {
        _AREA: round(outline.area.area * slide.mpp[0] * slide.mpp[1], 4),
        _CLICKS: outline.clicks,
        _SECONDS: round(outline.seconds, 2),
    }
    properties["metadata"] = {_SOURCE: outline.source}
    return _json({"type": "Feature", "id": outline.id, "geometry": geometry, "properties": properties})


def read(path: Path, slide: SlideFacts, warn) -> Contents:
    """Reads annotations: a file that this program wrote, or another file of QuPath or ASAP.

    Args:
      path: of the file.
      slide: to which they must belong.
      warn: called with one line about everything that is left out.

    Raises:
      DataError: the file cannot be read, or holds the annotations of another slide.
    """
    marker = _marker(path)
    if marker is not None and marker.get("size") not in (None, list(slide.size)):
        found = " x ".join(map(str, marker["size"])) if isinstance(marker["size"], list) else "another size"
        raise DataError(
            f"{printable(path)}: expected annotations of {slide.name} ({slide.size[0]} x {slide.size[1]} pixels), "
            f"found those of {ascii(marker.get('slide'))[:80]} ({found[:40]}); give the annotations of this slide"
        )
    if marker is not None and marker["empty"]:
        annotations = []
    else:
        annotations = read_annotations(path, slide.origin, warn)
        check_placement(path, annotations, slide.size, slide.mpp, warn=warn)
    outlines = _outlines(annotations)
    if marker is None:
        return Contents(outlines, is_own=False)
    effort = Effort(int(_number(marker.get("clicks"))), 60 * _number(marker.get("minutes")))
    handled = marker.get("handled_suggestions")
    texts = {
        str(digest): [each for each in ids if isinstance(each, str)]
        for digest, ids in (handled.items() if isinstance(handled, dict) else ())
        if isinstance(ids, list)
    }
    return Contents(outlines, effort, texts)


def _marker(path: Path) -> dict | None:
    """Returns the member `bcss_jax` of a file that this program wrote, and whether it is `empty`; None of others."""
    if path.suffix.lower() == ".xml":
        return None
    content = read_json(path, "annotations as GeoJSON", "export them again", finite=False)
    marker = content.get("bcss_jax") if isinstance(content, dict) else None
    if not isinstance(marker, dict) or marker.get("command") != COMMAND:
        return None
    return marker | {"empty": content.get("features") == []}


def _outlines(annotations: Iterable[Annotation]) -> list[Outline]:
    outlines, ids = [], set()
    for annotation in annotations:
        area = cleaned(annotation.area)
        if area is None:
            continue
        feature = annotation.feature or {}
        identity = feature.get("id")
        if not isinstance(identity, str) or not _ID.fullmatch(identity) or identity in ids:
            identity = str(uuid.uuid4())
        ids.add(identity)
        properties = feature.get("properties")
        properties = properties if isinstance(properties, dict) else {}
        measurements, metadata = _table(properties, "measurements"), _table(properties, "metadata")
        source = metadata.get(_SOURCE)
        outlines.append(
            Outline(
                identity,
                annotation.names[0] if annotation.names else None,
                area,
                source if source in (PROMPT, BRUSH, MODEL) else FILE,
                int(_number(measurements.get(_CLICKS))),
                _number(measurements.get(_SECONDS)),
            )
        )
    return outlines


def _table(properties: dict, name: str) -> dict:
    found = properties.get(name)
    if isinstance(found, list):  # QuPath before 0.4: name and value
        found = {each.get("name"): each.get("value") for each in found if isinstance(each, dict)}
    return found if isinstance(found, dict) else {}


def _number(value: Any) -> float:
    """Returns a number of a file, 0 for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return 0.0
    return float(value) if np.isfinite(value) and 0 <= value <= 1e9 else 0.0


def _json(value: object) -> str:
    return json.dumps(value, separators=(",", ":"), allow_nan=False)
