"""The first three principal components of patch features as colors, over a whole slide beside its overview.

The features themselves are never held: the components are found on a sample of windows, and of every further window
only the three colors of each patch are kept, 3 bytes for each patch of the slide.
"""

import collections
import itertools
import logging
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import cv2
import numpy as np
from matplotlib.figure import Figure

from bcss_jax.common.interruption import result_of, safe_point
from bcss_jax.errors import DataError, printable
from bcss_jax.pretraining.pictures.components import Components, find_components, glass_patches
from bcss_jax.pretraining.pictures.tile_encoder import TileEncoder
from bcss_jax.slides.batch.slide_list import Entry
from bcss_jax.slides.batch.slide_overview import find_tissue, place_grid, read_thumbnail
from bcss_jax.slides.grid import Grid
from bcss_jax.slides.reading.reader_pool import ReaderPool
from bcss_jax.slides.tissue.tissue_mask import Tissue

SAMPLED = 64  # windows that the components are found on
SEED = 0
MARGIN = 2  # patches at each edge of a window that the next window shows better, because it sees what is around them
WINDOWS_AHEAD = 8
SHOWN = 2000  # pixels of the longer side of a panel
log = logging.getLogger(__name__)


class _Window(NamedTuple):
    """Left and upper edge of a window, and the part of it that is taken: first and last + 1 column and row; patches."""

    x: int
    y: int
    columns: tuple[int, int]
    rows: tuple[int, int]


