"""Where the models that segmented a slide disagree, as a coarse map.

Asking for labels where a committee of models disagrees is "query by committee" (Seung, Opper and Sompolinsky 1992). The
measure at a pixel is the share of the pairs of models that give it different classes: one minus the agreement by which
Fleiss' kappa rates an item (Fleiss 1971).
"""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from bcss_jax.annotator.drawing.geojson_file import SlideFacts
from bcss_jax.annotator.next_region.label_disagreement import CELL, label_disagreement
from bcss_jax.errors import ConfigError, DataError, printable
from bcss_jax.slides import slide_summary
from bcss_jax.slides.batch import comparison
from bcss_jax.slides.batch.slide_folder import model_folders
from bcss_jax.slides.grid import Grid
from bcss_jax.slides.slide_summary import SlideSummary, read_summary

_REMEDY = "segment the slide with several models (--checkpoint=a,b)"


class Disagreement(NamedTuple):
    """Where the members of an ensemble disagree.

    Attributes:
      cells: float32 [rows, columns], the share of each cell's area in dispute: of its pixels, the mean share of the
        pairs of members that disagree; 0 where there is no tissue.
      cell: side of a cell in level-0 pixels, along x and y.
      members: who disagrees, as a user reads it: "the models a and b".
    """

    cells: np.ndarray
    cell: tuple[float, float]
    members: str


def is_of_several_models(start: Path) -> bool:
    """Returns whether a folder holds a folder of results for each of several models, as `bcss_jax.segment` writes."""
    return start.is_dir() and not (start / slide_summary.FILE).exists() and bool(model_folders(start))


def read_disagreement(
    start: Path | None, slide: SlideFacts, fingerprint: dict, warn: Callable[[str], None]
) -> Disagreement:
    """Returns where the models disagree whose results are in a folder.

    Args:
      start: `--start-from`: the folder of a slide that several models segmented, or that of one of these models.
      slide: to which the results must belong.
      fingerprint: of the slide, as in `slide_folder.fingerprints`.
      warn: called with one line about each model that is left out.

    Raises:
      ConfigError: there is no folder.
      DataError: the results cannot be used, are of another slide, or of one model alone.
    """
    if start is None or not start.is_dir():
        raise ConfigError(
            "--next: expected --start-from=FOLDER with the results of several models for this slide, found "
            f"{'none' if start is None else f'--start-from={printable(start)}, a file'}; name the folder that python "
            "-m bcss_jax.segment wrote"
        )
    if not is_of_several_models(start) and (start.absolute().parent / comparison.FILE).exists():
        start = start.absolute().parent
    found = _finished(start, slide, fingerprint, warn) if is_of_several_models(start) else []
    if len(found) < 2:
        few = f"those of {printable(found[0][1].model['name'])} alone" if found else "those of one model"
        raise DataError(
            f"--next: {printable(start)}: expected the results of models that may disagree, found {few}; {_REMEDY}"
        )
    _check_classes(found)
    grid = min((summary.grid for _, summary in found), key=lambda each: each.mpp)
    labels = [(folder / summary.labels_file, summary.grid) for folder, summary in found]
    values = tuple(each.value for each in found[0][1].classes)
    names = [printable(summary.model["name"]) for _, summary in found]
    members = f"the models {', '.join(names[:-1])} and {names[-1]}" if len(names) < 5 else f"the {len(names)} models"
    return Disagreement(label_disagreement(labels, grid, values), _cell(grid), members)


def _cell(grid: Grid) -> tuple[float, float]:
    return CELL * grid.scale[0], CELL * grid.scale[1]


def _finished(
    folder: Path, slide: SlideFacts, fingerprint: dict, warn: Callable[[str], None]
) -> list[tuple[Path, SlideSummary]]:
    """Returns the folders of the models that have finished, with their summaries."""
    found = []
    for each in model_folders(folder):
        if not (each / slide_summary.FILE).exists():
            warn(f"warning: {printable(each)}: not finished, and left out of --next; run the segment command again")
            continue
        summary = read_summary(each / slide_summary.FILE)
        if summary.fingerprint != fingerprint or (summary.slide.width, summary.slide.height) != slide.size:
            raise DataError(
                f"{printable(each / slide_summary.FILE)}: expected the results of {printable(slide.name)}, found those "
                f"of {printable(summary.slide.name)} (another file: its size or content differs); give this slide's "
                "results"
            )
        found.append((each, summary))
    return found


def _check_classes(found: list[tuple[Path, SlideSummary]]) -> None:
    """Raises DataError unless the labels of all models mean the same."""
    (first, one), *others = found
    for folder, summary in others:
        ours, theirs = ([(each.value, each.name) for each in which.classes] for which in (one, summary))
        if ours != theirs:
            names = [", ".join(printable(name) for _, name in classes)[:100] for classes in (ours, theirs)]
            raise DataError(
                f"{printable(folder)}: expected the classes of {printable(first)} ({names[0]}), found {names[1]}; "
                "only models of one label scheme can be compared"
            )
