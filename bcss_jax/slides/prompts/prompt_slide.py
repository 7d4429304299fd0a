"""Answers all prompts on a slide, and writes what they became."""

import functools
import logging
import math
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import shapely

from bcss_jax.common.interruption import Interruption, result_of
from bcss_jax.common.progress import ProgressLine
from bcss_jax.errors import DataError, Preempted
from bcss_jax.labels import LabelScheme
from bcss_jax.prompting.predictor import Predictor
from bcss_jax.slides.annotations.coverage import Coverage
from bcss_jax.slides.classes import SlideClass, classes_of
from bcss_jax.slides.outputs import overlay
from bcss_jax.slides.prompts.annotation_file import Outline, write_annotations
from bcss_jax.slides.prompts.answers import answers_on_view, prompt_of
from bcss_jax.slides.prompts.object_prompt import INSIDE
from bcss_jax.slides.prompts.overlaps import Masked, Separate, masked, separate_areas, without_islands
from bcss_jax.slides.prompts.prompt_file import SlidePrompts
from bcss_jax.slides.prompts.prompt_folder import OVERLAY, REGIONS, PromptFolder
from bcss_jax.slides.prompts.view import View, read_view, view_of_box
from bcss_jax.slides.prompts.view_plan import PlannedView
from bcss_jax.slides.reading.reader_pool import Block, ReaderPool

PICTURE_SIDE, PICTURE_SHARE = 1600, 0.85  # pixels of overlay.png, and the share of it that the outlines take
UNSURE = 0.5  # an expected intersection over union below this is said
log = logging.getLogger(__name__)


class Place(NamedTuple):
    """What is known of a slide.

    Attributes:
      name: for messages.
      size: width and height of level 0.
      mpp: um per pixel of level 0 along x and y.
      origin: level-0 pixel of QuPath's point (0, 0).
    """

    name: str
    size: tuple[int, int]
    mpp: tuple[float, float]
    origin: tuple[int, int]

    @property
    def pixel_um2(self) -> float:
        """Area of a level-0 pixel in um2."""
        return self.mpp[0] * self.mpp[1]


def answer_views(
    predictor: Predictor,
    pool: ReaderPool,
    prompts: SlidePrompts,
    views: Sequence[PlannedView],
    folder: PromptFolder,
    place: Place,
    min_area_um2: float,
    interruption: Interruption,
    warn: Callable[[str], None],
) -> tuple[list[Masked], bool]:
    """Returns the masks of all objects, and whether some were computed by an earlier try; saves them view by view.

    The image of a view is encoded once; while that runs, the next view is read.

    Raises:
      DataError: a view cannot be read.
      NumericalError: the output of the network is not finite.
      StorageError: the answers cannot be written.
      Preempted: asked to stop.
    """
    found: dict[int, Masked] = {}
    name, min_pixels = place.name, min_area_um2 / place.pixel_um2
    waiting = [number for number, each in enumerate(views) if folder.saved(number, len(each.objects)) is None]
    before = sum(len(each.objects) for number, each in enumerate(views) if number not in waiting)
    line = ProgressLine(f"{name}: prompts", len(prompts.objects), before)
    reading: dict[int, Future[Block]] = {}
    try:
        for number, (view, objects) in enumerate(views):
            answers = None if number in waiting else folder.saved(number, len(objects))
            if answers is None:
                if interruption.requested:
                    raise Preempted(
                        f"{name}: stopped after {len(found)} of {len(prompts.objects)} objects; the same command "
                        "resumes from there"
                    )
                for ahead in waiting[:2]:
                    if ahead not in reading:
                        reading[ahead] = _request(pool, views[ahead].view)
                block = result_of(reading.pop(waiting.pop(0)))
                _check_readable(name, block, prompts.objects[objects[0]].place, warn)
                predictor.set_image(block.pixels)
                given = [prompt_of(prompts.objects[each], prompts, view) for each in objects]
                answers = answers_on_view(predictor, view, given)
                folder.save(number, answers)
            for position, (each, answer) in enumerate(zip(objects, answers, strict=True)):
                read = functools.partial(folder.answer, number, position, len(objects))
                found[each] = masked(prompts.objects[each].label, view, answer, read, min_pixels)
            line.update(len(found))
    finally:
        for future in reading.values():
            future.cancel()
        line.close()
    return [found[number] for number in range(len(prompts.objects))], before > 0


