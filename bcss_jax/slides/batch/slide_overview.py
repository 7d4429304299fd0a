"""What is known of a slide before its windows are read: its grid, its thumbnail, and where it has tissue."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np

from bcss_jax.data.names import contradicts, mpp_of
from bcss_jax.data.resolution.check import resolved_mpp
from bcss_jax.errors import printable
from bcss_jax.slides.batch.slide_list import Entry
from bcss_jax.slides.grid import Grid, grid_of
from bcss_jax.slides.reading.reader_pool import Block, ReaderPool, SlideInfo
from bcss_jax.slides.tissue.blank_slide import BLANK, is_blank
from bcss_jax.slides.tissue.stain_check import out_of_domain
from bcss_jax.slides.tissue.tissue_by_color import looks_like_glass, tissue_by_color
from bcss_jax.slides.tissue.tissue_file import read_tissue
from bcss_jax.slides.tissue.tissue_mask import Tissue

TISSUE_MPP = 4.0  # um per pixel of the thumbnail that tissue is found on
TISSUE_SIDE = 4096  # pixels, at most, of the longer side of that thumbnail
NEARLY_ALL = 0.95  # share of tissue from which on a slide may be glass that was not recognized

Box = tuple[int, int, int, int]  # x, y, width, height
Warn = Callable[[str], None]


def place_grid(entry: Entry, info: SlideInfo, model_mpp: float, warn: Warn) -> tuple[tuple[float, float], Grid]:
    """Returns the um per level-0 pixel along x and y, and the grid of a slide at the resolution of a model.

    Args:
      entry: the slide, and its resolution if the user gave one.
      info: what the slide says of itself.
      model_mpp: um per pixel that the model was trained at.
      warn: called with one line about everything that is odd but usable.

    Raises:
      DataError: the slide does not say its resolution, or an impossible one.
    """
    name = printable(entry.slide.name)
    for note in info.notes:
        warn(f"{name}: {note}")
    mpp = resolved_mpp(entry.slide, info.stated_mpp, entry.mpp, warn)
    said = mpp_of(entry.slide.stem)
    if said is not None and all(contradicts(said, each) for each in mpp):
        warn(f"{name}: its name says {said} um per pixel, but {mpp[0]:.4g} is used; if the name is right, give --mpp")
    return mpp, grid_of(info.width, info.height, mpp, model_mpp)


def read_thumbnail(entry: Entry, pool: ReaderPool, grid: Grid, warn: Warn) -> tuple[Block, str | None]:
    """Returns the thumbnail that tissue is found on, and why the slide cannot be bright-field H&E (None if it can).

    Args:
      entry: the slide.
      pool: reads it.
      grid: of the slide.
      warn: called with one line about a slide that shows nothing, or no H&E.

    Raises:
      DataError: it cannot be read.
    """
    name = printable(entry.slide.name)
    longest = max(grid.width, grid.height)
    thumbnail = pool.thumbnail(min(TISSUE_SIDE, math.ceil(longest * grid.mpp / TISSUE_MPP)))
    if thumbnail.unreadable is None and is_blank(thumbnail.pixels):
        warn(f"{name}: {BLANK}")
    problem = out_of_domain(thumbnail.pixels)
    if problem:
        warn(f"{name}: has {problem}; the model was trained on H&E in bright field, so do not rely on its result")
    return thumbnail, problem


def find_tissue(
    entry: Entry, thumbnail: Block, grid: Grid, bounds: Box | None, warn: Warn, *, everywhere: bool = False
) -> Tissue:
    """Returns the tissue of a slide: from the file that the user gave for it, or found by color.

    Args:
      entry: the slide.
      thumbnail: of the slide.
      grid: of the slide.
      bounds: of the scanned area in level-0 pixels, if the slide states it.
      warn: called with one line about everything that is odd but usable.
      everywhere: without a file, take the whole slide for tissue.

    Raises:
      DataError: the file cannot be used.
    """
    if entry.tissue is not None:
        return read_tissue(Path(entry.tissue), grid, origin_of(bounds), warn)
    if everywhere:
        return Tissue(np.ones((1, 1), bool), grid)
    height, width = thumbnail.pixels.shape[:2]
    mpp = (grid.mpp * grid.width / width, grid.mpp * grid.height / height)
    tissue = Tissue(tissue_by_color(thumbnail.pixels, mpp, thumbnail.unreadable), grid)
    if tissue.share > NEARLY_ALL and looks_like_glass(thumbnail.pixels, tissue.mask):
        warn(
            f"{printable(entry.slide.name)}: nearly the whole slide is taken for tissue, but most of it has one "
            "color, as glass has; look at overlay.png, and mark the tissue with --tissue=FILE"
        )
    return tissue


def origin_of(bounds: Box | None) -> tuple[int, int]:
    """Returns the origin of QuPath's coordinates: the corner of the scanned area if the slide states it."""
    return bounds[:2] if bounds else (0, 0)
