"""Figures of an evaluation: learning curves, confusion matrix, reliability diagram, and the worst and best images.

Nothing is distinguished by color alone: runs also have markers, training curves are dashed, and cells and bins have
numbers. Each figure is written as PNG and PDF.
"""

import io
import itertools
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, PercentFormatter

from bcss_jax.common.figures import BLUE, VERMILION, sample_rows, without_outliers
from bcss_jax.common.files import storage_errors, write_bytes
from bcss_jax.common.interruption import safe_point
from bcss_jax.labels import LabelScheme, unchecked_scheme

# The colors of Okabe and Ito without yellow, which is hard to see on white. Seven colors and five markers give 35 runs.
RUN_COLORS = (BLUE, VERMILION, "#009E73", "#CC79A7", "#000000", "#E69F00", "#56B4E9")
RUN_MARKERS = ("o", "s", "^", "D", "v")
MARKERS_PER_CURVE = 20  # at most
DPI = 160
LONGEST_NAME, LONGEST_CLASS_NAME = 48, 24  # characters
RANKS = ("worst", "median", "best")


def write(folder: Path, evaluations: Sequence[dict], galleries: Mapping[str, Sequence[dict]]) -> None:
    """Writes all figures of an evaluation as PNG and PDF.

    These are `curves` of all runs and, in the folder of each model, `confusion` and `reliability`, and `worst`,
    `median` and `best` of its gallery.

    Args:
      folder: folder for the figures; it is made if it does not exist.
      evaluations: as in `tables`, with `folder` (the name of the model's folder), `history` and `temperature`.
      galleries: entries as in `gallery`, by the name of the model's folder.

    Raises:
      StorageError: A file cannot be written.
    """
    if any(evaluation["history"] for evaluation in evaluations):
        save(curves({evaluation["name"]: evaluation["history"] for evaluation in evaluations}), folder / "curves")
    for evaluation in evaluations:
        name, found, model_folder = evaluation["name"], evaluation["scores"], folder / evaluation["folder"]
        save(confusion(found["confusion"], name), model_folder / "confusion")
        save(reliability(found["calibration"], name, evaluation["temperature"]), model_folder / "reliability")
        for rank in RANKS:
            entries = [entry for entry in galleries.get(evaluation["folder"], ()) if entry["rank"] == rank]
            if entries:
                save(gallery(entries, scheme_of(evaluation), f"{name}, {rank} images"), model_folder / rank)


def save(figure: Figure, path: Path) -> None:
    """Writes path.png and path.pdf.

    Raises:
      StorageError: A file cannot be written.
    """
    safe_point()
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path.with_name(path.name + ".png"), png(figure))
    content = io.BytesIO()
    figure.savefig(
        content, format="pdf", dpi=DPI, metadata={"CreationDate": None}
    )  # so that equal figures give equal files
    write_bytes(path.with_name(path.name + ".pdf"), content.getvalue())


def png(figure: Figure) -> bytes:
    """Returns the figure as a PNG."""
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=DPI)
    return content.getvalue()


def scheme_of(evaluation: dict) -> LabelScheme:
    """Returns the label scheme of an evaluation that went through JSON, unchecked."""
    return unchecked_scheme(evaluation["label_scheme"])


