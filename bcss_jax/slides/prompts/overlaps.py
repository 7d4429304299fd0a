"""Areas of objects that do not overlap: where masks do, the larger logit decides.

Objects of one class that share more than half of the smaller one are the same object, and become one.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import cv2
import numpy as np
import shapely
from shapely.geometry.base import BaseGeometry

from bcss_jax.common.interruption import safe_point
from bcss_jax.slides.prompts.answers import Answer
from bcss_jax.slides.prompts.outlines import smooth_outlines
from bcss_jax.slides.prompts.view import View

SAME = 0.5  # share of the smaller of two objects of a class from which on they are one
PRECISION = 0.01  # pixels of level 0, as coordinates are written
_FAR = -1e9  # logit outside of the part that is kept
_FINE = 0.05  # pixels of level 0, width of what is left out as no area


class Masked(NamedTuple):
    """An object with its outline on the slide. Its logits are not kept in memory: most objects overlap no other one.

    Attributes:
      label: of its class.
      view: on which it was answered.
      area: Polygon, MultiPolygon, or empty, in pixels of level 0.
      score: expected intersection over union.
      cut: whether the mask reaches an edge of the view that is no edge of the slide.
      read: () -> the answer with its logits.
    """

    label: int
    view: View
    area: BaseGeometry
    score: float
    cut: bool
    read: Callable[[], Answer]


def masked(label: int, view: View, answer: Answer, read: Callable[[], Answer], min_pixels: float = 0) -> Masked:
    """Returns an object with the outline of its answer.

    Args:
      label: of its class.
      view: on which it was answered.
      answer: the mask.
      read: () -> the same answer.
      min_pixels: of level 0; smaller holes are filled, and smaller parts are left out except the largest one.
    """
    area = _EMPTY
    if answer.logits.size:
        parts = [_filled(part, min_pixels) for part in smooth_outlines(answer.logits, _part(answer, view))]
        area = shapely.union_all(without_islands(parts, min_pixels))
    return Masked(label, view, area, answer.score, answer.cut, read)


def without_islands(parts: Sequence[shapely.Polygon], min_pixels: float) -> list[shapely.Polygon]:
    """Returns the polygons without those that are smaller, but always the largest one, which comes first."""
    ordered = sorted(parts, key=lambda part: -part.area)
    return ordered[:1] + [part for part in ordered[1:] if part.area >= min_pixels]


def _filled(part: shapely.Polygon, min_pixels: float) -> shapely.Polygon:
    """Returns a polygon without its smaller holes."""
    holes = [ring for ring in part.interiors if shapely.Polygon(ring).area >= min_pixels]
    return part if len(holes) == len(part.interiors) else shapely.Polygon(part.exterior, holes)


class Separate(NamedTuple):
    """An area that no other one overlaps.

    Attributes:
      members: positions of the objects that it was made of.
      area: Polygon, MultiPolygon, or empty if others have taken all of it.
    """

    members: list[int]
    area: BaseGeometry


def separate_areas(objects: Sequence[Masked], cut_out: Sequence[BaseGeometry] = ()) -> list[Separate]:
    """Returns the areas of objects, in the order of their first members; where logits are equal, the first one counts.

    Args:
      objects: with their masks.
      cut_out: areas that belong to no object.
    """
    group = _same_objects(objects, *_overlapping([each.area for each in objects]))
    numbers, parts = _together(objects, group)
    whole = [each.area for each in parts]
    lost: list[list[BaseGeometry]] = [[] for _ in parts]
    for i, j in zip(*(each.tolist() for each in _overlapping(whole)), strict=True):
        if numbers[i] == numbers[j]:
            continue
        safe_point()
        shared = whole[i].intersection(whole[j])
        if shared.area > 0:
            of_second = _of_second((parts[i].view, parts[i].read()), (parts[j].view, parts[j].read()), shared)
            lost[i].append(of_second)
            lost[j].append(shared.difference(of_second))
    # One difference for each part: many small ones would cut an outline that gets longer each time.
    areas = [
        _polygons(area.difference(shapely.union_all(of))) if of else area for area, of in zip(whole, lost, strict=True)
    ]
    taken: list[BaseGeometry] = []
    found = []
    for number in dict.fromkeys(group.tolist()):
        of_number = [area for each, area in zip(numbers, areas, strict=True) if each == number]
        taken.append(_exact(shapely.union_all(of_number)))
        found.append(np.flatnonzero(group == number).tolist())
    tree = shapely.STRtree(taken)
    blocked = shapely.union_all(list(cut_out), grid_size=PRECISION) if cut_out else _EMPTY
    for number, area in enumerate(taken):
        near = [taken[other] for other in tree.query(area, predicate="intersects").tolist() if other < number]
        for other in (shapely.union_all(near, grid_size=PRECISION), blocked):
            if not area.is_empty and area.intersects(other):
                area = shapely.difference(area, other, grid_size=PRECISION)
        taken[number] = _polygons(area)
    return [Separate(members, area) for members, area in zip(found, taken, strict=True)]


def _overlapping(areas: Sequence[BaseGeometry]) -> tuple[np.ndarray, np.ndarray]:
    """Returns the pairs of areas that overlap, the smaller position first."""
    pairs = shapely.STRtree(areas).query(areas, predicate="intersects")
    first, second = pairs[:, pairs[0] < pairs[1]]
    order = np.lexsort((second, first))
    return first[order], second[order]


def _same_objects(objects: Sequence[Masked], first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Returns the number of the object that each one belongs to; areas that are known to be one are not compared."""
    group = np.arange(len(objects))
    for i, j in zip(first.tolist(), second.tolist(), strict=True):
        one, other = objects[i], objects[j]
        if one.label != other.label or group[i] == group[j]:
            continue
        safe_point()
        if one.area.intersection(other.area).area > SAME * min(one.area.area, other.area.area):
            group[group == group[j]] = group[i]
    return group