def slide_components(
    slide: Entry, encoder: TileEncoder, mpp: float, *, window: int = 256, readers: int = 2
) -> tuple[np.ndarray, Figure]:
    """Computes and draws the components of a slide.

    Args:
      slide: the slide, and its resolution if the user gave one.
      encoder: of the tiles.
      mpp: um per pixel of the tiles that the encoder was trained with.
      window: pixels of a window on each side; the whole patches of it are taken.
      readers: processes that read the slide.

    Returns:
      The colors of the patches, uint8 [rows, columns, 3], white without tissue; and the figure.

    Raises:
      DataError: the slide cannot be read, has no tissue, or is smaller than four patches.
    """
    name, patch = printable(slide.slide.name), encoder.patch
    with ReaderPool(slide.slide, readers) as pool:
        _, grid = place_grid(slide, pool.info, mpp, _warn)
        thumbnail, _ = read_thumbnail(slide, pool, grid, _warn)
        tissue = find_tissue(slide, thumbnail, grid, pool.info.bounds, _warn)
        rows, columns = grid.height // patch, grid.width // patch
        side = min(window // patch, rows, columns)
        if side < 4:
            raise DataError(
                f"{name}: expected at least four patches of {patch} pixels on each side, found {grid.width}x"
                f"{grid.height} pixels at {mpp:g} um per pixel; give another um per pixel"
            )
        windows = [each for each in _windows(rows, columns, side) if _has_tissue(tissue, each, side * patch, patch)]
        if not windows:
            raise DataError(f"{name}: expected tissue, found none; look at the slide, or name a file of its tissue")
        components = _find(pool, grid, encoder, windows, side)
        colors = np.full((rows, columns, 3), 255, np.uint8)
        for each, pixels in _read(pool, grid, windows, side, patch):
            found = components.colors(encoder.patches(pixels))
            found[glass_patches(pixels, patch)] = 255
            for place, part in zip(each, found, strict=True):
                (left, right), (top, bottom) = place.columns, place.rows
                colors[place.y + top : place.y + bottom, place.x + left : place.x + right] = part[
                    top:bottom, left:right
                ]
        colors[~_tissue_of_patches(tissue, rows, columns, patch)] = 255
        overview = pool.thumbnail(min(SHOWN, max(grid.width, grid.height))).pixels
    return colors, _figure(name, overview, colors, components, grid, patch)


def _warn(line: str) -> None:
    log.warning("%s", line)


def _windows(rows: int, columns: int, side: int) -> Iterator[_Window]:
    """Yields windows that cover the slide, row by row, in patches; each patch is taken from one of them."""
    for (y, top), (x, left) in itertools.product(_starts(rows, side), _starts(columns, side)):
        yield _Window(x, y, left, top)


def _starts(length: int, side: int) -> list[tuple[int, tuple[int, int]]]:
    """Returns where windows start along an axis, and the part that is taken of each."""
    margin = MARGIN if side > 2 * MARGIN else 0
    starts = list(range(0, max(length - side, 0), side - 2 * margin)) + [length - side]
    ends = [start + side - margin for start in starts[:-1]] + [length]
    return [(s, (max(0, begin - s), end - s)) for s, begin, end in zip(starts, [0, *ends], ends, strict=False)]


def _has_tissue(tissue: Tissue, window: _Window, size: int, patch: int) -> bool:
    y, x = window.y * patch, window.x * patch
    return bool(tissue.pixels(y, y + size, x, x + size)[:: patch // 2, :: patch // 2].any())


def _tissue_of_patches(tissue: Tissue, rows: int, columns: int, patch: int) -> np.ndarray:
    """Returns which patches have tissue in their middle, bool [rows, columns]."""
    grid, (height, width) = tissue.grid, tissue.mask.shape
    down, across = (np.arange(count) * patch + patch // 2 for count in (rows, columns))
    return tissue.mask[np.ix_(down * height // grid.height, across * width // grid.width)]


def _read(
    pool: ReaderPool, grid: Grid, windows: Sequence[_Window], side: int, patch: int
) -> Iterator[tuple[list[_Window], np.ndarray]]:
    """Yields windows in groups, with their pixels uint8 [N, S, S, 3]; a few are read ahead."""
    size, pending = side * patch, collections.deque()
    rest = iter(windows)
    try:
        while True:
            for window in itertools.islice(rest, 2 * WINDOWS_AHEAD - len(pending)):
                pending.append((window, pool.submit(grid, window.x * patch, window.y * patch, size, size)))
            if not pending:
                return
            group = [pending.popleft() for _ in range(min(WINDOWS_AHEAD, len(pending)))]
            safe_point()
            yield [window for window, _ in group], np.stack([result_of(future).pixels for _, future in group])
    finally:
        for _, future in pending:
            future.cancel()


def _find(pool: ReaderPool, grid: Grid, encoder: TileEncoder, windows: Sequence[_Window], side: int) -> Components:
    """Returns the components of a sample of windows that is the same every time."""
    drawn = np.random.default_rng(SEED).permutation(len(windows))[:SAMPLED]
    features = []
    for _, pixels in _read(pool, grid, [windows[i] for i in np.sort(drawn)], side, encoder.patch):
        features.append(encoder.patches(pixels)[~glass_patches(pixels, encoder.patch)])
    every = np.concatenate(features)
    if len(every) < 4:
        raise DataError("the slide shows hardly anything but glass; give another slide")
    return find_components(every)


def _figure(
    name: str, overview: np.ndarray, colors: np.ndarray, components: Components, grid: Grid, patch: int
) -> Figure:
    mm = grid.mpp / 1000
    ratio = grid.height / grid.width
    one_above_the_other = ratio < 2 / 3
    width, height = (9, 2 * 8.4 * ratio + 1.8) if one_above_the_other else (13, 6.2 * ratio + 1.4)
    figure = Figure(figsize=(width, min(height, 16)), dpi=130, layout="constrained")
    figure.suptitle(name, fontsize=12)
    panels = figure.subplots(*((2, 1) if one_above_the_other else (1, 2)))
    rows, columns = colors.shape[:2]
    for axes, picture, heading, size in (
        (panels[0], overview, "slide", (grid.width, grid.height)),
        (panels[1], colors, "components of the features", (columns * patch, rows * patch)),
    ):
        shrink = max(picture.shape[:2]) / SHOWN
        if shrink > 1:
            picture = cv2.resize(picture, None, fx=1 / shrink, fy=1 / shrink, interpolation=cv2.INTER_AREA)
        axes.imshow(picture, extent=(0, size[0] * mm, size[1] * mm, 0), interpolation="nearest")
        axes.set_xlim(0, grid.width * mm)
        axes.set_ylim(grid.height * mm, 0)
        axes.set_title(heading, fontsize=10)
        axes.set_xlabel("mm", fontsize=9)
        axes.tick_params(labelsize=8)
    figure.supxlabel(components.legend, fontsize=9)
    return figure