def curves(histories: Mapping[str, Sequence[dict]], stacked: bool = False) -> Figure:
    """Draws loss and mean IoU of several runs against the epoch.

    Training curves are dashed with hollow markers, validation curves are solid with filled markers.

    Args:
      histories: rows of each run's history.csv, as numbers or text, by the name of the run. Missing values leave a gap.
        A run that recorded no IoU has a loss curve only, and the figure says so.
      stacked: whether to draw one plot below the other, for narrow screens.

    Raises:
      ValueError: No run has an epoch.
    """
    histories = {name: rows for name, rows in histories.items() if rows}
    if not histories:
        raise ValueError("found no epoch to draw")
    columns = 2 if stacked else 5  # of the legend
    legend = 0.25 * -(-len(histories) // columns)
    figure = Figure(figsize=(4.8, 7 + legend) if stacked else (10, 3.95 + legend), layout="constrained")
    losses, ious = figure.subplots(2, 1) if stacked else figure.subplots(1, 2)
    looks = zip(itertools.cycle(RUN_COLORS), itertools.cycle(RUN_MARKERS), strict=False)
    handles, without_iou = [], []
    for (name, rows), (color, marker) in zip(histories.items(), looks, strict=False):
        epochs = _column(rows, "epoch")
        look = {
            "color": color,
            "marker": marker,
            "markersize": 4.5,
            "markevery": max(1, len(rows) // MARKERS_PER_CURVE),
        }
        for axes, measure in ((losses, "loss"), (ious, "iou")):
            axes.plot(epochs, _column(rows, f"train_{measure}"), "--", linewidth=1, markerfacecolor="white", **look)
            axes.plot(epochs, _column(rows, f"val_{measure}"), "-", linewidth=1.6, **look)
        if np.isnan(_column(rows, "val_iou")).all():
            without_iou.append(name)
        handles.append(Line2D([], [], color=color, marker=marker, markersize=5, label=_plain(name)))
    without_outliers(losses)
    for axes, label in ((losses, "loss"), (ious, "mean IoU (mIoU)")):
        axes.set_xlabel("epoch")
        axes.set_ylabel(label)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.margins(x=0.03)
        axes.grid(color="0.9")
        axes.set_axisbelow(True)
    ious.set_ylim(0, 1)
    if without_iou:
        text = _plain("no IoU recorded: " + ", ".join(without_iou), 300)
        ious.text(0.02, 0.02, text, transform=ious.transAxes, fontsize=9, wrap=True)
    styles = [
        Line2D([], [], color="0.3", linestyle="--", linewidth=1, marker="o", markerfacecolor="white", label="training"),
        Line2D([], [], color="0.3", linewidth=1.6, marker="o", label="validation"),
    ]
    losses.legend(handles=styles, loc="upper right", fontsize=9)
    figure.legend(handles=handles, loc="outside lower center", ncol=columns, fontsize=9, frameon=False)
    return figure


def confusion(counts: dict, title: str) -> Figure:
    """Draws the confusion matrix: for each true class, the share and number of pixels predicted as each class.

    Args:
      counts: `{"truth": names of the rows, "prediction": names of the columns, "pixels": rows}`, as in `scores.scores`.
        A row without pixels stays empty.
      title: title of the figure.
    """
    pixels = np.asarray(counts["pixels"], np.int64)
    total = pixels.sum(1, keepdims=True)
    shares = np.divide(pixels, total, out=np.zeros(pixels.shape), where=total > 0)
    size = 1.15 * len(pixels)
    figure = Figure(figsize=(size + 1.6, size + 1.2), layout="constrained")
    axes = figure.subplots()
    names = {side: [_plain(name, LONGEST_CLASS_NAME) for name in counts[side]] for side in ("truth", "prediction")}
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(range(pixels.shape[1]), names["prediction"])
    axes.set_yticks(range(pixels.shape[0]), names["truth"])
    axes.tick_params(length=0)
    axes.set_xlabel("prediction")
    axes.set_ylabel("ground truth (each row sums to 100 %)")
    figure.suptitle(_title(title), fontsize=12)
    for row, column in np.ndindex(pixels.shape):
        text = f"{shares[row, column]:.1%}\n{pixels[row, column]:,}" if total[row, 0] else "no pixels"
        # The text is white where the perceived brightness of the cell is below one half.
        dark = np.dot(colormaps["Blues"](shares[row, column])[:3], (0.299, 0.587, 0.114)) < 0.5
        axes.text(column, row, text, ha="center", va="center", fontsize=10, color="white" if dark else "black")
    return figure


def reliability(calibration: dict, title: str, temperature: dict | None) -> Figure:
    """Draws the reliability diagram: accuracy and number of pixels against their confidence.

    Args:
      calibration: `calibration.reliability` of the model without temperature.
      title: title of the figure.
      temperature: `calibration.temperature_summary`, or None. Its `"curve_after"`, the curve of the sampled pixels with
        the temperature, is drawn as well if it exists.
    """
    lines = [("as trained", calibration["ece"], calibration["curve"], VERMILION, "o", "--")]
    if temperature and "curve_after" in temperature:
        label = f"temperature {temperature['value']:.2f} (pixels sampled from {temperature['fitted_on']})"
        lines.append((label, temperature["ece_after"], temperature["curve_after"], BLUE, "s", "-"))
    figure = Figure(figsize=(5, 6.4), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    upper.plot([0, 1], [0, 1], color="0.5", linewidth=1, linestyle=":", label="confidence = accuracy")
    for label, ece, curve, color, marker, style in lines:
        label = f"{label}: ECE {ece:.3f}"
        confidence, accuracy = (np.array(curve[name], np.float64) for name in ("confidence", "accuracy"))
        upper.plot(confidence, accuracy, style, color=color, marker=marker, markersize=5, label=label)
        pixels = np.asarray(curve["pixels"], np.float64)
        edges = np.linspace(0, 1, len(pixels) + 1)
        lower.stairs(pixels / pixels.sum(), edges, color=color, linestyle=style, linewidth=1.4)
    figure.suptitle(_title(title), fontsize=12)
    upper.set_ylabel("accuracy of the pixels in the bin")
    upper.set_ylim(0, 1)
    upper.set_xlim(0, 1)
    figure.legend(handles=upper.get_lines(), loc="outside lower center", fontsize=9, frameon=False)
    lower.set_ylabel("share of pixels")
    lower.set_xlabel("confidence of the predicted class")
    for axes in (upper, lower):
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes.grid(color="0.9")
        axes.set_axisbelow(True)
    return figure


def gallery(entries: Sequence[dict], scheme: LabelScheme, title: str) -> Figure:
    """Draws a row for each image: the image, its ground truth, the prediction, and the errors.

    Args:
      entries: dicts with `rank` ("worst", "median" or "best"), `key`, `image` (uint8 [H, W, 3]), `truth` and
        `prediction` (uint8 [H, W], labels of the scheme). All images have the same size.
      scheme: the label scheme.
      title: title of the figure.
    """
    images, truth, prediction = (np.stack([e[name] for e in entries]) for name in ("image", "truth", "prediction"))
    return sample_rows(images, truth, prediction, scheme, [_plain(e["key"], 200) for e in entries], _plain(title))


def _column(rows, name):
    """Returns a column of a history as floats, NaN where there is no finite number."""
    values = np.array([_number(row.get(name)) for row in rows], np.float64)
    return np.where(np.isfinite(values), values, np.nan)


def _number(cell):
    return float(cell) if cell not in (None, "") else np.nan


def _title(name):
    """Returns a title for a small figure, wrapped onto several lines if it is long."""
    return _plain(textwrap.fill(str(name), 30), 120)


def _plain(text, longest=LONGEST_NAME):
    """Shortens a name to fit the figure, and escapes the dollar sign, which starts a formula in matplotlib."""
    text = str(text)
    return (text if len(text) <= longest else text[: longest - 1] + "…").replace("$", r"\$")
