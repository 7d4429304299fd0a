"""Compares the coarser levels of a slide with the finest one, because tissue is searched for on a coarse level.

Some programs leave tiles of coarse levels out, or fill them with black or white, or save another picture as a level.
"""

import numpy as np

from bcss_jax.slides.reading.backend import Level, Slide, TileError

SPOTS = 4  # along each side, at which two levels are compared
SPOT = 32  # pixels of the coarser level, at most, along each side of a spot
READ = 256  # pixels of the finer level, at most
DIFFERENT = 40  # gray levels between the mean colors of a spot on two levels; sound levels differ by a few
CELLS = 4  # along each side of a spot, whose colors show another picture, or a mirrored one, of the same mean color
DIFFERENT_CELLS = 20  # gray levels between the colors of these cells, on average over a spot


def true_levels(slide: Slide, incomplete: frozenset[tuple[int, int]]) -> tuple[tuple[Level, ...], tuple[str, ...]]:
    """Returns the levels of a slide up to the first one that does not show what the level before shows.

    Args:
      slide: as it is stored.
      incomplete: width and height of levels in which tiles are missing that the finest level has.

    Returns:
      The levels, and a line if some are left out.
    """
    for number, level in enumerate(slide.levels[1:], 1):
        missing = (level.width, level.height) in incomplete
        if missing or not _alike(slide, number):
            what = "lacks tiles that the finest level has" if missing else "shows something else than the finest level"
            note = (
                f"its coarser level of {level.width}x{level.height} pixels {what}; {len(slide.levels) - number} of its "
                f"{len(slide.levels)} levels are not used"
            )
            return slide.levels[:number], (note,)
    return slide.levels, ()


def _alike(slide: Slide, number: int) -> bool:
    """Returns whether a level has the colors of the level before it at all spots that can be decoded."""
    finer, coarser = slide.levels[number - 1], slide.levels[number]
    ratio = coarser.downsample / finer.downsample
    side = int(max(1, min(SPOT, READ / ratio, coarser.width, coarser.height)))
    for down in range(SPOTS):
        for along in range(SPOTS):
            x, y = (
                int((size - side) * (spot + 0.5) / SPOTS)
                for size, spot in ((coarser.width, along), (coarser.height, down))
            )
            x0, y0 = min(round(x * ratio), finer.width - 1), min(round(y * ratio), finer.height - 1)
            width, height = (
                max(1, min(round(side * ratio), size - start))
                for size, start in ((finer.width, x0), (finer.height, y0))
            )
            cells = CELLS if min(side, width, height) >= SPOT // 2 else 1
            try:
                difference = np.abs(
                    _colors_of_cells(slide.read(number, x, y, side, side), cells)
                    - _colors_of_cells(slide.read(number - 1, x0, y0, width, height), cells)
                )
            except TileError:  # damage is reported where it is needed
                slide.reopen()
                continue
            if difference[0].max() > DIFFERENT or difference[1:].max(axis=1).mean() > DIFFERENT_CELLS:
                return False
    return True


def _colors_of_cells(pixels: np.ndarray, count: int) -> np.ndarray:
    """Returns the mean colors of a spot and of its cells, `count` along each side, float [1 + cells, 3]."""
    cells = [cell for row in np.array_split(pixels, count) for cell in np.array_split(row, count, axis=1)]
    return np.array([part.mean(axis=(0, 1)) for part in (pixels, *cells)])
