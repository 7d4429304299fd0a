"""Reads blocks of a slide at the resolution of a grid."""

from collections.abc import Iterator

import numpy as np
from PIL import Image

from bcss_jax.slides.grid import Grid
from bcss_jax.slides.reading.backend import Level, Slide, TileError

COARSER_BY = 0.01  # a level may be coarser than the grid by this fraction: 0.2502 um serves 0.25 um
EXACT = 0.05  # if a level and the grid drift apart by at most this many pixels over the slide, pixels are copied
SOURCE_PIXELS = 4096 * 4096  # limit on the pixels of a level that are held to make a piece of a block
AREA_FROM = 8.0  # from this reduction on, areas are averaged: it looks the same as Lanczos and needs no margin


def best_level(levels: tuple[Level, ...], scale: float) -> int:
    """Returns the coarsest level that is not coarser than a grid whose pixels span `scale` level-0 pixels."""
    fitting = [number for number, level in enumerate(levels) if level.downsample <= scale * (1 + COARSER_BY)]
    return fitting[-1] if fitting else 0


def read_block(
    slide: Slide, grid: Grid, x: int, y: int, width: int, height: int
) -> tuple[np.ndarray, np.ndarray | None]:
    """Reads a block of a grid from the level that suits it, resampled without aliasing (Lanczos).

    A pixel does not depend on the block that it is read with. This is exact where the level has the grid's resolution.
    Where the level is resampled, a pixel may differ by one gray level, and by two in one pixel of a hundred thousand,
    because Pillow rounds after each axis. Areas that cannot be decoded are white. Where the level is resampled, the
    white affects the three pixels around such an area.

    Args:
      slide: a slide opened by `open_slide`.
      grid: the grid of the slide.
      x: left edge of the block in pixels of the grid.
      y: top edge of the block in pixels of the grid.
      width: in pixels of the grid; the block lies within it.
      height: in pixels of the grid.

    Returns:
      uint8 [height, width, 3]; and bool [height, width] that is True where pixels of the slide could not be decoded, or
      None if all could.

    Raises:
      ValueError: the block is not within the grid.
      OSError: the slide cannot be reopened after a failure.
    """
    if not (0 <= x and 0 <= y and 0 < width <= grid.width - x and 0 < height <= grid.height - y):
        raise ValueError(
            f"a block of {width}x{height} at ({x}, {y}) does not lie in a grid of {grid.width}x{grid.height}"
        )
    number = best_level(slide.levels, min(grid.scale))
    level = slide.levels[number]
    scale = grid.scale[0] / level.downsample, grid.scale[1] / level.downsample
    if all(abs(along - 1) * size <= EXACT for along, size in zip(scale, (grid.width, grid.height), strict=True)):
        return _read_extended(slide, number, x, y, width, height)
    pixels = np.empty((height, width, 3), np.uint8)
    unreadable = np.zeros((height, width), bool)
    for left, top, columns, rows in _pieces(width, height, scale):
        piece = np.s_[top : top + rows, left : left + columns]
        pixels[piece], missing = _resampled(slide, number, scale, x + left, y + top, columns, rows)
        if missing is not None:
            unreadable[piece] = missing
    return pixels, unreadable if unreadable.any() else None


def _resampled(
    slide: Slide, level: int, scale: tuple[float, float], x: int, y: int, width: int, height: int
) -> tuple[np.ndarray, np.ndarray | None]:
    """Reads a piece of a block whose pixels span `scale` pixels of the level, with the margin that the filter needs."""
    averaged = min(scale) >= AREA_FROM
    kernel, reach = (Image.Resampling.BOX, 0.5) if averaged else (Image.Resampling.LANCZOS, 3.0)
    size = slide.levels[level][:2]
    spans = []  # along x and y: first and last source pixel, and the box within them
    for start, count, along, level_size in zip((x, y), (width, height), scale, size, strict=True):
        low, high = start * along, (start + count) * along
        margin = int(reach * max(1.0, along)) + 2
        first = max(0, int(low) - margin)
        # The grid covers all of level 0; a coarser level, rounded down to whole pixels, may end before it.
        last = min(max(level_size, int(np.ceil(high - EXACT))), int(high) + margin)
        spans.append((first, last, low - first, min(high - first, float(last - first))))
    (x0, x1, left, right), (y0, y1, top, bottom) = spans
    pixels, missing = _read_extended(slide, level, x0, y0, x1 - x0, y1 - y0)
    # One axis at a time: otherwise Pillow chooses their order by the block's shape, and it clips to 0..255 in between.
    image = Image.fromarray(pixels).resize((width, y1 - y0), kernel, box=(left, 0, right, y1 - y0))
    pixels = np.array(image.resize((width, height), kernel, box=(0, top, width, bottom)))
    if missing is not None:
        missing = _touched(missing, (left, top), scale, width, height)
        pixels[missing] = 255
    return pixels, missing


