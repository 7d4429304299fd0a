"""`bcss_jax.Run`: a run in its folder, for notebooks."""

import csv
import json
from pathlib import Path
from typing import Any

from PIL import Image

from bcss_jax.api.arguments import PathLike
from bcss_jax.api.panel import panel, read_picture, stacked
from bcss_jax.common.formatting import format_score
from bcss_jax.common.json_files import read_json
from bcss_jax.errors import DataError, UserError, printable

REMEDY = "train the run to its end"


class Run:
    """A run in its folder: what it was trained with, its scores and its pictures. A notebook shows it as HTML.

    Everything is read when it is asked for, so that a run can be looked at while it is trained.

    Attributes:
      folder: of the run.
    """

    def __init__(self, folder: PathLike):
        """Opens the folder of a run.

        Raises:
          DataError: there is no run in the folder.
        """
        self.folder = Path(folder).expanduser()
        if not (self.folder / "config.json").is_file() and not self.folds:
            raise DataError(
                f"{printable(self.folder)}: expected the folder of a run with config.json, found none; train one with "
                "bcss_jax.train or python -m bcss_jax.main"
            )

    def __repr__(self) -> str:
        """Returns the call that opens the run."""
        return f"Run({str(self.folder)!r})"

    @property
    def folds(self) -> list["Run"]:
        """The folds of a cross-validation; empty for other runs, and for nnU-Net, whose folds have no config."""
        return [Run(path) for path in self._fold_folders() if (path / "config.json").is_file()]

    @property
    def config(self) -> dict[str, Any]:
        """The settings, as JSON. A cross-validation has those of its first fold."""
        folds = self.folds
        if folds and not (self.folder / "config.json").is_file():
            return folds[0].config
        return read_json(self.folder / "config.json", "the config of a run", "start over with fresh=True", kind=dict)

    @property
    def finished(self) -> bool:
        """Whether the run was trained to its end. A run that is not goes on when it is trained again."""
        folders = self._fold_folders() or [self.folder]
        return (self.folder / "summary.json").is_file() or all((path / "summary.json").is_file() for path in folders)

    @property
    def summary(self) -> dict[str, Any]:
        """Content of summary.json: scores of the best and of the last epoch, data, versions.

        Raises:
          DataError: the run is not finished, or is a cross-validation, whose folds have summaries.
        """
        return read_json(self.folder / "summary.json", "the summary of a finished run", REMEDY, kind=dict)

    @property
    def history(self) -> list[dict[str, Any]]:
        """A row for each epoch, with the columns of history.csv; empty before the first epoch has ended."""
        path = self.folder / "history.csv"
        if not path.is_file():
            return []
        with open(path, newline="", encoding="utf-8") as file:
            return [{name: _value(text) for name, text in row.items()} for row in csv.DictReader(file)]

    def curves(self) -> Image.Image:
        """Returns the learning curves; those of folds stand one below the other.

        Raises:
          DataError: there are none yet.
        """
        return stacked(self._pictures(("curves.png", "progress.png"), "train for an epoch first"))

    def samples(self) -> Image.Image:
        """Returns validation images with ground truth, prediction and errors; those of folds one below the other.

        Raises:
          DataError: there are none yet.
        """
        return stacked(self._pictures(("samples.png", "validation/samples.png"), REMEDY))

    def _repr_html_(self) -> str:
        lines, tables, pictures = [], [], []
        try:
            config = self.config
            data = config["data"]
            model = config.get("model", {}).get("name") or config.get("method") or config.get("name")
            lines.append(f"{model} on {data['dir'] or data['layout']}, labels {config['labels']}")
        except (UserError, KeyError, TypeError):
            lines.append("config.json cannot be read")
        state = "finished" if self.finished else "not finished: it goes on when it is trained again"
        epochs = len(self.history)
        lines.append(f"{epochs} epochs, {state}" if epochs else state)
        try:
            tables.append(_score_table(self.summary))
        except (UserError, KeyError, TypeError):
            pass  # not finished, or a cross-validation
        for name, draw in (("learning curves", self.curves), ("validation images", self.samples)):
            try:
                pictures.append((name, draw()))
            except UserError:
                pass  # not drawn yet
        return panel(printable(self.folder), lines=lines, tables=tables, pictures=pictures)

    def _fold_folders(self) -> list[Path]:
        found = [path for path in self.folder.glob("fold_*") if path.is_dir()]
        return sorted(found, key=lambda path: (len(path.name), path.name))

    def _pictures(self, names: tuple[str, ...], remedy: str) -> list[Image.Image]:
        """Returns the first of the pictures that is there, of the run or of each of its folds."""
        for folders in ([self.folder], self._fold_folders()):
            files = [next((folder / name for name in names if (folder / name).is_file()), None) for folder in folders]
            found = [file for file in files if file is not None]
            if found:
                return [read_picture(file, remedy) for file in found]
        return [read_picture(self.folder / names[0], remedy)]


def _value(text: str) -> Any:
    """Returns the number or the truth value that a cell of history.csv states, or its text."""
    if text in ("True", "False"):
        return text == "True"
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def _score_table(summary: dict[str, Any]) -> list[list[str]]:
    """Returns a table with the Dice of each class over all pixels of a split."""
    found = [(f"validation, epoch {summary['best_epoch']} (best)", summary["dice_global"])]
    for which, scores in summary.get("test", {}).items():
        found.append((f"test, {which} epoch", scores["dice_global"]))
    names = list(found[0][1])
    return [["Dice", *names], *([title, *(format_score(scores[name]) for name in names)] for title, scores in found)]
