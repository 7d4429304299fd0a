"""Draws the figures of docs/architecture.md: `python docs/draw_figures.py` writes docs/figures/*.svg.

The colors are those of Okabe and Ito, which readers with any kind of color vision can tell apart; they only support the
text, nothing is said by color alone.
"""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

FOLDER = Path(__file__).with_name("figures")
SKY, GREEN, ORANGE, YELLOW, PURPLE, GRAY = "#cfe8f7", "#c9ecdf", "#fbe3bd", "#faf6c4", "#f0d9e6", "#ececec"
INK = "#1a1a1a"

# Each layer of the package, top to bottom: name, what it contains, color. A layer imports from those below it only.
LAYERS = (
    ("commands/", "train  pretrain  evaluate  segment  embed  scribble  prompt  view  export  and others", GRAY),
    ("notebook/", "host, data and sessions of a notebook", GRAY),
    ("api/", "train, evaluate and segment as functions, and what a notebook shows of their results", GRAY),
    ("annotator/", "slides annotated in a browser: prompts, brush, what is saved", PURPLE),
    ("viewer/", "pages and image tiles for a browser", PURPLE),
    ("pretraining/", "student and teacher on tiles without labels: views, tiles, distillation, pictures", PURPLE),
    ("slides/", "tissue  stitching  outputs  scoring  batch  features  prompts  scribbles", PURPLE),
    ("evaluation/", "scores of trained runs; statistics, reporting", SKY),
    ("accelerators/", "steps compiled for devices that are not there: memory, traffic, arithmetic", SKY),
    ("tuning/", "SAM trained with simulated prompts: rounds of prompts, losses, step, loop", SKY),
    ("prompting/", "Segment Anything: points, boxes and masks to masks", SKY),
    ("inference/", "trained runs, probabilities, test-time augmentation, exported models", SKY),
    ("nnunet/", "nnU-Net as a method: one file for each of its steps", ORANGE),
    ("training/", "loop, step, optimizer, checkpoints, history, summary", ORANGE),
    ("config.py", "every setting with its default", GRAY),
    ("data/", "discovery, checks, prepared files, augmentation, the sample, annotated slides; inspection", GREEN),
    ("slides/", "reading  annotations  store  regions: what a slide and its annotations hold", GREEN),
    ("models/", "networks, encoders, blocks, pretrained weights", GREEN),
    ("common/", "whole-file writes, locks, progress, timing, figures", YELLOW),
    ("vocabulary", "errors.py  labels.py  losses.py  metrics.py", YELLOW),
)
# What a tile passes through: title, file, what it does, what comes out.
TILE = (
    ("Find", "data/discovery.py", "lists images and masks,\nassigns each to a split", "paths", GREEN),
    ("Check", "data/checks.py", "shapes, codes, damage,\npatients in two splits", "sound tiles", GREEN),
    ("Prepare", "data/tfrecords.py", "writes images and masks\nas TFRecords, once", "uint8 image, mask codes", GREEN),
    ("Load", "data/input_pipeline.py", "codes become labels;\nshuffles, augments", "uint8 batches [N, H, W, 3]", GREEN),
    ("Network", "models/apply.py", "normalizes, runs the\nnetwork", "float32 logits [N, H, W, K]", SKY),
    ("Loss", "losses.py", "sums over pixels with truth:\ncross-entropy, soft Dice", "loss, gradient", YELLOW),
    ("Step", "training/step.py", "micro-batches, devices,\noptimizer", "new parameters", ORANGE),
    ("Run", "training/loop.py", "epochs, validation,\ncheckpoints, report", "runs/unet/", ORANGE),
)
SLIDE = (
    (
        "Read",
        "slides/reading",
        "reader processes open the\nfile and resample blocks",
        "uint8 RGB at the model's um/px",
        GREEN,
    ),
    ("Find tissue", "slides/tissue", "by color on a thumbnail,\nor from a mask", "cells with tissue", GREEN),
    ("Cut windows", "slides/windows.py", "overlapping windows,\nreflected at the edge", "uint8 [N, S, S, 3]", GREEN),
    ("Predict", "inference/slide_model.py", "probabilities on all\ndevices", "float32 [N, S, S, K]", SKY),
    ("Blend", "slides/stitching", "Gaussian weights; rows are\nfinished from the top", "probabilities, labels", ORANGE),
    ("Store", "slides/store", "keeps finished tiles;\na killed slide resumes", "tiles of labels", ORANGE),
    ("Trace, write", "slides/outputs", "pyramid, overlay; outlines\ncome from slides/regions", "out/<slide>/", PURPLE),
    ("Score", "slides/scoring", "against a mask of ground\ntruth, if there is one", "summary.json", PURPLE),
)


