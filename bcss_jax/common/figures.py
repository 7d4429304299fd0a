"""Pictures of a run: learning curves, and predictions next to the ground truth.

The figures are drawn with matplotlib's figure objects on the Agg canvas, without a display or global state. The colors
are those of Okabe and Ito (jfly.uni-koeln.de/color). People with any common color blindness can tell them apart.
"""

import itertools
import os
import pathlib
import textwrap
from collections.abc import Sequence

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_pdf import FigureCanvasPdf
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from bcss_jax.common.files import whole_file
from bcss_jax.labels import LabelScheme

BLUE, VERMILION = "#0072B2", "#D55E00"
CLASS_COLORS = {
    "tumor": (230, 159, 0),
    "stroma": (0, 114, 178),
    "inflammatory": (0, 158, 115),
    "necrosis": (213, 94, 0),
    "other": (204, 121, 167),
    "ignored": (150, 150, 150),
    "background": (0, 0, 0),
}
FURTHER_COLORS = ((86, 180, 233), (240, 228, 66), *list(CLASS_COLORS.values())[:5])  # for classes with other names
CORRECT = (255, 255, 255)  # correct pixels in the error map
TINT = 0.5  # share of the class color in an overlay
_STRIPE_DARK, _STRIPE_LIGHT = (150, 150, 150), (205, 205, 205)  # for ignored pixels; no class is gray


def class_colors(scheme: LabelScheme) -> np.ndarray:
    """Returns the RGB color of each label of the scheme: uint8 [num_classes, 3].

    If the scheme has no colors, known class names get the colors of `CLASS_COLORS` and the others get free colors.
    """
    if scheme.colors:
        return np.array(scheme.colors, np.uint8)
    taken = {CLASS_COLORS[name] for name in scheme.class_names if name in CLASS_COLORS}
    free = itertools.cycle([color for color in FURTHER_COLORS if color not in taken])
    return np.array([CLASS_COLORS.get(name) or next(free) for name in scheme.class_names], np.uint8)


def overlay(image: np.ndarray, labels: np.ndarray, scheme: LabelScheme) -> np.ndarray:
    """Returns the image tinted with the class colors; ignored pixels are hatched in gray.

    Args:
      image: uint8 [H, W, 3].
      labels: uint8 [H, W], labels of the scheme.
      scheme: label scheme.

    Returns:
      uint8 [H, W, 3].
    """
    known = np.where(labels < scheme.num_classes, labels, 0)
    tinted = (1 - TINT) * image + TINT * class_colors(scheme)[known]
    return hatched(np.round(tinted).astype(np.uint8), labels == scheme.ignore_index)


def error_map(labels: np.ndarray, predictions: np.ndarray, scheme: LabelScheme) -> np.ndarray:
    """Returns a picture of the errors.

    Correct pixels are white, wrong pixels have the color of the predicted class, and ignored pixels are hatched.

    Args:
      labels: uint8 [H, W], the ground truth.
      predictions: uint8 [H, W].
      scheme: label scheme of both.

    Returns:
      uint8 [H, W, 3].
    """
    known = np.where(predictions < scheme.num_classes, predictions, 0)
    picture = np.where((labels == predictions)[..., None], np.array(CORRECT, np.uint8), class_colors(scheme)[known])
    return hatched(picture, labels == scheme.ignore_index)


def samples(
    images: np.ndarray,
    labels: np.ndarray,
    predictions: np.ndarray,
    scheme: LabelScheme,
    path: str | os.PathLike,
    names: Sequence[str],
    title: str,
) -> None:
    """Writes the figure of `sample_rows` as a PNG. Replaces an existing file.

    Raises:
      ValueError: there are no images, or the shapes do not match.
      StorageError: the file cannot be written.
    """
    write(sample_rows(images, labels, predictions, scheme, names, title), path)


