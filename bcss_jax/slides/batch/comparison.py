"""comparison.png: a slide, its ground truth, the labels of several models, and where they differ."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from bcss_jax.common.files import storage_errors
from bcss_jax.common.outputs import written_files
from bcss_jax.errors import printable
from bcss_jax.labels import scheme_from_json
from bcss_jax.slides import slide_summary
from bcss_jax.slides.batch.slide_folder import model_folders
from bcss_jax.slides.batch.slide_list import Entry
from bcss_jax.slides.classes import SlideClass
from bcss_jax.slides.outputs import label_pyramid, overlay
from bcss_jax.slides.reading.reader_pool import ReaderPool
from bcss_jax.slides.scoring.truth import open_truth
from bcss_jax.slides.slide_summary import SlideSummary

FILE = "comparison.png"
SIDE = 1200  # pixels of the longer side of a panel


def check_picture(path: Path) -> None:
    """Checks that the picture is absent, or was written by this program.

    Raises:
      ConfigError: it is the file of something else.
      StorageError: the folder cannot be written.
    """
    written_before = not path.is_symlink() and not written_files.has_record(path.parent)
    if written_before and model_folders(path.parent):  # before there were records
        with storage_errors(path):
            written_files.adopt_files(path.parent, [FILE])
    written_files.check([path])


def is_current(path: Path, folders: Sequence[Path]) -> bool:
    """Returns whether the picture exists and is not older than any result in the models' folders."""
    try:
        drawn = path.stat().st_mtime_ns
        return all((folder / slide_summary.FILE).stat().st_mtime_ns <= drawn for folder in folders)
    except OSError:
        return False


def draw_comparison(
    path: Path,
    entry: Entry,
    summaries: Sequence[SlideSummary],
    folders: Sequence[Path],
    classes: Sequence[SlideClass],
    codes: str,
) -> None:
    """Draws the picture.

    Args:
      path: the file; replaced if it exists.
      entry: the slide.
      summaries: of each model; all have the same label scheme.
      folders: of each model's results.
      classes: of that scheme.
      codes: code book of the ground truth, if the entry has one.

    Raises:
      UserError: the slide, the results or the ground truth cannot be read any more, or the picture cannot be written.
    """
    with ReaderPool(entry.slide, 1) as pool:
        thumbnail = pool.thumbnail(SIDE).pixels
    height, width = thumbnail.shape[:2]
    grid = summaries[0].grid
    panels = []
    if entry.truth is not None:
        scheme = scheme_from_json(summaries[0].model["label_scheme"])
        values = np.zeros(256, np.uint8)
        values[list(scheme.evaluated)] = range(1, 1 + len(scheme.evaluated))
        with open_truth(Path(entry.truth), scheme, codes, grid, None) as truth:
            panels.append(overlay.Panel("ground truth", values[truth.resized(height, width)]))
    for summary, folder in zip(summaries, folders, strict=True):
        labels = label_pyramid.read_resized(folder / summary.labels_file, height, width)
        dice = (summary.dice or {}).get("macro")
        title = summary.model["name"] + ("" if dice is None else f", Dice {dice:.3f}")
        panels.append(overlay.Panel(title, labels))
    mm_per_pixel = grid.mpp * grid.width / width / 1000
    overlay.comparison(thumbnail, panels, classes, path, title=printable(entry.slide.name), mm_per_pixel=mm_per_pixel)
