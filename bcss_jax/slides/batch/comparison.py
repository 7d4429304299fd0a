"""comparison.png: a slide, its truth, what several models say, and where they differ."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from bcss_jax.errors import printable
from bcss_jax.labels import scheme_from_json
from bcss_jax.slides.batch.slide_list import Entry
from bcss_jax.slides.classes import SlideClass
from bcss_jax.slides.grid import Grid
from bcss_jax.slides.outputs import label_pyramid, overlay
from bcss_jax.slides.reading.reader_pool import ReaderPool
from bcss_jax.slides.scoring.truth import open_truth

SIDE = 1200  # pixels of the longer side of a panel


def is_current(path: Path, folders: Sequence[Path]) -> bool:
    """Whether the picture is there, and no younger results than it are in the models' folders."""
    try:
        drawn = path.stat().st_mtime_ns
        return all((folder / "summary.json").stat().st_mtime_ns <= drawn for folder in folders)
    except OSError:
        return False


def write(
    path: Path,
    entry: Entry,
    summaries: Sequence[dict],
    folders: Sequence[Path],
    classes: Sequence[SlideClass],
    codes: str,
) -> None:
    """Draws the picture.

    Args:
      path: the file; replaced if it is there.
      entry: the slide.
      summaries: of each model, all of one label scheme.
      folders: of each model's results.
      classes: of that scheme.
      codes: code book of the truth, if the entry has one.

    Raises:
      UserError: the slide, the results or the truth cannot be read any more, or the picture not be written.
    """
    with ReaderPool(entry.slide, 1) as pool:
        thumbnail = pool.thumbnail(SIDE).pixels
    shape = thumbnail.shape[:2]
    panels = []
    if entry.truth is not None:
        scheme = scheme_from_json(summaries[0]["model"]["label_scheme"])
        values = np.zeros(256, np.uint8)
        values[list(scheme.evaluated)] = range(1, 1 + len(scheme.evaluated))
        with open_truth(Path(entry.truth), scheme, codes, Grid(**summaries[0]["grid"]), None) as truth:
            panels.append(overlay.Panel("truth", values[truth.resized(*shape)]))
    for summary, folder in zip(summaries, folders, strict=True):
        labels = label_pyramid.read_resized(folder / summary["files"]["labels"], *shape)
        dice = summary.get("scores", {}).get("dice", {}).get("macro")
        title = summary["model"]["name"] + ("" if dice is None else f", Dice {dice:.3f}")
        panels.append(overlay.Panel(title, labels))
    grid = summaries[0]["grid"]
    mm_per_pixel = grid["mpp"] * grid["width"] / shape[1] / 1000
    overlay.comparison(thumbnail, panels, classes, path, title=printable(entry.slide.name), mm_per_pixel=mm_per_pixel)
