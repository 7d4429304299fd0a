"""Draws where the class token of an encoder looks: one map for each head of the last block."""

from collections.abc import Sequence

import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from bcss_jax.pretraining.pictures.tile_encoder import TileEncoder

MOST_HEADS = 8
COLORS = "cividis"  # the same order of brightness for all kinds of color vision


def attention_maps(encoder: TileEncoder, images: np.ndarray, names: Sequence[str], title: str) -> Figure:
    """Draws the attention of the class token over tiles.

    Args:
      encoder: of the tiles.
      images: uint8 [N, S, S, 3], N up to about 6.
      names: of the tiles.
      title: of the figure.
    """
    images = encoder.whole_patches(images)
    attention = encoder.attention(images)
    heads = attention.shape[1]
    shown = min(heads, MOST_HEADS)
    scale = Normalize(0, float(np.percentile(attention[:, :shown], 99.5)))
    cell = 1.5
    figure = Figure(figsize=(cell * (shown + 1) + 1.0, cell * 1.12 * len(images) + 0.9), dpi=110, layout="constrained")
    figure.suptitle(title, fontsize=12)
    panels = figure.subplots(len(images), shown + 1, squeeze=False)
    for row, image, maps, name in zip(panels, images, attention, names, strict=True):
        row[0].imshow(image)
        row[0].set_xlabel(short(name), fontsize=7)
        for axes, values in zip(row[1:], maps, strict=False):
            axes.imshow(values, cmap=COLORS, norm=scale, interpolation="nearest")
        for axes in row:
            axes.set_xticks([])
            axes.set_yticks([])
    panels[0, 0].set_title("tile", fontsize=9)
    for head, axes in enumerate(panels[0, 1:], 1):
        axes.set_title(f"head {head}", fontsize=9)
    bar = figure.colorbar(ScalarMappable(scale, COLORS), ax=panels, shrink=0.8, aspect=30, extend="max")
    bar.set_label("attention of the class token (1: to all patches equally)", fontsize=9)
    if shown < heads:
        figure.text(0.5, 0.0, f"{heads - shown} further heads are not shown", ha="center", va="bottom", fontsize=8)
    return figure


def short(name: str, most: int = 26) -> str:
    """Returns the end of a long name."""
    return name if len(name) <= most else f"…{name[1 - most :]}"