def draw_tree(axes: plt.Axes) -> None:
    """Draws the layers as rows, the commands on top."""
    for row, (name, content, color) in enumerate(LAYERS):
        y = -row * 0.62
        _box(axes, 0, y, 11.2, 0.5, color)
        axes.text(0.2, y, name, va="center", ha="left", weight="bold", size=11, color=INK)
        axes.text(2.2, y, content, va="center", ha="left", size=10, color=INK)
    bottom = -(len(LAYERS) - 1) * 0.62
    _arrow(axes, (11.75, 0.2), (11.75, bottom - 0.2))
    axes.text(12.0, bottom / 2, "imports point down only", rotation=270, va="center", ha="center", size=10, color=INK)
    axes.set(xlim=(-0.1, 12.3), ylim=(bottom - 0.4, 0.4))


def draw_flow(axes: plt.Axes, steps: tuple) -> None:
    """Draws steps as boxes in two rows of four; under each arrow stands what is handed over."""
    columns, width, height, gap_x, gap_y = 4, 2.9, 1.35, 0.5, 1.0
    for number, (title, file, what, result, color) in enumerate(steps):
        row, column = divmod(number, columns)
        x, y = column * (width + gap_x), -row * (height + gap_y)
        _box(axes, x, y, width, height, color)
        middle = x + width / 2
        axes.text(
            middle, y + 0.47, f"{number + 1}  {title}", va="center", ha="center", weight="bold", size=11, color=INK
        )
        axes.text(middle, y + 0.16, file, va="center", ha="center", family="monospace", size=9, color=INK)
        axes.text(middle, y - 0.3, what, va="center", ha="center", size=9.5, color=INK, linespacing=1.25)
        axes.text(
            middle,
            y - height / 2 - 0.19,
            f"gives {result}",
            va="center",
            ha="center",
            size=9,
            style="italic",
            color=INK,
        )
        if column < columns - 1:
            _arrow(axes, (x + width + 0.05, y), (x + width + gap_x - 0.05, y))
        elif number < len(steps) - 1:  # to the first box of the next row
            lane = y - height / 2 - 0.52
            right, left, below = x + width + 0.22, -0.22, y - height - gap_y
            axes.plot([x + width + 0.05, right, right, left, left], [y, y, lane, lane, below], color=INK, lw=1.3)
            _arrow(axes, (left, below), (-0.02, below))
    rows = -(-len(steps) // columns)
    bottom = -(rows - 1) * (height + gap_y) - height / 2 - 0.4
    axes.set(xlim=(-0.4, columns * (width + gap_x) - 0.1), ylim=(bottom, height / 2 + 0.1))


def _box(axes, x, y, width, height, color):
    """Draws a box whose left edge is at x and whose middle is at y."""
    style = "round,pad=0,rounding_size=0.08"
    axes.add_patch(FancyBboxPatch((x, y - height / 2), width, height, boxstyle=style, fc=color, ec=INK, lw=0.9))


def _arrow(axes, start, end):
    axes.add_patch(
        FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=13, color=INK, lw=1.3, shrinkA=0, shrinkB=0)
    )


def figures() -> dict[str, plt.Figure]:
    """Returns the figures by name."""
    made = {}
    for name, size, draw in (
        ("tree", (9.4, 5.8), draw_tree),
        ("tile", (10.4, 4.0), lambda axes: draw_flow(axes, TILE)),
        ("slide", (10.4, 4.0), lambda axes: draw_flow(axes, SLIDE)),
    ):
        made[name], axes = plt.subplots(figsize=size)
        draw(axes)
        axes.set_axis_off()
        made[name].subplots_adjust(0.01, 0.01, 0.99, 0.99)
    return made


def main() -> None:
    """Writes the figures."""
    matplotlib.rcParams.update({"svg.hashsalt": "bcss_jax", "font.family": "DejaVu Sans"})
    FOLDER.mkdir(exist_ok=True)
    for name, figure in figures().items():
        figure.savefig(FOLDER / f"{name}.svg", metadata={"Date": None}, facecolor="white")


if __name__ == "__main__":
    main()
