"""What the clicks on all objects of a split say, as JSON and a picture; intervals are over patients."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from bcss_jax.common.figures import BLUE, VERMILION
from bcss_jax.evaluation.statistics.bootstrap import Interval, interval, mean_of_sums, mean_sums, paired_difference

TARGETS = (0.80, 0.85)  # intersection over union that a user is content with
AFTER = (1, 3, 5, 10)  # clicks
CLICKS_WITHOUT = 10  # clicks without the mask fed back


@dataclasses.dataclass(frozen=True)
class ClickedObject:
    """An object that was segmented with clicks.

    Attributes:
      key: name of its tile.
      patient: of the tile.
      label: name of its class.
      area: number of its pixels.
      dice: after each click.
      iou: after each click.
      box_dice: with a box.
      box_iou: with a box.
      dice_without: after each click if no mask is fed back.
    """

    key: str
    patient: str
    label: str
    area: int
    dice: np.ndarray
    iou: np.ndarray
    box_dice: float
    box_iou: float
    dice_without: np.ndarray

    def clicks_to(self, target: float) -> int | None:
        """Returns the number of clicks until the intersection over union is at least `target`; None: never."""
        reached = np.flatnonzero(self.iou >= target)
        return int(reached[0]) + 1 if len(reached) else None


def summary_of(objects: Sequence[ClickedObject]) -> dict[str, Any]:
    """Returns the scores of a model as JSON.

    Where the intersection over union is never reached, all clicks count, as is usual.

    Args:
      objects: at least one.
    """
    patients = [each.patient for each in objects]
    dice, iou = (np.stack([getattr(each, name) for each in objects]) for name in ("dice", "iou"))
    without = np.stack([each.dice_without for each in objects])
    box = np.array([each.box_dice for each in objects])
    most = dice.shape[1]

    def mean(values):
        return _json(interval(mean_sums(values), patients, mean_of_sums))

    def difference(one, other):
        return _json(paired_difference(mean_sums(one), mean_sums(other), patients, mean_of_sums))

    reached = {target: [each.clicks_to(target) for each in objects] for target in TARGETS}
    return {
        "objects": len(objects),
        "patients": len(set(patients)),
        "clicks_to_iou": {
            f"{target:.2f}": {
                "mean": mean(np.array([most if n is None else n for n in counts], float)),
                "share_never": mean(np.array([n is None for n in counts], float)),
            }
            for target, counts in reached.items()
        },
        "dice_after": {str(n): mean(dice[:, n - 1]) for n in AFTER},
        "iou_after": {str(n): mean(iou[:, n - 1]) for n in AFTER},
        "dice_with_box": mean(box),
        "iou_with_box": mean(np.array([each.box_iou for each in objects])),
        "dice_five_clicks_minus_one": difference(dice[:, 4], dice[:, 0]),
        "dice_box_minus_one_click": difference(box, dice[:, 0]),
        "dice_mask_fed_back_minus_not": {
            str(n): difference(dice[:, n - 1], without[:, n - 1]) for n in AFTER if 1 < n <= CLICKS_WITHOUT
        },
        "dice_curve": [_json(interval(mean_sums(dice[:, n]), patients, mean_of_sums)) for n in range(CLICKS_WITHOUT)],
        "by_patient": _groups(objects, "patient"),
        "by_class": _groups(objects, "label"),
    }


def _groups(objects: Sequence[ClickedObject], name: str) -> dict[str, Any]:
    groups: dict[str, list[ClickedObject]] = {}
    for each in objects:
        groups.setdefault(getattr(each, name), []).append(each)
    return {
        key: {
            "objects": len(group),
            "dice_after": {str(n): float(np.mean([each.dice[n - 1] for each in group])) for n in AFTER},
            "clicks_to_iou": {
                f"{target:.2f}": float(np.mean([each.clicks_to(target) or len(each.iou) for each in group]))
                for target in TARGETS
            },
            "dice_with_box": float(np.mean([each.box_dice for each in group])),
        }
        for key, group in sorted(groups.items())
    }


def _json(found: Interval) -> dict[str, Any]:
    """Returns an interval as JSON. Too few patients: objects are drawn in their place."""
    low, high = (None if math.isnan(float(end)) else float(end) for end in (found.low, found.high))
    over = "patients" if found.over == "patients" else "objects"
    return {"value": float(found.value), "low": low, "high": high, "over": over, "n": found.n}


def rows_of(objects: Sequence[ClickedObject]) -> list[dict[str, Any]]:
    """Returns a row of objects.csv for each object."""
    return [
        {
            "tile": each.key,
            "patient": each.patient,
            "class": each.label,
            "area_pixels": each.area,
            **{f"dice_{n}": round(float(each.dice[n - 1]), 6) for n in AFTER},
            **{f"iou_{n}": round(float(each.iou[n - 1]), 6) for n in AFTER},
            "dice_box": round(each.box_dice, 6),
            **{f"dice_{n}_no_mask": round(float(each.dice_without[n - 1]), 6) for n in AFTER},
            **{f"clicks_to_{target:.2f}": each.clicks_to(target) or "" for target in TARGETS},
        }
        for each in objects
    ]


def dice_figure(summaries: dict[str, dict[str, Any]], title: str) -> Figure:
    """Draws the mean Dice against the clicks, with its interval, and that with a box, for each model.

    Args:
      summaries: name of a model -> result of `summary_of`; models differ in color, marker and line.
      title: of the figure.
    """
    figure = Figure(figsize=(7.5, 4.8), dpi=120, layout="constrained")
    axes = figure.subplots()
    colors = (BLUE, VERMILION, "#009e73", "#cc79a7", "#e69f00", "#000000")  # Okabe and Ito
    for i, (name, found) in enumerate(summaries.items()):
        color, marker, style = colors[i % 6], "osD^vP"[i % 6], ("-", "--", "-.", ":")[i // 6 % 4]
        curve = found["dice_curve"]
        clicks = np.arange(1, len(curve) + 1)
        value, low, high = (
            np.array([each[end] if each[end] is not None else np.nan for each in curve], float)
            for end in ("value", "low", "high")
        )
        axes.plot(clicks, value, style, color=color, marker=marker, markersize=5, label=f"{name}, clicks")
        axes.fill_between(clicks, low, high, color=color, alpha=0.15, linewidth=0)
        box = found["dice_with_box"]["value"]
        axes.plot([0.6, len(curve) + 0.4], [box, box], ":", color=color, linewidth=1.2, label=f"{name}, a box alone")
    axes.set_xlabel("clicks")
    axes.set_ylabel("Dice, mean over objects")
    axes.set_ylim(0, 1)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(color="0.9")
    axes.set_axisbelow(True)
    axes.set_title(title, fontsize=10)
    axes.legend(fontsize=8, loc="lower right")
    return figure
