"""Compares the palettes of all masks of a command: a color must stand for the same code in each of them."""

from collections.abc import Callable, Sequence
from pathlib import Path

from bcss_jax.common.interruption import safe_point
from bcss_jax.data.decoding.open_image import open_image
from bcss_jax.data.image_files import read_tissue_mask
from bcss_jax.data.mask_codes import ContradictoryColorsError, PaletteColors, check_one_channel, needs_table
from bcss_jax.errors import DataError
from bcss_jax.slides.batch.slide_list import Entry
from bcss_jax.slides.reading.mask_file import open_mask
from bcss_jax.slides.tissue.tissue_file import REGIONS


def check_mask_colors(entries: Sequence[Entry], codes: str | int) -> None:
    """Compares the masks of ground truth with one another, and the masks of tissue, before anything is computed.

    Only masks with a palette, or whose samples are shown as other gray levels, are read. Masks that cannot be used are
    left to the turn of their slide.

    Args:
      entries: the slides.
      codes: of the ground truth, as in `open_mask`.

    Raises:
      ContradictoryColorsError: a color stands for one code in one mask and for another one in another mask.
    """
    truths = {Path(entry.truth) for entry in entries if entry.truth}
    tissues = {Path(entry.tissue) for entry in entries if entry.tissue}

    def read_truth(path: Path, colors: PaletteColors) -> None:
        with open_mask(path, codes, colors, _ignore):
            pass

    _compare(sorted(truths), read_truth)
    regions = {path for path in tissues if path.suffix.lower() in REGIONS}
    _compare(sorted(tissues - regions), lambda path, colors: read_tissue_mask(path, _ignore, colors))


def _compare(paths: list[Path], read: Callable[[Path, PaletteColors], object]) -> None:
    paths = [path for path in paths if _needs_table(path)]
    colors = PaletteColors()
    for path in paths if len(paths) > 1 else ():
        safe_point()
        try:
            read(path, colors)
        except ContradictoryColorsError:
            raise
        except DataError:
            continue


def _needs_table(path: Path) -> bool:
    try:
        stored = open_image(path)
        check_one_channel(stored)
    except DataError:
        return False
    return needs_table(stored)


def _ignore(warning: str) -> None:
    """Drops a warning, which is given when the mask is used."""
