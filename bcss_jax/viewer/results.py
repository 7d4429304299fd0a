"""Finds the results of segmented slides in a folder.

A result that cannot be used has a line that says why, and does not affect the others.
"""

import dataclasses
import os
from pathlib import Path

from bcss_jax.common.regular_file import real_path
from bcss_jax.errors import DataError, printable
from bcss_jax.slides import slide_summary
from bcss_jax.slides.slide_summary import SlideSummary, read_summary


@dataclasses.dataclass(frozen=True)
class Result:
    """One slide, segmented by one model.

    Attributes:
      key: name of the result in URLs: the folder's path below the parent of the folder that is served.
      folder: of its files.
      summary: None if it cannot be used.
      problem: why it cannot be used, one line; None if it can.
    """

    key: str
    folder: Path
    summary: SlideSummary | None
    problem: str | None

    @property
    def title(self) -> str:
        """Name of the slide, or of the folder if the slide's name is not known."""
        return printable(self.summary.slide.name) if self.summary else self.key

    @property
    def model(self) -> str:
        """Name of the model; "" if it is not known."""
        return printable(self.summary.model["name"]) if self.summary else ""


def find(folder: Path) -> dict[str, Result]:
    """Returns the results in a folder, in its subfolders (slides) and in their subfolders (models).

    Args:
      folder: the output of many slides, or the folder of one slide. Links that lead out of it are not followed.

    Returns:
      key -> result, sorted by the names of the slides, then of the models. Empty if there are none.

    Raises:
      DataError: the folder cannot be read.
    """
    try:
        top = real_path(folder, strict=True)
        folders = [top, *_subfolders(top, top)]
    except OSError as error:
        raise DataError(
            f"{printable(folder)}: expected a folder that bcss_jax.segment wrote ({error.strerror})"
        ) from error
    for slide in folders[1:]:
        try:
            folders.extend(_subfolders(slide, top))
        except OSError:
            continue  # not readable for this user
    results = [result_in(each, top) for each in folders if inside(each / slide_summary.FILE, top)]
    results.sort(key=lambda result: (result.title, result.model, result.key))
    return {result.key: result for result in results}


def inside(path: Path, top: Path) -> bool:
    """Returns whether a file or folder exists and lies in `top`, after all links in its path are resolved.

    Args:
      path: the file or folder.
      top: a folder whose path has no links.
    """
    try:
        return real_path(path, strict=True).is_relative_to(top)
    except OSError:  # also if links form a circle
        return False


def _subfolders(folder: Path, top: Path) -> list[Path]:
    found = [folder / name for name in os.listdir(folder) if not name.startswith(".")]
    return [each for each in found if inside(each, top) and each.is_dir()]


def result_in(folder: Path, top: Path) -> Result:
    """Returns the result in one folder.

    Args:
      folder: of its files.
      top: the folder that is served; its path has no links.
    """
    key = printable(folder.relative_to(top.parent)).replace(os.sep, "/")
    try:
        return Result(key, folder, read_summary(folder / slide_summary.FILE), None)
    except DataError as error:
        return Result(key, folder, None, str(error))
