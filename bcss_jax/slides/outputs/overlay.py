"""Draws overlay.png, a slide's thumbnail tinted with its classes, and comparison.png, several results of one slide."""

import math
import os
import textwrap
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from bcss_jax.common import figures
from bcss_jax.slides.classes import BACKGROUND, UNREADABLE, SlideClass

TINT = 0.45  # share of the class's color within a region; outlines have the full color
_LUMINANCE = (0.299, 0.587, 0.114)  # of R, G, B (ITU-R BT.601)
_DPI = 100
_FADED = 0.35  # contrast of the thumbnail where two results agree


class Panel(NamedTuple):
    """A result in a comparison.

    Attributes:
      title: for example "U-Net, Dice 0.81".
      labels: uint8 [H, W], at the size of the thumbnail.
    """

    title: str
    labels: np.ndarray


def tinted(thumbnail: np.ndarray, labels: np.ndarray, classes: Sequence[SlideClass]) -> np.ndarray:
    """Returns the thumbnail tinted with the colors of the classes, with outlines.

    Tinted parts are gray first: on the pink of H&E a tint would look different from the legend. Unreadable parts are
    hatched, the background is left as it is.

    Args:
      thumbnail: uint8 [H, W, 3].
      labels: uint8 [H, W].
      classes: what the labels mean.

    Returns:
      uint8 [H, W, 3].
    """
    if labels.shape != thumbnail.shape[:2]:
        raise ValueError(f"labels {labels.shape} for a thumbnail {thumbnail.shape}")
    share = np.zeros((256, 1), np.float32)
    share[[entry.value for entry in classes]] = TINT
    share = share[labels]
    share[_outlines(labels) & (share[..., 0] > 0)] = 1
    base = np.where(share > 0, _gray(thumbnail), thumbnail)
    picture = np.round(base * (1 - share) + _palette(classes)[labels] * share).astype(np.uint8)
    return figures.hatched(picture, labels == UNREADABLE)


def differences(
    thumbnail: np.ndarray, first: np.ndarray, second: np.ndarray, classes: Sequence[SlideClass]
) -> np.ndarray:
    """Returns the thumbnail in faint gray; where two results differ, it has the colors of the second one.

    Pixels that are background or unreadable in one of the results are not compared.

    Args:
      thumbnail: uint8 [H, W, 3].
      first: labels, uint8 [H, W].
      second: labels, uint8 [H, W].
      classes: what the labels mean.

    Returns:
      uint8 [H, W, 3].
    """
    faded = np.round(255 - (255 - _gray(thumbnail)) * _FADED).astype(np.uint8)
    differs = _compared(first, second) & (first != second)
    picture = np.where(differs[..., None], _palette(classes)[second], faded)
    return figures.hatched(picture, (first == UNREADABLE) | (second == UNREADABLE))