def _check_readable(name: str, block: Block, place: str, warn: Callable[[str], None]) -> None:
    """Warns of a view that cannot be read everywhere; raises DataError if nothing of it can be read."""
    if block.unreadable is None:
        return
    if block.unreadable.all():
        raise DataError(
            f"{name}: {place}: expected a place that can be read, found that the slide is damaged there; leave the "
            "prompt out"
        )
    share = 100 * block.unreadable.mean()
    warn(f"{name}: {place}: {share:.2g} % of what the network saw cannot be read and is white; look at the outline")


def _request(pool: ReaderPool, view: View) -> "Future[Block]":
    return pool.submit(view.grid, view.left, view.top, view.width, view.height)


# Long: the results and what is said of them.
def write_results(
    found: Sequence[Masked],
    prompts: SlidePrompts,
    scheme: LabelScheme,
    place: Place,
    pool: ReaderPool,
    folder: Path,
    min_area_um2: float,
    warn: Callable[[str], None],
) -> dict[str, Any]:
    """Writes regions.geojson and overlay.png; returns what the summary says of them.

    Args:
      found: the mask of each object.
      prompts: on the slide.
      scheme: the labels.
      place: of the slide.
      pool: reads the slide.
      folder: for the files.
      min_area_um2: smaller parts are left out, except the largest one of an object.
      warn: called with one line about everything that is odd.

    Raises:
      DataError: the slide cannot be read.
      StorageError: the files cannot be written.
    """
    kinds = dict(zip(scheme.evaluated, classes_of(scheme), strict=True))
    regions = separate_areas(found, prompts.cut_out)
    outlines, objects = [], [_described(each, number, prompts, scheme) for number, each in enumerate(found)]
    for members, area in regions:
        kept = without_islands(shapely.get_parts(area).tolist(), min_area_um2 / place.pixel_um2)
        area = kept[0] if len(kept) == 1 else shapely.MultiPolygon(kept)
        for member in members:
            objects[member]["region"] = None if area.is_empty else len(outlines)
        if not area.is_empty:
            score = max(found[member].score for member in members)
            area_um2 = round(area.area * place.pixel_um2, 4)
            measurements = {"area_um2": area_um2, "score": round(score, 4)}
            outlines.append(Outline(area, kinds[found[members[0]].label], measurements))
    _say_what_is_odd(found, regions, prompts, place.name, warn)
    classes = [
        {
            "name": kind.name,
            "color": list(kind.color),
            "objects": sum(outline.kind == kind for outline in outlines),
            "area_mm2": sum(each.area.area for each in outlines if each.kind == kind) * place.pixel_um2 / 1e6,
        }
        for kind in kinds.values()
    ]
    about = {"parts_smaller_than_um2_left_out": min_area_um2, "classes": list(scheme.evaluated_names)}
    write_annotations(folder / REGIONS, outlines, place.origin, about)
    _write_picture(folder / OVERLAY, outlines, list(kinds.values()), prompts, place, pool)
    return {"objects": objects, "regions": len(outlines), "classes": classes}


def _described(each: Masked, number: int, prompts: SlidePrompts, scheme: LabelScheme) -> dict[str, Any]:
    target = prompts.objects[number]
    prompt = prompt_of(target, prompts, each.view)
    labels = np.zeros(0) if prompt.labels is None else np.asarray(prompt.labels)
    return {
        "prompt": target.place,
        "class": scheme.class_names[target.label],
        "points_inside": int((labels == INSIDE).sum()),
        "points_outside": int((labels != INSIDE).sum()),
        "box": prompt.box is not None,
        "mask": prompt.area is not None,
        "um_per_pixel": each.view.grid.mpp,
        "score": round(each.score, 4),
        "cut_by_view": each.cut,
    }


