"""Answers prompts on a slide with outlines to choose from."""

import threading
from collections import OrderedDict
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import shapely
from shapely.geometry.base import BaseGeometry

from bcss_jax.annotator.drawing.geojson_file import SlideFacts
from bcss_jax.annotator.drawing.outline import cleaned
from bcss_jax.annotator.proposals.embeddings import Embeddings
from bcss_jax.annotator.proposals.segmenter import Embedding, Segmenter
from bcss_jax.annotator.proposals.view_grid import Key, ViewGrid
from bcss_jax.errors import DataError
from bcss_jax.slides.prompts.object_prompt import INSIDE, OUTSIDE, ObjectPrompt
from bcss_jax.slides.prompts.outlines import DETAIL, place_of, smooth_outlines, view_of_place
from bcss_jax.slides.prompts.view import Box, View, read_view
from bcss_jax.slides.reading.reader_pool import ReaderPool

MOST_AHEAD = 9  # views that are computed for what is looked at
MOST_ANSWERS = 100  # that are kept for the next click and for being accepted
CHOICES = 3
_SPECK = 0.01  # share of the largest part of a mask; smaller parts and holes are left out
_TOLERANCE = 0.7  # pixels by which outlines are straightened, which run along pixels


class Proposal(NamedTuple):
    """An outline that a prompt may mean, and its expected intersection over union with it."""

    area: BaseGeometry
    score: float


class Answer(NamedTuple):
    """What a prompt gave: its number, and outlines, the best first; none if nothing was found."""

    number: int
    proposals: tuple[Proposal, ...]


class _Kept(NamedTuple):
    key: Key
    answer: Answer
    logits: tuple[np.ndarray, ...]


class Engine:
    """The prompts of one slide. Threads may share it."""

    def __init__(self, pool: ReaderPool, slide: SlideFacts, segmenter: Segmenter, root: Path | None, slide_digest: str):
        """Begins to compute when it is asked for something.

        Args:
          pool: reads the slide.
          slide: the slide.
          segmenter: the network.
          root: folder of the embeddings of all slides; None: they are not kept between sessions.
          slide_digest: what the slide is recognized by.
        """
        self._pool, self._segmenter = pool, segmenter
        self._views = ViewGrid(slide.size, slide.mpp, segmenter.side)
        # Views are counted in pixels of the network, and are square on the slide: both decide what a view shows.
        seen = f"{segmenter.identity[:16]}_{segmenter.side}_{slide.mpp[0] / slide.mpp[1]:.9g}"
        folder = None if root is None else root / slide_digest / seen
        self._predicts = threading.Lock()
        self._kept: OrderedDict[int, _Kept] = OrderedDict()
        self._numbers = 0
        self._is_prepared = False
        self._embeddings = Embeddings(self._computed, folder, root, self._prepare)

    def close(self) -> None:
        """Ends the computing."""
        self._embeddings.close()

    def look(self, box: Box, um_per_pixel: float) -> tuple[int, int]:
        """Begins to compute what a prompt on a part of the slide will need.

        Args:
          box: the part, in pixels of level 0.
          um_per_pixel: of the screen.

        Returns:
          How many of its views are ready, and how many there are.
        """
        keys = self._views.keys_in(box, self._views.level(um_per_pixel), MOST_AHEAD)
        self._embeddings.look(keys)
        return sum(map(self._embeddings.is_ready, keys)), len(keys)

    def prompt(
        self, prompt: ObjectPrompt, um_per_pixel: float, previous: tuple[int, int] | None, seconds: float
    ) -> Answer | None:
        """Returns outlines of what a prompt means.

        Args:
          prompt: points, box or both, in pixels of level 0, on the slide.
          um_per_pixel: of the screen.
          previous: number of the answer that the prompt corrects, and which of its outlines; used if the view is the
            same.
          seconds: to wait for the view to be computed.

        Returns:
          The answer, or None if the view is not computed yet.

        Raises:
          DataError: the slide cannot be read there.
        """
        key = self._views.key_for(_reach(prompt), self._views.level(um_per_pixel))
        embedding = self._embeddings.get(key, seconds)
        if embedding is None:
            return None
        with self._predicts:
            return self._answered(key, embedding, prompt, previous)

    def proposal(self, number: int, choice: int) -> Proposal | None:
        """Returns an outline of an answer, or None if there is none (any more)."""
        kept = self._kept.get(number)
        return kept.answer.proposals[choice] if kept and 0 <= choice < len(kept.answer.proposals) else None

    def _answered(
        self, key: Key, embedding: Embedding, prompt: ObjectPrompt, previous: tuple[int, int] | None
    ) -> Answer:
        view = self._views.view(key)
        mask = self._logits(key, previous)
        is_single = prompt.box is None and prompt.points is not None and len(prompt.points) == 1
        several, one = self._segmenter.predict(embedding, view, prompt, mask)
        found: list[tuple[Proposal, np.ndarray]] = []
        for prediction in (several,) if is_single else (one, several):
            for place in np.argsort(-prediction.scores, kind="stable"):
                area = _area(prediction.masks[place], view, prompt)
                if area is not None and len(found) < CHOICES and not _is_among(area, found):
                    score = float(np.clip(prediction.scores[place], 0, 1))
                    found.append((Proposal(area, score), prediction.low_res[place]))
        self._numbers += 1
        answer = Answer(self._numbers, tuple(each for each, _ in found))
        self._kept[answer.number] = _Kept(key, answer, tuple(logits for _, logits in found))
        while len(self._kept) > MOST_ANSWERS:
            self._kept.popitem(last=False)
        return answer

    def _logits(self, key: Key, previous: tuple[int, int] | None) -> np.ndarray | None:
        kept = self._kept.get(previous[0]) if previous else None
        if kept is None or previous is None or kept.key != key or not 0 <= previous[1] < len(kept.logits):
            return None
        return kept.logits[previous[1]]

    def _computed(self, key: Key) -> Embedding:
        block = read_view(self._pool, self._views.view(key))
        if block.unreadable is not None and block.unreadable.all():
            raise DataError("the slide is damaged here and cannot be read; annotate another place")
        return self._segmenter.encode(block.pixels)

    def _prepare(self, key: Key, embedding: Embedding) -> None:
        if not self._is_prepared:
            with self._predicts:
                self._segmenter.prepare(embedding, self._views.view(key))
            self._is_prepared = True