def sample_rows(
    images: np.ndarray,
    labels: np.ndarray,
    predictions: np.ndarray,
    scheme: LabelScheme,
    names: Sequence[str],
    title: str,
) -> Figure:
    """Returns a figure with one row per image: image, ground truth, prediction and errors, with the Dice of each class.

    Args:
      images: uint8 [N, H, W, 3], N up to about 6.
      labels: uint8 [N, H, W], the ground truth.
      predictions: uint8 [N, H, W].
      scheme: label scheme.
      names: names of the N images.
      title: title of the figure.

    Raises:
      ValueError: there are no images, or the shapes do not match.
    """
    count, height, width = images.shape[:3]
    shapes = (images.shape[3:], labels.shape, predictions.shape, len(names))
    if not count or shapes != ((3,), images.shape[:3], images.shape[:3], count):
        raise ValueError(f"images {images.shape}, labels, predictions and names {shapes[1:]} do not match")

    cell = 2.3  # inches
    row = cell * height / width
    total = (2.0 + 4.12 * cell, count * (row + 0.08) + 1.35)
    figure = Figure(figsize=total, dpi=110)
    grid = figure.add_gridspec(
        count,
        5,
        width_ratios=[2.0 / cell, 1, 1, 1, 1],
        left=0.01,
        right=0.99,
        top=1 - 0.75 / total[1],
        bottom=0.55 / total[1],
        wspace=0.03,
        hspace=0.08 / row,
    )
    figure.suptitle(title, y=1 - 0.12 / total[1], va="top", fontsize=12)
    for i in range(count):
        note = figure.add_subplot(grid[i, 0])
        note.axis("off")
        lines = textwrap.wrap(names[i], 24) + ["", "Dice"] + dice_lines(labels[i], predictions[i], scheme)
        note.text(0.97, 0.5, "\n".join(lines), ha="right", va="center", fontsize=8.5, transform=note.transAxes)
        pictures = (
            ("image", images[i]),
            ("truth", overlay(images[i], labels[i], scheme)),
            ("prediction", overlay(images[i], predictions[i], scheme)),
            ("errors, as predicted", error_map(labels[i], predictions[i], scheme)),
        )
        for column, (heading, picture) in enumerate(pictures, 1):
            axes = figure.add_subplot(grid[i, column])
            axes.imshow(picture, interpolation="nearest")
            axes.set_xticks([])
            axes.set_yticks([])
            if i == 0:
                axes.set_title(heading, fontsize=10)
    figure.legend(handles=legend(scheme), loc="lower center", ncol=8, fontsize=8.5, frameon=False)
    return figure


def curves(
    history: Sequence[dict],
    path: str | os.PathLike,
    title: str,
    *,
    score: str = "iou",
    heading: str = "mean IoU (mIoU)",
) -> None:
    """Writes a PNG of the loss and a score against the epoch. Training is dashed, validation is solid.

    Args:
      history: one row per epoch with `epoch`, `train_loss`, `val_loss`, `train_iou`, `val_iou` and `best` (True if
        the epoch was the best so far). Values that are missing, None or NaN leave a gap.
      path: path of the file. An existing file is replaced.
      title: title of the figure.
      score: name of the score in `history`, which replaces `iou` in the keys above.
      heading: axis label of the score.

    Raises:
      ValueError: the history is empty.
      StorageError: the file cannot be written.
    """
    if not history:
        raise ValueError("the history has no epoch to draw")
    epochs = [row["epoch"] for row in history]
    # Every epoch that was the best so far has the flag. The last of these is the best overall.
    best = max((row["epoch"] for row in history if row.get("best")), default=None)
    figure = Figure(figsize=(10, 4.2), dpi=110, layout="constrained")
    figure.suptitle(title, fontsize=12)
    panels = figure.subplots(1, 2)
    marker = "o" if len(history) <= 30 else None  # dots show isolated epochs; too many dots hide the line
    for axes, key, label in zip(panels, ("loss", score), ("loss", heading), strict=True):
        for split, name, style, color in (("train", "training", "--", VERMILION), ("val", "validation", "-", BLUE)):
            values = np.array([row.get(f"{split}_{key}") for row in history], np.float64)  # None becomes NaN
            values = np.where(np.isfinite(values), values, np.nan)
            axes.plot(epochs, values, style, color=color, marker=marker, markersize=3.5, label=name)
            if split == "val" and best in epochs and np.isfinite(at_best := values[epochs.index(best)]):
                axes.plot(best, at_best, "*", color="black", markersize=11, label=f"best epoch {best}: {at_best:.3f}")
        if key == "loss":
            without_outliers(axes)
        if best is not None:
            axes.axvline(best, color="black", linewidth=0.8, linestyle=":", zorder=0)
        axes.set_xlabel("epoch")
        axes.set_ylabel(label)
        axes.set_xlim(min(epochs) - 0.5, max(epochs) + 0.5)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.grid(color="0.9")
        axes.set_axisbelow(True)
        axes.legend(fontsize=9, loc="upper right" if key == "loss" else "lower right")
    panels[1].set_ylim(0, 1)
    write(figure, path)