def _together(objects: Sequence[Masked], group: np.ndarray) -> tuple[list[int], list[Masked]]:
    """Returns the objects with those made one that are the same and were seen on the same view, with their groups.

    Where the larger logit decides, that of several masks of one object is their largest: fewer pairs are compared.
    """
    members: dict[tuple[int, View], list[Masked]] = {}
    for number, each in zip(group.tolist(), objects, strict=True):
        members.setdefault((number, each.view), []).append(each)
    return [number for number, _ in members], [_one_of(each) for each in members.values()]


def _one_of(members: list[Masked]) -> Masked:
    if len(members) == 1:
        return members[0]
    area = shapely.union_all([each.area for each in members])
    return members[0]._replace(area=area, read=lambda: _largest([each.read() for each in members]))


def _largest(answers: Sequence[Answer]) -> Answer:
    """Returns the largest logits of answers on one view."""
    left, top = min(each.left for each in answers), min(each.top for each in answers)
    width = max(each.left + each.logits.shape[1] for each in answers) - left
    height = max(each.top + each.logits.shape[0] for each in answers) - top
    logits = np.full((height, width), _FAR, np.float32)
    for each in answers:
        rows, columns = each.logits.shape
        part = logits[each.top - top :, each.left - left :][:rows, :columns]
        np.maximum(part, each.logits, out=part)
    return answers[0]._replace(logits=logits, left=left, top=top)


def _of_second(one: tuple[View, Answer], other: tuple[View, Answer], shared: BaseGeometry) -> BaseGeometry:
    """Returns where the second of two answers has the larger logit, of the area that they share."""
    finer = min(one[0], other[0], key=lambda view: view.grid.mpp)
    (left, top), (right, bottom) = finer.from_level0(np.reshape(shared.bounds, (2, 2)))
    left, top = int(np.floor(left)) - 1, int(np.floor(top)) - 1
    place = finer.part(left, top, int(np.ceil(right)) + 1 - left, int(np.ceil(bottom)) + 1 - top)
    x = place.to_level0(np.arange(place.width)[:, None] + (0.5, 0.5))[:, 0]
    y = place.to_level0(np.arange(place.height)[:, None] + (0.5, 0.5))[:, 1]
    difference = _logits_at(*other, x, y) - _logits_at(*one, x, y)
    # Parts of a mask touch in points at most.
    return shapely.MultiPolygon(smooth_outlines(difference, place)).intersection(shared)


def _part(answer: Answer, view: View) -> View:
    """Returns the part of a view whose logits an answer has."""
    height, width = answer.logits.shape
    return view.part(answer.left, answer.top, width, height)


def _logits_at(view: View, answer: Answer, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Returns the logits at columns x [w] and rows y [h] in pixels of level 0: float32 [h, w]."""
    part = _part(answer, view)
    columns = _to_edge(part.from_level0(np.stack([x, x], -1))[:, 0] - 0.5, part.width)
    rows = _to_edge(part.from_level0(np.stack([y, y], -1))[:, 1] - 0.5, part.height)
    at = np.meshgrid(columns.astype(np.float32), rows.astype(np.float32))
    border = {"borderMode": cv2.BORDER_CONSTANT, "borderValue": _FAR}
    return cv2.remap(answer.logits, *at, cv2.INTER_LINEAR, **border)


def _to_edge(at: np.ndarray, size: int) -> np.ndarray:
    """Returns positions of pixel centers, those within half a pixel of the edges moved to the outermost centers."""
    near = (at >= -0.5) & (at <= size - 0.5)
    return np.where(near, at.clip(0, size - 1), at)


def _exact(area: BaseGeometry) -> BaseGeometry:
    return _polygons(shapely.set_precision(area, PRECISION))


def _polygons(area: BaseGeometry) -> BaseGeometry:
    """Returns the polygons of a geometry without slivers that have no width."""
    parts = [each for each in shapely.get_parts(area) if isinstance(each, shapely.Polygon)]
    wide = [each for each in parts if each.area > _FINE * each.length / 2]
    return shapely.MultiPolygon(wide) if len(wide) != 1 else wide[0]


_EMPTY = shapely.MultiPolygon()
