"""Reads annotations from the XML files of ASAP, such as those of TIGER and CAMELYON.

The form is that of ASAP's XmlRepository: `ASAP_Annotations` holds `Annotations`, whose `Coordinate`s are ordered by
`Order`, and `AnnotationGroups`. An annotation's class is the group that it is part of; groups may be part of groups.
Coordinates are pixels of level 0, whether or not the slide has bounds. Like ASAP's own conversion to masks, points of a
spline are joined by straight lines, and an outline covers what it runs around.
"""

import collections
import logging
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path
from xml.parsers import expat

import numpy as np
import shapely

from bcss_jax.common.regular_file import read_regular_file
from bcss_jax.errors import DataError, first_line, printable
from bcss_jax.slides.annotations.annotation import MAX_COORDINATE, Annotation, checked_ring, covered

log = logging.getLogger(__name__)

ROOT = "ASAP_Annotations"
_WITH_AREA = ("polygon", "spline", "rectangle")
_WITHOUT_AREA = ("dot", "pointset", "measurement", "none")
_NO_GROUP = ("", "None")
_NAMED_CHANGE = 0.01  # share of the area by which an outline's area may be in doubt
_MAX_BYTES = 1 << 29


def read_annotations(path: Path, warn: Callable[[str], None] = log.warning) -> list[Annotation]:
    """Returns the annotations of an ASAP file; `warn` is called with the number of those that have no area.

    Raises:
      DataError: the file is not ASAP's, has no annotation with an area, names a group that it does not define, or an
        outline has too few points or crosses itself so that its area is in doubt by more than 1 %.
    """
    root = _root(path)
    parents = {group.get("Name", ""): group.get("PartOfGroup", "None") for group in root.iter("Group")}
    annotations, without_area = [], collections.Counter()
    for number, element in enumerate(root.iter("Annotation"), 1):
        kind = element.get("Type", "")
        names = _names(path, number, element.get("PartOfGroup", "None"), parents)
        place = f"annotation {number}" + (f" ({ascii(names[0])[1:-1][:60]})" if names else "")
        if kind.casefold() in _WITHOUT_AREA:
            without_area[kind] += 1
        elif kind.casefold() in _WITH_AREA:
            annotations.append(Annotation(names, _area(path, place, element), place))
        else:
            raise DataError(
                f"{printable(path)}: {place}: expected the type Polygon, Spline, Rectangle, Dot, PointSet or "
                f"Measurement, found {ascii(kind)[:60]}; correct or remove it"
            )
    listed = ", ".join(f"{count} {kind}" for kind, count in sorted(without_area.items()))
    if not annotations:
        also = f" {listed}" if listed else " none"
        raise DataError(f"{printable(path)}: expected annotations with an area, found{also}; annotate the slide")
    if listed:
        warn(f"{printable(path)}: {listed} are left out, because they have no area")
    return annotations


def _root(path: Path) -> ElementTree.Element:
    expected, remedy = f"XML of ASAP with the root {ROOT}", "export the annotations again from ASAP"
    content = read_regular_file(path, expected, remedy, max_bytes=_MAX_BYTES)
    try:
        if b"<!DOCTYPE" in content or b"<!ENTITY" in content:  # entities could expand without limit
            raise ValueError("a document type or entities")
        root = ElementTree.fromstring(content)
        if root.tag != ROOT:
            raise ValueError(f"the root {ascii(root.tag)[:60]}")
    except (ElementTree.ParseError, expat.ExpatError, ValueError, LookupError, RecursionError) as error:
        raise DataError(f"{printable(path)}: expected {expected}, found: {first_line(error)}; {remedy}") from error
    return root


def _names(path: Path, number: int, group: str, parents: dict[str, str]) -> tuple[str, ...]:
    """Returns the group of an annotation and the groups that it is part of. Groups need not be listed."""
    names: list[str] = []
    while group not in _NO_GROUP:
        if group in names:
            raise DataError(
                f"{printable(path)}: annotation {number}: expected groups of groups that end, found that "
                f"{ascii(group)[:60]} is part of itself; correct the groups"
            )
        names.append(group)
        group = parents.get(group, "None")
    return tuple(names)


def _area(path: Path, place: str, element: ElementTree.Element):
    try:
        points = sorted(_point(found) for found in element.iter("Coordinate"))
        orders = [order for order, _, _ in points]
        if orders != list(range(len(orders))):
            raise ValueError("coordinates whose Order is not 0, 1, 2, ...")
        area, stated = covered(checked_ring([(x, y) for _, x, y in points], (0, 0)), [])
    except (ValueError, shapely.errors.GEOSException) as error:
        raise DataError(
            f"{printable(path)}: {place}: expected an outline, found {first_line(error)}; draw it again"
        ) from error
    if area.area == 0 or abs(area.area - stated) > _NAMED_CHANGE * area.area:
        x, y = np.array([(x, y) for _, x, y in points]).min(0)
        raise DataError(
            f"{printable(path)}: {place} at ({x:.0f}, {y:.0f}): expected an outline that does not cross itself, found "
            f"that it covers {area.area:.0f} pixels where its area is {stated:.0f}; draw it again, or remove it"
        )
    return area


def _point(element: ElementTree.Element) -> tuple[int, float, float]:
    """Returns the order, x and y of a coordinate; raises a ValueError if they are no numbers of a slide."""
    texts = [element.get(name, "") for name in ("Order", "X", "Y")]
    try:
        # ASAP writes a comma where the language of the computer has one.
        order, (x, y) = int(texts[0]), (float(text.replace(",", ".")) for text in texts[1:])
    except ValueError:
        raise ValueError(f"the coordinate {ascii(texts)[:90]}") from None
    if not max(abs(x), abs(y)) <= MAX_COORDINATE:
        raise ValueError(f"the coordinate {ascii(texts)[:90]}")
    return order, x, y