def overlay(
    thumbnail: np.ndarray,
    labels: np.ndarray,
    classes: Sequence[SlideClass],
    path: str | os.PathLike,
    *,
    title: str,
    mm_per_pixel: float,
    areas_mm2: Mapping[int, float],
) -> None:
    """Writes the tinted thumbnail as a PNG with a title, a scale bar, and a legend with the areas of the classes.

    Args:
      thumbnail: uint8 [H, W, 3], up to about 2000 pixels along a side; shown pixel by pixel.
      labels: uint8 [H, W], as `label_pyramid.read_resized` returns them.
      classes: what the labels mean.
      path: the file; replaced if it exists.
      title: of the picture.
      mm_per_pixel: of the thumbnail.
      areas_mm2: area by label, from the full labels; the shares in the legend refer to the sum of the classes.

    Raises:
      StorageError: it cannot be written.
    """
    height, width = labels.shape
    size = max(14.0, max(height, width) / 70)  # of the text, pixels
    total = sum(areas_mm2.get(entry.value, 0.0) for entry in classes)
    texts = {}
    for entry in classes:
        area = areas_mm2.get(entry.value, 0.0)
        share = f" ({100 * area / total:.1f} %)" if total else ""
        texts[entry.value] = f"{entry.name} {_area(area)}{share}"
    if areas_mm2.get(UNREADABLE, 0.0) or (labels == UNREADABLE).any():
        texts[UNREADABLE] = f"unreadable {_area(areas_mm2.get(UNREADABLE, 0.0))}"

    letters = max(len(text) for text in texts.values()) + 5
    wide = max(width + 2 * size, 0.6 * size * letters + 2 * size, 30 * size)
    columns = max(1, int(wide // (0.53 * size * letters)))
    lines = textwrap.wrap(title, max(20, int(wide / (0.65 * size)))) or [""]
    above, below = size * (1.6 * len(lines) + 1), size * (1.7 * math.ceil(len(texts) / columns) + 1.5)
    tall = height + above + below
    figure = Figure(figsize=(wide / _DPI, tall / _DPI), dpi=_DPI)
    points = size * 72 / _DPI
    figure.text(0.5, 1 - 0.7 * size / tall, "\n".join(lines), ha="center", va="top", fontsize=1.1 * points)
    axes = figure.add_axes(((wide - width) / 2 / wide, below / tall, width / wide, height / tall))
    _show(axes, tinted(thumbnail, labels, classes))
    _scale_bar(axes, mm_per_pixel, width, height, points)
    figure.legend(
        handles=_patches(classes, texts), loc="lower center", bbox_to_anchor=(0.5, 0.2 * size / tall), ncol=columns,
        fontsize=points, frameon=False, columnspacing=1.2, handlelength=1.6,
    )  # fmt: skip
    figures.write(figure, path, compress_level=1)


def comparison(
    thumbnail: np.ndarray,
    panels: Sequence[Panel],
    classes: Sequence[SlideClass],
    path: str | os.PathLike,
    *,
    title: str,
    mm_per_pixel: float,
) -> None:
    """Writes a PNG with the thumbnail, the results, and the differences of the last two results, side by side.

    Args:
      thumbnail: uint8 [H, W, 3].
      panels: two or more results; the ground truth counts as one.
      classes: what the labels mean.
      path: the file; replaced if it exists.
      title: of the picture.
      mm_per_pixel: of the thumbnail.

    Raises:
      StorageError: it cannot be written.
    """
    first, second = panels[-2:]
    height, width = thumbnail.shape[:2]
    compared = _compared(first.labels, second.labels)
    share = 100 * (compared & (first.labels != second.labels)).sum() / max(1, compared.sum())
    names = [_name(panel) for panel in (first, second)]
    pictures = [
        ("slide", thumbnail),
        *((panel.title, tinted(thumbnail, panel.labels, classes)) for panel in panels),
        (f"{names[0]} and {names[1]} differ in {share:.1f} %, in the colors of {names[1]}",
         differences(thumbnail, first.labels, second.labels, classes)),
    ]  # fmt: skip

    columns = len(pictures) if height > 0.8 * width else math.ceil(len(pictures) / 2)
    rows = math.ceil(len(pictures) / columns)
    across = 4.2 if rows == 1 else 5.5  # inches of a panel
    down = min(max(across * height / width, 0.8), 12.0)
    headings = [
        "\n".join(wrapped for line in heading.split("\n") for wrapped in textwrap.wrap(line, int(10.5 * across)))
        for heading, _ in pictures
    ]
    heading_height = 0.08 + 0.19 * max(heading.count("\n") + 1 for heading in headings)
    wide, tall = columns * (across + 0.12) + 0.12, rows * (down + heading_height + 0.1) + 0.9
    figure = Figure(figsize=(wide, tall), dpi=_DPI)
    figure.suptitle("\n".join(textwrap.wrap(title, int(9 * wide))), y=1 - 0.1 / tall, va="top", fontsize=14)
    for index, (heading, (_, picture)) in enumerate(zip(headings, pictures, strict=True)):
        row, column = divmod(index, columns)
        left, top = 0.12 + column * (across + 0.12), 0.4 + row * (down + heading_height + 0.1) + heading_height
        axes = figure.add_axes((left / wide, 1 - (top + down) / tall, across / wide, down / tall))
        _show(axes, picture, interpolation="antialiased")
        axes.set_title(heading, fontsize=11, pad=4)
        if index == 0:
            _scale_bar(axes, mm_per_pixel, width, height, 10)
    texts = {entry.value: entry.name for entry in classes}
    if any((panel.labels == UNREADABLE).any() for panel in panels):
        texts[UNREADABLE] = "unreadable"
    handles = _patches(classes, texts)
    figure.legend(handles=handles, loc="lower center", ncol=len(handles), fontsize=11, frameon=False)
    figures.write(figure, path)


def _compared(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Returns the pixels where both results have a class: bool [H, W]."""
    return ~np.isin(first, (BACKGROUND, UNREADABLE)) & ~np.isin(second, (BACKGROUND, UNREADABLE))


def _name(panel: Panel) -> str:
    return panel.title.split("\n")[0].split(",")[0]


def _gray(thumbnail: np.ndarray) -> np.ndarray:
    """Returns the luminance, float32 [H, W, 1]."""
    return (thumbnail @ np.array(_LUMINANCE, np.float32))[..., None]


def _palette(classes: Sequence[SlideClass]) -> np.ndarray:
    palette = np.zeros((256, 3), np.uint8)
    for entry in classes:
        palette[entry.value] = entry.color
    return palette


def _outlines(labels: np.ndarray) -> np.ndarray:
    """Returns the pixels that have a different label next to them, along x or y: bool [H, W]."""
    edge = np.zeros(labels.shape, bool)
    for one, other in (
        ((slice(1, None),), (slice(None, -1),)),
        ((slice(None), slice(1, None)), (slice(None), slice(None, -1))),
    ):
        differs = labels[one] != labels[other]
        edge[one] |= differs
        edge[other] |= differs
    return edge


def _patches(classes: Sequence[SlideClass], texts: Mapping[int, str]) -> list[Patch]:
    """Legend entries of the labels in `texts`."""
    patches = [
        Patch(
            facecolor=(*np.divide(entry.color, 255), TINT + 0.2),
            edgecolor=tuple(np.divide(entry.color, 255)),
            linewidth=1.5,
            label=texts[entry.value],
        )
        for entry in classes
    ]
    if UNREADABLE in texts:
        patches.append(Patch(facecolor="0.8", edgecolor="0.59", hatch="////", label=texts[UNREADABLE]))
    return patches


def _show(axes: Axes, picture: np.ndarray, interpolation: str = "nearest") -> None:
    axes.imshow(picture, interpolation=interpolation, aspect="equal" if interpolation == "antialiased" else "auto")
    axes.set_xticks([])
    axes.set_yticks([])
    for spine in axes.spines.values():
        spine.set_edgecolor("0.6")


def _scale_bar(axes: Axes, mm_per_pixel: float, width: int, height: int, points: float) -> None:
    """Draws a bar in the lower left: 1, 2 or 5 times a power of ten, at most a quarter of the width."""
    most = 0.25 * width * mm_per_pixel
    if width < 100:  # no room
        return
    power = 10.0 ** math.floor(math.log10(most))
    length = max(step * power for step in (1, 2, 5) if step * power <= most * (1 + 1e-9))
    text = f"{length:g} mm" if length >= 1 else f"{1000 * length:g} µm"
    left = 0.02 * width
    axes.annotate(
        text, (left + length / mm_per_pixel / 2, 0.97 * height), xytext=(0, 0.35 * points), textcoords="offset points",
        ha="center", va="bottom", fontsize=points, bbox=dict(facecolor="white", alpha=0.75, linewidth=0, pad=2),
    )  # fmt: skip
    axes.plot(
        (left, left + length / mm_per_pixel), (0.97 * height,) * 2, color="black", linewidth=0.3 * points,
        solid_capstyle="butt", scalex=False, scaley=False,
    )  # fmt: skip


def _area(mm2: float) -> str:
    if 0 < mm2 < 0.001:
        return "< 0.001 mm²"
    return f"{mm2:.3g} mm²" if mm2 < 10 else f"{mm2:.1f} mm²"