def without_outliers(axes) -> None:
    """Scales the y axis to the usual values and notes the largest value if it is outside.

    The first loss may be a thousand times larger than the others.
    """
    values = np.concatenate([line.get_ydata() for line in axes.get_lines()])
    values = values[np.isfinite(values)]
    if not values.size or values.max() - values.min() <= 10 * (np.quantile(values, 0.75) - values.min()):
        return
    shown = values[values <= values.min() + 10 * (np.quantile(values, 0.75) - values.min())]
    margin = 0.05 * (shown.max() - shown.min()) or 1.0
    axes.set_ylim(shown.min() - margin, shown.max() + margin)
    axes.text(0.02, 0.02, f"not shown: up to {values.max():.3g}", transform=axes.transAxes, fontsize=9)


def hatched(picture: np.ndarray, where: np.ndarray) -> np.ndarray:
    """Returns the picture with diagonal gray stripes where the mask is true."""
    if not where.any():
        return picture
    rows, columns = np.indices(where.shape)
    stripes = np.where(
        ((rows + columns) // 4 % 2 == 0)[..., None], np.array(_STRIPE_DARK, np.uint8), np.array(_STRIPE_LIGHT, np.uint8)
    )
    return np.where(where[..., None], stripes, picture)


def dice_lines(labels: np.ndarray, predictions: np.ndarray, scheme: LabelScheme) -> list[str]:
    """Returns a list with one line for each evaluated class: its Dice in one image.

    Ignored pixels do not count. A class that does not occur gets a dash.
    """
    counted = labels != scheme.ignore_index
    lines = []
    for label, name in zip(scheme.evaluated, scheme.evaluated_names, strict=True):
        truth, guess = (labels == label) & counted, (predictions == label) & counted
        size = truth.sum() + guess.sum()
        lines.append(f"{name} {2 * (truth & guess).sum() / size:.3f}" if size else f"{name} –")
    return lines


def legend(scheme: LabelScheme, *, correct: bool = True) -> list:
    """Returns the legend entries for `overlay`. With `correct`, also returns the entry for `error_map`."""
    colors = class_colors(scheme) / 255
    named = [
        label for label, name in enumerate(scheme.class_names) if label in scheme.evaluated or name == "background"
    ]
    entries = [Patch(facecolor=colors[label], label=scheme.class_names[label]) for label in named]
    entries.append(
        Patch(
            facecolor=_fractions(_STRIPE_LIGHT),
            edgecolor=_fractions(_STRIPE_DARK),
            hatch="////",
            label="ignored",
        )
    )
    if correct:
        entries.append(Patch(facecolor=_fractions(CORRECT), edgecolor="0.6", label="correct"))
    return entries


def _fractions(color: tuple[int, int, int]) -> tuple[float, float, float]:
    """Returns a color in the range 0 to 1, as Matplotlib expects it."""
    red, green, blue = color
    return red / 255, green / 255, blue / 255


def write(figure: Figure, path: str | os.PathLike, compress_level: int = 6) -> None:
    """Writes a figure as a PNG, or as a PDF if the name ends in .pdf.

    Readers see the old file or the new file, never an incomplete one.

    Args:
      figure: figure to write.
      path: path of the file. An existing file is replaced.
      compress_level: zlib level for PNGs. Level 1 takes a fifth of the time and makes photographs slightly larger.

    Raises:
      StorageError: the file cannot be written.
    """
    path = pathlib.Path(path)
    with whole_file(path) as unfinished:
        if path.suffix == ".pdf":
            FigureCanvasPdf(figure).print_pdf(unfinished, metadata={"CreationDate": None})  # the same bytes every time
        else:
            FigureCanvasAgg(figure).print_png(unfinished, pil_kwargs={"compress_level": compress_level})
