"""Answers the prompts of objects on a view of a slide."""

import collections
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from bcss_jax.errors import NumericalError
from bcss_jax.prompting.predictor import Predictor
from bcss_jax.slides.prompts.object_prompt import OUTSIDE, ObjectPrompt, arguments_in_view
from bcss_jax.slides.prompts.prompt_file import SlideObject, SlidePrompts
from bcss_jax.slides.prompts.view import View

TOGETHER = 8  # prompts answered at once; each takes the memory of three masks of the view
MOST_OUTSIDE = 16  # points outside of an object; the nearest of more count
_MARGIN = 2  # pixels around a mask whose logits are kept


class Answer(NamedTuple):
    """The mask of an object.

    Attributes:
      score: expected intersection over union with what was meant.
      logits: float32 [h, w] of a part of the view that holds all that is above 0; [0, 0] if nothing is.
      left: first column of this part in the view.
      top: first row of this part in the view.
      cut: whether the mask reaches an edge of the view that is no edge of the slide.
    """

    score: float
    logits: np.ndarray
    left: int
    top: int
    cut: bool


def prompt_of(target: SlideObject, prompts: SlidePrompts, view: View) -> ObjectPrompt:
    """Returns the prompt of an object with the points outside of it: in its box, or in the view if it has none."""
    x0, y0, x1, y1 = view.box if target.prompt.box is None else target.prompt.box
    others = prompts.points[prompts.labels != target.label]
    others = others[((others >= (x0, y0)) & (others <= (x1, y1))).all(1)]
    if not len(others):
        return target.prompt
    center = np.reshape(target.extent, (2, 2)).mean(0)
    order = np.argsort(np.abs(others - center).max(1), kind="stable")
    outside = others[order[:MOST_OUTSIDE]]
    points, labels = target.prompt.points, target.prompt.labels
    if points is not None and labels is not None:
        outside, inside = np.concatenate([points, outside]), labels
    else:
        inside = np.zeros(0, np.int64)
    labels = np.concatenate([inside, np.full(len(outside) - len(inside), OUTSIDE)])
    return target.prompt._replace(points=outside, labels=labels)


def answers_on_view(predictor: Predictor, view: View, prompts: Sequence[ObjectPrompt]) -> list[Answer]:
    """Returns the answers to prompts on the view whose image the predictor has, in the order of the prompts.

    A single point may mean several things: the best of three masks is taken. Other prompts have one mask.

    Raises:
      NumericalError: the network gives values that are not finite.
    """
    forms: dict[tuple, list[int]] = collections.defaultdict(list)
    arguments = [arguments_in_view(prompt, view, predictor.model) for prompt in prompts]
    for number, each in enumerate(arguments):
        forms[tuple((name, each[name].shape) for name in sorted(each))].append(number)
    found: dict[int, Answer] = {}
    for numbers in forms.values():
        for start in range(0, len(numbers), TOGETHER):
            chosen = numbers[start : start + TOGETHER]
            first = arguments[chosen[0]]
            stacked = {name: np.stack([arguments[number][name] for number in chosen]) for name in first}
            single = set(first) == {"points", "labels"} and len(first["points"]) == 1
            prediction = predictor.predict(**stacked, multimask=single, logits=True)
            for number, masks, scores in zip(chosen, prediction.masks, prediction.scores, strict=True):
                best = int(np.argmax(scores))
                if not (np.isfinite(masks[best]).all() and np.isfinite(scores[best])):
                    raise NumericalError("the output of the network is not finite; are its weights damaged?")
                found[number] = _answer(float(scores[best]), masks[best], view)
    return [found[number] for number in range(len(prompts))]


def _answer(score: float, logits: np.ndarray, view: View) -> Answer:
    inside = logits > 0
    rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
    if not len(rows):
        return Answer(score, np.zeros((0, 0), np.float32), 0, 0, False)
    top, left = max(0, rows[0] - _MARGIN), max(0, columns[0] - _MARGIN)
    part = logits[top : rows[-1] + 1 + _MARGIN, left : columns[-1] + 1 + _MARGIN]
    cut = (
        (rows[0] == 0 and view.top > 0)
        or (columns[0] == 0 and view.left > 0)
        or (rows[-1] == view.height - 1 and view.top + view.height < view.grid.height)
        or (columns[-1] == view.width - 1 and view.left + view.width < view.grid.width)
    )
    # As they are saved, so that a resumed command computes with the same numbers.
    return Answer(score, part.astype(np.float16).astype(np.float32), int(left), int(top), bool(cut))
