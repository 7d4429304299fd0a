"""`bcss_jax.EvaluationReport`: an evaluation in its folder, for notebooks."""

from pathlib import Path

from PIL import Image

from bcss_jax.api.arguments import PathLike
from bcss_jax.api.panel import panel, read_picture
from bcss_jax.common.json_files import read_json
from bcss_jax.errors import DataError, UserError, printable
from bcss_jax.evaluation.reporting import tables
from bcss_jax.evaluation.reporting.caveats import caveats

REMEDY = "evaluate again"
GALLERIES = ("best", "median", "worst")  # figures of single images


class EvaluationReport:
    """An evaluation in its folder. A notebook shows the scores, what limits them, and the figures.

    Attributes:
      folder: of the files; report.html has everything.
      content: of evaluation.json: `settings`, `evaluations` with all scores, and `differences`.
    """

    def __init__(self, folder: PathLike):
        """Opens a folder that `bcss_jax.evaluate` wrote.

        Raises:
          DataError: there is no evaluation in it.
        """
        self.folder = Path(folder).expanduser()
        path = self.folder / "evaluation.json"
        self.content = read_json(path, "the results of an evaluation", REMEDY, kind=dict)
        if not self.content.get("evaluations"):
            raise DataError(f"{printable(path)}: expected the results of an evaluation, found none; {REMEDY}")

    def __repr__(self) -> str:
        """Returns the call that opens the report."""
        return f"EvaluationReport({str(self.folder)!r})"

    @property
    def dice(self) -> dict[str, dict[str, float | None]]:
        """Dice over all pixels: name of the run -> name of the class, and "macro" for their mean -> score."""
        return {each["name"]: each["scores"]["scores"]["dice_global"] for each in self.content["evaluations"]}

    @property
    def figures(self) -> dict[str, Path]:
        """The figures as PNG: name, such as "curves" or "RUN/confusion" -> file."""
        top = self.folder / "figures"
        return {path.relative_to(top).with_suffix("").as_posix(): path for path in sorted(top.rglob("*.png"))}

    def figure(self, name: str) -> Image.Image:
        """Returns one of `figures` as a picture.

        Raises:
          DataError: there is no such figure.
        """
        names = ", ".join(self.figures) or "none"
        return read_picture(self.folder / "figures" / f"{name}.png", f"the figures are: {names}")

    def _repr_html_(self) -> str:
        evaluations = self.content["evaluations"]
        split = self.content["settings"]["part"]
        lines = [f"Dice over all pixels of the split {split}; {printable(self.folder)}/report.html has everything"]
        lines += dict.fromkeys(caveat for evaluation in evaluations for caveat in caveats(evaluation))
        pictures = []
        for name in self.figures:
            if name.rpartition("/")[2] in GALLERIES:
                continue  # tall
            try:
                pictures.append((name, self.figure(name)))
            except UserError as error:
                lines.append(str(error))
        rows = [tables.main_rows(group) for group in tables.by_scheme(evaluations)]
        return panel("evaluation", lines=lines, tables=rows, pictures=pictures)
