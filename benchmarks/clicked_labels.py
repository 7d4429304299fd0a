"""Labels of tiles as clicks on their regions give them, simulated from full masks.

Each connected region of a class gets the clicks of `bcss_jax.evaluate --clicks`. The masks become the labels of the
tile: where they overlap, the larger logit decides; what no mask covers is ignored. Regions of fewer than 64 pixels get
no click: a user would not see them. Masks may reach into pixels without truth; that is kept, as nobody would notice.
"""

import dataclasses
import sys
from pathlib import Path

import numpy as np

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parent)]

from label_efficiency import CLASSES, IGNORED, Tile  # noqa: E402

from bcss_jax import metrics  # noqa: E402
from bcss_jax.evaluation.clicks.sessions import clicked_objects  # noqa: E402
from bcss_jax.evaluation.statistics.bootstrap import Interval, interval  # noqa: E402
from bcss_jax.prompting.predictor import THRESHOLD, Predictor  # noqa: E402
from bcss_jax.prompting.simulation.click_protocol import regions_of  # noqa: E402


@dataclasses.dataclass(frozen=True)
class ClickedLabels:
    """The labels of N tiles after a number of clicks on each region.

    Attributes:
      labels: uint8 [N, H, W].
      clicks: int [N], clicks on each tile. Regions that are right before the number is reached get no more.
    """

    labels: np.ndarray
    clicks: np.ndarray


def clicked_labels(tiles: list[Tile], predictor: Predictor, amounts: list[int]) -> dict[int, ClickedLabels]:
    """Returns the labels after each number of clicks a region."""
    found = {
        amount: ClickedLabels(np.stack([tile.labels for tile in tiles]) * 0, np.zeros(len(tiles), int))
        for amount in amounts
    }
    for number, tile in enumerate(tiles):
        regions = regions_of(tile.labels, CLASSES)
        if not regions:
            continue
        predictor.set_image(tile.image)
        masks, of_regions = [region.mask for region in regions], np.array([region.label for region in regions])
        session = clicked_objects(predictor, masks, tile.labels != IGNORED, feed_back=True, clicks=max(amounts))
        for after, clicked in enumerate(session, 1):
            if after in found:
                found[after].labels[number] = labels_of(clicked.logits, of_regions)
                found[after].clicks[number] = clicked.clicks.sum()
    return found


def labels_of(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Returns the label with the largest logit at each pixel, uint8 [H, W]; the first of equal ones, 0 without a mask.

    Args:
      logits: float [P, H, W] of the masks.
      labels: int [P], label of each mask.
    """
    return np.where(logits.max(0) > THRESHOLD, labels[logits.argmax(0)], IGNORED).astype(np.uint8)


def regions_and_left_out(tiles: list[Tile]) -> tuple[int, float]:
    """Returns the number of regions that get clicks, and the share of the pixels with truth in regions that do not."""
    regions = [regions_of(tile.labels, CLASSES) for tile in tiles]
    clicked = sum(int(region.mask.sum()) for of_tile in regions for region in of_tile)
    return sum(map(len, regions)), 1 - clicked / sum(int((tile.labels != IGNORED).sum()) for tile in tiles)


@dataclasses.dataclass(frozen=True)
class LabelQuality:
    """How labels agree with full masks.

    Attributes:
      dice: mean over the classes, of all tiles together. Pixels without a label are missed.
      labeled: share of the pixels with truth that have a label.
      right: share of those whose label is right.
      beyond: share of the pixels without truth that have a label.
    """

    dice: Interval
    labeled: float
    right: float
    beyond: float


def quality(labels: np.ndarray, tiles: list[Tile]) -> LabelQuality:
    """Returns how labels, uint8 [N, H, W], agree with the full masks of the tiles."""
    truth = np.stack([tile.labels for tile in tiles])
    known, marked = truth != IGNORED, labels != IGNORED
    counts = np.asarray(metrics.confusion(labels, truth, 3, IGNORED))
    of_patients = [tile.patient for tile in tiles]
    return LabelQuality(
        interval(counts, of_patients, lambda totals: metrics.dice(totals, CLASSES).mean(1)),
        float(marked[known].mean()),
        float((labels == truth)[known & marked].mean()) if (known & marked).any() else 0.0,
        float(marked[~known].mean()) if (~known).any() else 0.0,
    )