def _say_what_is_odd(
    found: Sequence[Masked],
    regions: Sequence[Separate],
    prompts: SlidePrompts,
    name: str,
    warn: Callable[[str], None],
) -> None:
    def said(numbers: Sequence[int], what: str) -> None:
        if numbers:
            places = ", ".join(prompts.objects[number].place for number in numbers[:3])
            more = f" and {len(numbers) - 3} more" if len(numbers) > 3 else ""
            warn(f"{name}: {places}{more}: {what}")

    nothing = [number for number, each in enumerate(found) if each.area.is_empty]
    taken = [each.members[0] for each in regions if each.area.is_empty and each.members[0] not in nothing]
    said(nothing, "nothing was found there; draw a box, or more points")
    said(taken, "other objects, or areas that are ignored, cover all of it")
    said(
        [number for number, each in enumerate(found) if each.cut],
        "cut off at the edge of what the network saw; draw a box around it, or give a coarser --target_mpp",
    )
    missed = [number for number, each in enumerate(found) if number not in nothing and _misses(each, number, prompts)]
    said(missed, "the outline has none of the points that were said to be inside; look at it")
    unsure = [n for n, each in enumerate(found) if each.score < UNSURE and n not in nothing]
    said(sorted(unsure, key=lambda n: found[n].score), f"the network expects an overlap below {UNSURE:g} there")


def _misses(each: Masked, number: int, prompts: SlidePrompts) -> bool:
    """Returns whether an object has points inside, and none of them is in its outline."""
    points = prompts.objects[number].prompt.points
    return points is not None and not shapely.intersects_xy(each.area.buffer(1), *points.T).any()


def _write_picture(
    path: Path,
    outlines: Sequence[Outline],
    kinds: Sequence[SlideClass],
    prompts: SlidePrompts,
    place: Place,
    pool: ReaderPool,
) -> None:
    """Writes the part of the slide with prompts and outlines, tinted with the classes."""
    extents = np.array([each.extent for each in prompts.objects])
    boxes = np.concatenate([extents, *(np.reshape(each.area.bounds, (1, 4)) for each in outlines)])
    box = (*boxes[:, :2].min(0).tolist(), *boxes[:, 2:].max(0).tolist())
    view = view_of_box(place.size, place.mpp, box, PICTURE_SIDE, PICTURE_SHARE)
    labels = np.zeros((view.height, view.width), np.uint8)
    for kind in kinds:
        areas = [each.area for each in outlines if each.kind == kind]
        if areas:
            block = (*view.box[:2], view.width, view.height, view.grid.scale)
            labels[Coverage(areas).block(*block)] = kind.value
    areas_mm2 = {
        kind.value: sum(each.area.area for each in outlines if each.kind == kind) * place.pixel_um2 / 1e6
        for kind in kinds
    }
    x0, y0, x1, y1 = (math.floor(each) for each in view.box)
    overlay.overlay(
        read_view(pool, view).pixels,
        labels,
        kinds,
        path,
        title=f"{place.name}, x {x0} to {x1}, y {y0} to {y1}: {len(prompts.objects)} objects",
        mm_per_pixel=view.grid.mpp / 1000,
        areas_mm2=areas_mm2,
    )


def resolutions_in_words(views: Sequence[PlannedView], side: int) -> str:
    """Returns on how many views, of which um per pixel, the objects are answered."""
    found = sorted({each.view.grid.mpp for each in views})
    span = f"{found[0]:.3g}" if len(found) == 1 else f"{found[0]:.3g} to {found[-1]:.3g}"
    objects = sum(len(each.objects) for each in views)
    return f"{objects} objects on {len(views)} views of {side} pixels at {span} um per pixel"
