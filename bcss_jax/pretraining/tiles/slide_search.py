"""Finds the slides that tiles are drawn from: a folder, or a list."""

from collections.abc import Sequence
from pathlib import Path

from bcss_jax.data.slides.pairs import MASK_WORDS, SCANS
from bcss_jax.errors import ConfigError, DataError, printable
from bcss_jax.pretraining.tiles.image_search import find_images, without_excluded
from bcss_jax.slides.batch.slide_list import Entry, read_list

SLIDES = (*SCANS, ".tif", ".tiff")


def find_slides(
    folders: Sequence[Path], slide_list: Path | None, exclude: Sequence[str] = ()
) -> tuple[list[Entry], tuple[str, ...]]:
    """Returns the slides below some folders, or of a list, and notes about what is left out.

    Args:
      folders: searched to any depth for scans and TIFFs, without those whose name ends as that of a mask.
      slide_list: as `slide_list.read_list`; None: the folders. PNG and JPEG count as slides only in a list.
      exclude: see `image_search.find_images`; of a list, patterns are compared with the paths of the slides.

    Raises:
      DataError: a folder or the list cannot be read, or there is no slide.
      ConfigError: a pattern excludes nothing, or there are neither folders nor a list, or both.
    """
    if bool(folders) == (slide_list is not None):
        raise ConfigError(
            f"slides: expected a folder or a list, found {'both' if folders else 'none'}; give one of them"
        )
    if slide_list is not None:
        return _of_list(slide_list, exclude)
    found, excluded = find_images(folders, exclude, SLIDES)
    masks = [name for name, path in found if path.stem.lower().endswith(MASK_WORDS)]
    slides = [Entry(path) for name, path in found if name not in masks]
    if not slides:
        raise DataError(f"{', '.join(map(printable, folders))}: expected slides, found only masks; add slides")
    notes = [f"left out: {excluded} slides that are excluded"] if excluded else []
    notes += (
        [f"left out: {len(masks)} files that are masks by their name (first {printable(masks[0])})"] if masks else []
    )
    return slides, tuple(notes)


def _of_list(slide_list: Path, exclude: Sequence[str]) -> tuple[list[Entry], tuple[str, ...]]:
    entries = read_list(slide_list)
    named = [(entry.slide.as_posix(), entry) for entry in entries]
    left = [entry for _, entry in without_excluded(named, exclude, printable(slide_list))]
    excluded = len(entries) - len(left)
    return left, (f"left out: {excluded} slides that are excluded",) if excluded else ()
