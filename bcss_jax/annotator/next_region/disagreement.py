"""Where the models that segmented a slide disagree, or the flips of one model, as a coarse map.

Asking for labels where a committee of models disagrees is "query by committee" (Seung, Opper and Sompolinsky 1992). The
measure at a pixel is the share of the pairs of members that give it different classes: one minus the agreement by which
Fleiss' kappa rates an item (Fleiss 1971).
"""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from bcss_jax.annotator.drawing.geojson_file import SlideFacts
from bcss_jax.annotator.next_region.label_disagreement import label_disagreement
from bcss_jax.errors import ConfigError, DataError, printable
from bcss_jax.slides import slide_summary
from bcss_jax.slides.batch import comparison
from bcss_jax.slides.batch.slide_folder import is_of_several_models, model_folders
from bcss_jax.slides.grid import Grid
from bcss_jax.slides.slide_summary import SlideSummary, read_summary
from bcss_jax.slides.store.disagreement_map import CELL, read_map

_REMEDY = "segment the slide with several models (--checkpoint=a,b) or with --tta, and --overwrite if it was before"


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


def read_disagreement(
    start: Path | None, slide: SlideFacts, fingerprint: dict, warn: Callable[[str], None]
) -> Disagreement:
    """Returns where the models disagree whose results are in a folder, or else the flips of one model.

    Args:
      start: `--start-from`: the folder of a slide that several models segmented, that of one of these models, or that
        of a slide that one model segmented with flips.
      slide: to which the results must belong.
      fingerprint: of the slide, as in `slide_folder.fingerprints`.
      warn: called with one line about each model that is left out.

    Raises:
      ConfigError: there is no folder.
      DataError: the results cannot be used, are of another slide, or do not say who disagrees.
    """
    if start is None or not start.is_dir():
        found = "none" if start is None else f"--start-from={printable(start)}, a file"
        raise ConfigError(
            f"--next: expected --start-from=FOLDER with the results of this slide, found {found}; name the folder that "
            "python -m bcss_jax.segment wrote"
        )
    several = start
    if not is_of_several_models(start) and (start.absolute().parent / comparison.FILE).exists():
        several = start.absolute().parent
    found = _finished(several, slide, fingerprint, warn) if is_of_several_models(several) else []
    if len(found) > 1:
        return _of_models(found)
    if found:
        start = found[0][0]
    if not (start / slide_summary.FILE).exists():
        raise DataError(
            f"--next: {printable(start)}: expected the results of a slide ({slide_summary.FILE}), found none; {_REMEDY}"
        )
    return _of_flips(start, _summary(start, slide, fingerprint))


def _of_models(found: list[tuple[Path, SlideSummary]]) -> Disagreement:
    _check_classes(found)
    grid = min((summary.grid for _, summary in found), key=lambda each: each.mpp)
    labels = [(folder / summary.labels_file, summary.grid) for folder, summary in found]
    values = tuple(each.value for each in found[0][1].classes)
    names = [printable(summary.model["name"]) for _, summary in found]
    members = f"the models {', '.join(names[:-1])} and {names[-1]}" if len(names) < 5 else f"the {len(names)} models"
    return Disagreement(label_disagreement(labels, grid, values), _cell(grid), members)


def _of_flips(folder: Path, summary: SlideSummary) -> Disagreement:
    file, name = summary.files.get("disagreement"), printable(summary.model["name"])
    if file is None:
        why = "one model without --tta"
        if summary.model.get("tta"):
            why = (
                "one model with --tta but without a map of where flips disagree (an earlier version, an exported file)"
            )
        raise DataError(
            f"--next: {printable(folder)}: expected results that say where models or flips disagree, found those of "
            f"{name}, {why}; {_REMEDY}"
        )
    return Disagreement(read_map(folder / file, summary.grid), _cell(summary.grid), f"the flips of {name}")


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
        found.append((each, _summary(each, slide, fingerprint)))
    return found


def _summary(folder: Path, slide: SlideFacts, fingerprint: dict) -> SlideSummary:
    """Returns the summary in a folder. Raises DataError unless it is that of the slide."""
    summary = read_summary(folder / slide_summary.FILE)
    if summary.fingerprint != fingerprint or (summary.slide.width, summary.slide.height) != slide.size:
        raise DataError(
            f"{printable(folder / slide_summary.FILE)}: expected the results of {printable(slide.name)}, found those "
            f"of {printable(summary.slide.name)} (another file: its size or content differs); give this slide's results"
        )
    return summary


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
