"""Draws how a pretraining went: loss, and the figures by which a collapse shows."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from bcss_jax.common.figures import BLUE, VERMILION, without_outliers


class _Panel(NamedTuple):
    """A panel: its heading, and the columns of the history that it shows, with their names in the legend."""

    heading: str
    columns: tuple[tuple[str, str], ...]


PANELS = (
    _Panel("loss", (("loss", "loss"),)),
    _Panel(
        "entropy of the teacher's targets (nats)",
        (("teacher_entropy", "of one tile"), ("prototype_entropy", "of all tiles together")),
    ),
    _Panel("KL divergence of teacher and student (nats)", (("kl", "KL divergence"),)),
    _Panel("deviation of the features", (("feature_deviation", "deviation"),)),
    _Panel("norm of the center", (("center_norm", "norm"),)),
    _Panel("k-NN accuracy on labeled tiles", (("knn_accuracy", "accuracy"),)),
)
STYLES = ((BLUE, "-"), (VERMILION, "--"))


def curves(
    history: Sequence[dict],
    title: str,
    *,
    prototypes: int | None = None,
    features: int | None = None,
    chance: float | None = None,
) -> Figure:
    """Draws the figures of a pretraining against the steps.

    Args:
      history: one row per epoch with `step` and the columns of `PANELS`. Values that are missing, None or NaN are left
        out; a panel without any value says so.
      title: of the figure.
      prototypes: of the head; the entropy of equally likely ones is drawn as a line.
      features: of the encoder; the deviation of evenly spread ones is drawn as a line.
      chance: share of the most frequent class of the labeled tiles, drawn as a line.

    Raises:
      ValueError: the history is empty.
    """
    if not history:
        raise ValueError("the history has no epoch to draw")
    lines = {
        "teacher_entropy": prototypes and (math.log(prototypes), "all prototypes equally likely"),
        "feature_deviation": features and (1 / math.sqrt(features), "evenly spread features"),
        "knn_accuracy": chance and (chance, "the most frequent class always"),
    }
    figure = Figure(figsize=(13, 7.4), dpi=110, layout="constrained")
    figure.suptitle(title, fontsize=12)
    for axes, panel in zip(figure.subplots(2, 3).flat, PANELS, strict=True):
        _draw(axes, panel, history, lines.get(panel.columns[0][0]))
    return figure


def _draw(axes, panel: _Panel, history: Sequence[dict], line: tuple[float, str] | None) -> None:
    steps = np.array([row["step"] for row in history])
    empty = True
    for (name, label), (color, style) in zip(panel.columns, STYLES, strict=False):
        values = np.array([row.get(name) for row in history], np.float64)  # None becomes NaN
        there = np.isfinite(values)
        if there.any():
            marker = "o" if there.sum() <= 30 else None
            axes.plot(steps[there], values[there], style, color=color, marker=marker, markersize=3.5, label=label)
            empty = False
    axes.set_title(panel.heading, fontsize=10)
    axes.set_xlabel("step")
    axes.set_xlim(0, steps.max() * 1.02)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.grid(color="0.9")
    axes.set_axisbelow(True)
    if empty:
        axes.text(0.5, 0.5, "not measured", ha="center", va="center", color="0.4", transform=axes.transAxes)
        axes.set_yticks([])
        return
    if panel.columns[0][0] == "loss":
        without_outliers(axes)
    if line:
        axes.axhline(line[0], color="black", linewidth=1, linestyle=":", label=line[1])
    if panel.columns[0][0] == "knn_accuracy":
        axes.set_ylim(0, 1)
    elif panel.columns[0][0] != "loss":
        axes.set_ylim(0, 1.02 * axes.get_ylim()[1])
    if len(axes.get_lines()) > 1:
        axes.legend(fontsize=8.5)
