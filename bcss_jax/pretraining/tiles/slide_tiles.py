"""Tiles that are drawn from the tissue of slides."""

import logging
import zlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from bcss_jax.common.interruption import result_of
from bcss_jax.data.decoded_tiles import free_memory, holds
from bcss_jax.data.resolution.check import differ
from bcss_jax.errors import DataError, printable
from bcss_jax.pretraining.tiles.image_content import is_glass
from bcss_jax.pretraining.tiles.tiles import HeldTiles
from bcss_jax.slides.batch.slide_list import Entry
from bcss_jax.slides.batch.slide_overview import find_tissue, place_grid, read_thumbnail
from bcss_jax.slides.reading.reader_pool import ReaderPool
from bcss_jax.slides.tissue.tissue_mask import Tissue

LEAST_TISSUE = 0.5  # share of a tile that is tissue on the thumbnail
AT = " at "  # between the name of a slide and the place of a tile
log = logging.getLogger(__name__)


class _FromSlide(NamedTuple):
    """Tiles of a slide: their left and upper edges in pixels of level 0, and their pixels; and what is left out.

    Attributes:
      tiles: corner and pixels, uint8 [S, S, 3].
      unreadable: number of drawn tiles that cannot be decoded.
      glass: number of drawn tiles that show glass.
    """

    tiles: list[tuple[tuple[int, int], np.ndarray]]
    unreadable: int
    glass: int


def slide_tiles(
    slides: Sequence[Entry],
    size: int = 256,
    *,
    mpp: float,
    per_slide: int = 500,
    seed: int = 0,
    readers: int = 2,
    memory_share: float = 0.25,
    processes: int = 1,
    notes: Sequence[str] = (),
) -> HeldTiles:
    """Draws tiles from the tissue of slides and holds them in memory.

    A slide is divided into tiles that do not overlap. Of those that are tissue to at least one half, `per_slide` are
    drawn, or all if there are fewer. The tiles of a slide depend on the seed and the name of the slide, not on the
    others. Tiles that show glass or cannot be decoded are left out.

    Args:
      slides: see `slide_search.find_slides`. Tissue is found by color, unless the list names a file of it.
      size: pixels of a tile on each side.
      mpp: um per pixel of the tiles.
      per_slide: largest number of tiles of a slide.
      seed: of the drawing.
      readers: processes that read a slide at once.
      memory_share: of what is free, that the tiles may take.
      processes: of the run, each of which holds the tiles, maybe on the same machine.
      notes: of `slide_search.find_slides`.

    Raises:
      DataError: there is no tissue on any slide, a slide cannot be read or does not say its um per pixel, or the tiles
        need too much memory.
    """
    most = len(slides) * per_slide
    fits, why = holds(most * size * size * 3, memory_share, processes, free_memory())
    if not fits:
        raise DataError(
            f"slides: expected {most} tiles ({per_slide} of each slide) to be held in memory, found {why}; lower the "
            "number of tiles of a slide, or raise --config.data.memory_share"
        )
    pixels = np.empty((most, size, size, 3), np.uint8)
    names, used, without_tissue, damaged = [], [], [], []
    unreadable = glass = 0
    for entry in slides:
        try:
            found = _draw(entry, size, mpp=mpp, count=per_slide, seed=seed, readers=readers)
        except DataError as error:
            log.warning("%s", error)
            damaged.append(error)
            continue
        (used if found.tiles else without_tissue).append(entry)
        unreadable, glass = unreadable + found.unreadable, glass + found.glass
        for (x, y), tile in found.tiles:
            pixels[len(names)] = tile
            names.append(f"{entry.slide.name}{AT}{x},{y}")
    if damaged:
        others = f" ({len(damaged)} of {len(slides)} slides are unusable)" if len(damaged) > 1 else ""
        raise DataError(f"{damaged[0]}, or leave it out with --config.data.exclude=NAME{others}")
    empty = ", ".join(printable(entry.slide.name) for entry in without_tissue)
    if not names:
        raise DataError(
            f"slides: expected tissue, found none on any of {len(slides)} slides ({empty}); look at them, or name "
            "files of their tissue in a list of slides"
        )
    said = [f"{len(names)} tiles of {size} pixels at {mpp:g} um per pixel from {len(used)} slides", *notes]
    said += [f"left out: {len(without_tissue)} slides without tissue ({empty})"] if without_tissue else []
    said += [f"left out: {unreadable} tiles that cannot be decoded"] if unreadable else []
    said += [f"left out: {glass} tiles that show glass"] if glass else []
    return HeldTiles(pixels[: len(names)], names, (*said, f"tiles are held in memory: {why}"))


def slide_of(tile_name: str) -> str:
    """Returns the name of the slide that a tile is of."""
    return tile_name.rpartition(AT)[0]


def _draw(entry: Entry, size: int, *, mpp: float, count: int, seed: int, readers: int) -> _FromSlide:
    """Draws the tiles of a slide; see `slide_tiles`. There are none if it has no tissue."""
    name = printable(entry.slide.name)
    with ReaderPool(entry.slide, readers) as pool:
        found, grid = place_grid(entry, pool.info, mpp, _warn)
        if found[0] > mpp and differ(found[0], mpp):
            log.warning(
                "%s: scanned at %.4g um per pixel, tiles of %g are enlarged from it and blurred", name, found[0], mpp
            )
        thumbnail, _ = read_thumbnail(entry, pool, grid, _warn)
        corners = _corners(find_tissue(entry, thumbnail, grid, pool.info.bounds, _warn), size)
        rng = np.random.default_rng((seed, zlib.crc32(entry.slide.name.encode(errors="surrogateescape"))))
        drawn = corners[np.sort(rng.permutation(len(corners))[:count])]
        tiles, unreadable, glass = [], 0, 0
        requested = [((x, y), pool.submit(grid, x, y, size, size)) for x, y in drawn.tolist()]
        for (x, y), future in requested:
            block = result_of(future)
            if block.unreadable is not None:
                unreadable += 1
            elif is_glass(block.pixels):
                glass += 1
            else:
                tiles.append(((round(x * grid.scale[0]), round(y * grid.scale[1])), block.pixels))
    return _FromSlide(tiles, unreadable, glass)


def _warn(line: str) -> None:
    log.warning("%s", line)


def _corners(tissue: Tissue, size: int) -> np.ndarray:
    """Returns the left and upper edges of the tiles that are tissue, int [N, 2], in pixels of the grid."""
    grid, mask = tissue.grid, tissue.mask
    summed = np.pad(mask.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    rows, columns = (size * np.arange(length // size) for length in (grid.height, grid.width))
    (top, bottom), (left, right) = (
        (starts * of // length, np.maximum((starts + size) * of // length, starts * of // length + 1))
        for starts, length, of in zip((rows, columns), (grid.height, grid.width), mask.shape, strict=True)
    )
    inside = summed[np.ix_(bottom, right)] - summed[np.ix_(top, right)]
    inside += summed[np.ix_(top, left)] - summed[np.ix_(bottom, left)]
    share = inside / ((bottom - top)[:, None] * (right - left))
    down, across = np.nonzero(share >= LEAST_TISSUE)
    return np.stack([columns[across], rows[down]], 1)
