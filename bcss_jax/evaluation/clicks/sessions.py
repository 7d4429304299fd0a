"""How well a network segments the objects of a tile after each click, and with a box."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from bcss_jax.prompting.predictor import THRESHOLD, Prediction, Predictor
from bcss_jax.prompting.simulation.click_protocol import Click, box_of, next_click

MAX_CLICKS = 20


class Agreement(NamedTuple):
    """Agreement with the objects, of pixels with ground truth.

    Attributes:
      dice: float64 (P, ...).
      iou: float64 (P, ...).
    """

    dice: np.ndarray
    iou: np.ndarray


class Clicked(NamedTuple):
    """What a network answers after as many clicks on each of P objects as were given so far.

    Attributes:
      logits: float32 (P, H, W); above `THRESHOLD` are the masks.
      clicks: int (P,), clicks on each object so far.
    """

    logits: np.ndarray
    clicks: np.ndarray


def clicked_objects(
    predictor: Predictor, masks: list[np.ndarray], known: np.ndarray, *, feed_back: bool, clicks: int = MAX_CLICKS
) -> Iterator[Clicked]:
    """Yields the answers after each of `clicks` clicks on all objects; the arguments are those of `click_sessions`."""
    count = len(masks)
    logits = np.full((count, *known.shape), -np.inf, np.float32)
    given: list[list[Click]] = [[] for _ in masks]
    done, numbers, low_res = np.zeros(count, bool), np.zeros(count, int), None
    for number in range(clicks):
        for i, mask in enumerate(masks):
            click = None if done[i] else next_click(mask, known, logits[i] > THRESHOLD, given[i])
            done[i] = click is None
            # The number of points is the same for all; what the network says of a finished object is not looked at.
            given[i].append(click or given[i][-1])
        numbers = numbers + ~done
        if not done.all():
            points = np.array([[(click.x, click.y) for click in each] for each in given])
            labels = np.array([[click.inside for click in each] for each in given], np.int32)
            fed = low_res if feed_back else None
            answer = predictor.predict(points, labels, mask=fed, multimask=number == 0, logits=True)
            chosen, low_res = _chosen(answer)
            logits = np.where(done[:, None, None], logits, chosen)
        yield Clicked(logits, numbers)


def click_sessions(
    predictor: Predictor, masks: list[np.ndarray], known: np.ndarray, *, feed_back: bool, clicks: int = MAX_CLICKS
) -> Agreement:
    """Returns the agreement after each click, (P, clicks).

    One click has three answers, of which the one with the best score counts; several have one. An object without a
    wrong pixel gets no further click.

    Args:
      predictor: has the image.
      masks: objects, each bool (H, W).
      known: bool (H, W), pixels with ground truth.
      feed_back: whether the logits of an answer go into the next prompt.
      clicks: number of clicks.
    """
    found = [
        [agreement(mask, each > THRESHOLD, known) for mask, each in zip(masks, after.logits, strict=True)]
        for after in clicked_objects(predictor, masks, known, feed_back=feed_back, clicks=clicks)
    ]
    dice, iou = np.moveaxis(np.array(found), 2, 0).swapaxes(1, 2)
    return Agreement(dice, iou)


def box_sessions(predictor: Predictor, masks: list[np.ndarray], known: np.ndarray) -> Agreement:
    """Returns the agreement (P,) after a box around each object; the arguments are those of `click_sessions`."""
    answer = predictor.predict(box=np.stack([box_of(mask) for mask in masks]), multimask=False)
    found = np.array([agreement(*pair, known) for pair in zip(masks, answer.masks[:, 0], strict=True)])
    return Agreement(found[:, 0], found[:, 1])


def agreement(mask: np.ndarray, predicted: np.ndarray, known: np.ndarray) -> tuple[float, float]:
    """Returns Dice and intersection over union of two masks, bool (H, W), on known pixels; 1 if both are empty."""
    mask, predicted = mask & known, predicted & known
    both, total = int((mask & predicted).sum()), int(mask.sum() + predicted.sum())
    return (2 * both / total, both / (total - both)) if total else (1.0, 1.0)


def _chosen(answer: Prediction) -> tuple[np.ndarray, np.ndarray]:
    """Returns the logits (P, H, W) of the masks with the best score, and those to feed back (P, h, w)."""
    best = answer.scores.argmax(1)
    rows = np.arange(len(best))
    return answer.masks[rows, best], answer.low_res[rows, best]