def _reach(prompt: ObjectPrompt) -> Box:
    """Returns the box around all of a prompt."""
    points = [] if prompt.points is None else [np.asarray(prompt.points, np.float64)]
    if prompt.box is not None:
        points.append(np.reshape(prompt.box, (2, 2)))
    everything = np.concatenate(points)
    (x0, y0), (x1, y1) = everything.min(0).tolist(), everything.max(0).tolist()
    return x0, y0, x1, y1


def _area(logits: np.ndarray, view: View, prompt: ObjectPrompt) -> BaseGeometry | None:
    """Returns the outline of a mask on the slide without specks; None if nothing is left."""
    logits = _without_specks(logits, view, prompt)
    parts = smooth_outlines(logits, view)
    if not parts:
        return None
    rows, columns = (np.count_nonzero((logits > 0).any(axis)) for axis in (1, 0))
    pixel = min(view.grid.scale) * min(1.0, max(rows, columns) / DETAIL)  # of `smooth_outlines`
    return cleaned(shapely.union_all(shapely.simplify(parts, _TOLERANCE * pixel)))


def _without_specks(logits: np.ndarray, view: View, prompt: ObjectPrompt) -> np.ndarray:
    """Returns logits without parts and holes that are much smaller than the largest part.

    Parts that a point inside was set on stay, however small, and so do holes with a point outside.
    """
    place = place_of(logits)  # with the pixels around, which connect what lies outside
    if place is None:
        return logits
    part, shown = logits[place], view_of_place(view, place)
    mask = part > 0
    parts, areas = _components(mask, 4)
    holes, hole_areas = _components(~mask, 8)
    if len(areas) == 2 and len(hole_areas) == 2:
        return logits
    least = _SPECK * areas[1:].max()
    small, filled = areas < least, hole_areas < least
    small[parts[_pixels(shown, prompt, INSIDE)]] = small[0] = False
    filled[holes[_pixels(shown, prompt, OUTSIDE)]] = filled[0] = False
    down, across = place
    for is_whole, edge in (
        (down.start == 0, holes[0]),
        (down.stop == logits.shape[0], holes[-1]),
        (across.start == 0, holes[:, 0]),
        (across.stop == logits.shape[1], holes[:, -1]),
    ):
        if not is_whole:
            filled[edge] = False  # goes on outside
    magnitude = np.maximum(np.abs(part), 1e-3)
    cleared = logits.copy()
    cleared[place] = np.where(small[parts], -magnitude, np.where(filled[holes], magnitude, part))
    return cleared


def _components(mask: np.ndarray, connectivity: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the number of each pixel's component, 0 outside of the mask, and the area of each number."""
    _, components, statistics, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=connectivity)
    return components, statistics[:, cv2.CC_STAT_AREA]


def _pixels(view: View, prompt: ObjectPrompt, label: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns rows and columns of the pixels of a view under the points of a prompt that have a label."""
    if prompt.points is None or prompt.labels is None:
        return np.zeros(0, int), np.zeros(0, int)
    size = np.array([view.width, view.height])
    points = view.from_level0(prompt.points[prompt.labels == label])
    columns, rows = np.minimum(points[((points >= 0) & (points <= size)).all(1)].astype(int), size - 1).T
    return rows, columns


def _is_among(area: BaseGeometry, found: list[tuple[Proposal, np.ndarray]]) -> bool:
    return any(shapely.equals(area, each.area) for each, _ in found)
