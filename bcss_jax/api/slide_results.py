"""`bcss_jax.SlideResults`: segmented slides in their folders, for notebooks."""

import functools
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from bcss_jax.api.arguments import PathLike
from bcss_jax.api.panel import panel, read_picture
from bcss_jax.common.formatting import format_score
from bcss_jax.errors import DataError, UserError, printable
from bcss_jax.slides.slide_summary import FILE, SlideSummary, read_summary
from bcss_jax.viewer import results

MOST_SHOWN = 20  # slides that a notebook shows at once
REMEDY = "segment the slide again"


class SlideResult:
    """One slide, segmented by one network. A notebook shows areas and overlay.

    Attributes:
      folder: of the files.
    """

    def __init__(self, folder: PathLike):
        """Opens the folder of a slide's results; `bcss_jax.segment` and `SlideResults` return them."""
        self.folder = Path(folder)

    def __repr__(self) -> str:
        """Returns the call that opens the result."""
        return f"SlideResult({str(self.folder)!r})"

    @functools.cached_property
    def summary(self) -> SlideSummary:
        """What is known of the result: slide, model, areas of the classes, scores.

        Raises:
          DataError: it cannot be read.
        """
        return read_summary(self.folder / FILE)

    @property
    def areas_mm2(self) -> dict[str, float]:
        """Area of each class in square millimeters."""
        return {each.name: each.area_mm2 for each in self.summary.classes}

    def overlay(self) -> Image.Image:
        """Returns the slide with the classes over it.

        Raises:
          DataError: there is no such picture.
        """
        return read_picture(self.folder / (self.summary.files.get("overlay") or "overlay.png"), REMEDY)

    def _repr_html_(self) -> str:
        try:
            summary = self.summary
        except UserError as error:
            return panel(printable(self.folder), lines=[str(error)])
        by = printable(summary.model["name"])
        lines = [f"by {by} at {summary.grid.mpp:.4g} um per pixel: {printable(self.folder)}"]
        if summary.unreadable_area_mm2:
            lines.append(f"{summary.unreadable_area_mm2:.3g} mm2 of tissue could not be read")
        lines += map(printable, summary.notes or ())
        dice = summary.dice
        table = [["class", "mm2", "share of tissue", *(["Dice"] if dice else [])]]
        for each in summary.classes:
            share = f"{each.area_mm2 / summary.tissue_area_mm2:.1%}" if summary.tissue_area_mm2 else "-"
            row = [printable(each.name), f"{each.area_mm2:.3f}", share]
            table.append([*row, *([format_score(dice[each.name])] if dice else [])])
        try:
            pictures = [("overlay", self.overlay())]
        except UserError as error:
            pictures, lines = [], [*lines, str(error)]
        return panel(printable(summary.slide.name), lines=lines, tables=[table], pictures=pictures)


class SlideResults(Sequence[SlideResult]):
    """Segmented slides: a sequence of `SlideResult`. A notebook shows the first ones."""

    def __init__(self, found: PathLike | Sequence[PathLike]):
        """Finds the results in a folder that `bcss_jax.segment` wrote, or takes a list of the folders of slides.

        Raises:
          DataError: there is no result in the folder.
        """
        if isinstance(found, Sequence) and not isinstance(found, str):
            self._results = [SlideResult(folder) for folder in found]
            return
        top = Path(found).expanduser()
        self._results = [SlideResult(each.folder) for each in results.find(top).values()]
        if not self._results:
            raise DataError(f"{printable(top)}: expected results of slides ({FILE}), found none; segment a slide first")

    def __getitem__(self, index):
        """Returns one result, or several for a slice."""
        return self._results[index]

    def __len__(self) -> int:
        """Returns the number of results."""
        return len(self._results)

    def __repr__(self) -> str:
        """Returns the folders."""
        return f"SlideResults({[str(each.folder) for each in self]})"

    def _repr_html_(self) -> str:
        shown = "".join(each._repr_html_() for each in self._results[:MOST_SHOWN])
        left = len(self) - MOST_SHOWN
        return shown + (panel(f"{left} more slides", lines=["python -m bcss_jax.view shows all"]) if left > 0 else "")