def _touched(
    missing: np.ndarray, origin: tuple[float, float], scale: tuple[float, float], width: int, height: int
) -> np.ndarray:
    """Returns whether any source pixel under each pixel of the piece is missing: bool [height, width]."""
    counts = np.zeros((missing.shape[0] + 1, missing.shape[1] + 1), np.int32)
    counts[1:, 1:] = missing.cumsum(0).cumsum(1)
    (x0, x1), (y0, y1) = (
        _under(start, along, count, size)
        for start, along, count, size in zip(origin, scale, (width, height), missing.shape[::-1], strict=True)
    )
    inside = counts[np.ix_(y1, x1)] - counts[np.ix_(y0, x1)] - counts[np.ix_(y1, x0)] + counts[np.ix_(y0, x0)]
    return inside > 0


def _under(start: float, along: float, count: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the first and last + 1 source pixel under each of `count` pixels, ignoring overlaps of a hundredth."""
    edges = start + np.arange(count + 1) * along
    first = np.clip(np.floor(edges[:-1] + 0.01).astype(int), 0, size - 1)
    return first, np.clip(np.ceil(edges[1:] - 0.01).astype(int), first + 1, size)


def _pieces(width: int, height: int, scale: tuple[float, float]) -> Iterator[tuple[int, int, int, int]]:
    """Yields (left, top, width, height) of pieces of a block that need at most about `SOURCE_PIXELS` source pixels."""
    side = SOURCE_PIXELS**0.5
    columns, rows = (max(1, int(side / max(1.0, along))) for along in scale)
    for top in range(0, height, rows):
        for left in range(0, width, columns):
            yield left, top, min(columns, width - left), min(rows, height - top)


def _read_extended(
    slide: Slide, level: int, x: int, y: int, width: int, height: int
) -> tuple[np.ndarray, np.ndarray | None]:
    """Reads a region that may extend a little beyond the level, where the last pixels are repeated."""
    size = slide.levels[level]
    x0, y0 = min(x, size.width - 1), min(y, size.height - 1)
    columns, rows = min(x + width, size.width) - x0, min(y + height, size.height) - y0
    columns, rows = max(1, columns), max(1, rows)
    pixels, missing = _read_decodable(slide, level, x0, y0, columns, rows)
    if (columns, rows) == (width, height):
        return pixels, missing
    index = np.ix_(
        np.minimum(np.arange(y, y + height), size.height - 1) - y0,
        np.minimum(np.arange(x, x + width), size.width - 1) - x0,
    )
    return pixels[index], None if missing is None else missing[index]


def _read_decodable(
    slide: Slide, level: int, x: int, y: int, width: int, height: int
) -> tuple[np.ndarray, np.ndarray | None]:
    """Reads a region of a level; if it cannot be decoded, reads tile by tile and fills undecodable tiles with white."""
    try:
        return slide.read(level, x, y, width, height), None
    except TileError:
        slide.reopen()
    pixels = np.full((height, width, 3), 255, np.uint8)
    missing = np.zeros((height, width), bool)
    tile_width, tile_height = slide.tile_size(level)
    for tile_top in range(y - y % tile_height, y + height, tile_height):
        for tile_left in range(x - x % tile_width, x + width, tile_width):
            left, top = max(x, tile_left), max(y, tile_top)
            right, bottom = min(x + width, tile_left + tile_width), min(y + height, tile_top + tile_height)
            tile = np.s_[top - y : bottom - y, left - x : right - x]
            try:
                pixels[tile] = slide.read(level, left, top, right - left, bottom - top)
            except TileError:
                slide.reopen()
                missing[tile] = True
    return pixels, missing if missing.any() else None
