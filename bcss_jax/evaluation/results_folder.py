"""The folder of an evaluation: finished runs are kept, a stopped one goes on, results of other settings are refused.

    DIR/evaluation.json        settings, and everything about every model (format: `FORMAT`)
    DIR/table.md, table.tex    the same in short
    DIR/report.html, figures/  to look at
    DIR/NAME/                  of each model
        scores.json            what evaluation.json says of it; written last, so that it means "finished"
        per_image.csv, gallery/, MODEL_CARD.md
        progress.npz           of an evaluation that was stopped: counts of the images so far

What scores.json and progress.npz hold is used again only for the same parameters, data and settings, their *identity*.
"""

import io
import json
import logging
import shutil
from pathlib import Path

import numpy as np

from bcss_jax.common.files import storage_errors, write_bytes, write_text
from bcss_jax.common.json_files import as_json, describe_differences, differences, read_json
from bcss_jax.errors import ConfigError, DataError, first_line
from bcss_jax.evaluation import per_image_csv
from bcss_jax.evaluation.reporting import figures, model_card, report, tables

FORMAT = 1  # of evaluation.json and scores.json; raised when what stands in them changes its meaning
OF_ALL = ("evaluation.json", "table.md", "table.tex", "report.html", "figures")
OF_A_RUN = ("scores.json", "progress.npz", "per_image.csv", "gallery", "MODEL_CARD.md")
log = logging.getLogger(__name__)


class ResultsFolder:
    """The folder, for one process (`workdir.locked`)."""

    def __init__(self, folder: Path, settings: dict, overwrite: bool):
        """Looks at what the folder holds; changes nothing.

        Args:
          folder: exists.
          settings: JSON.
          overwrite: results of other settings, models or data make way.

        Raises:
          ConfigError: it holds results of other settings, or files that are of no evaluation.
        """
        self.folder, self.settings, self._overwrite = folder, as_json(settings), overwrite
        document = folder / "evaluation.json"
        found = sorted(path.name for path in folder.iterdir() if path.name != ".lock")
        if found and not document.exists():
            raise ConfigError(
                f"{folder} holds {', '.join(found[:5])} but no evaluation.json, so no evaluation; name another --output"
            )
        runs = {path.parent for name in ("scores.json", "progress.npz") for path in folder.glob(f"*/{name}")}
        content = _read_results(document) if found else None
        known = isinstance(content, dict) and content.get("format") == FORMAT
        changed = differences(content["settings"], self.settings) if known else {}
        self._claimed = known and not changed
        self._in_the_way = [] if self._claimed else sorted(runs)
        if self._in_the_way and not overwrite:  # without any, nothing was computed, and settings may be mended
            what = f"of other settings ({describe_differences(changed)})" if known else "that this program cannot read"
            raise ConfigError(
                f"{folder} holds results {what}; name another --output, take the same settings, or replace them with "
                "--overwrite"
            )

    def claim(self) -> None:
        """Ties the folder to the settings; results of others go, if that is allowed.

        Raises:
          StorageError: it cannot be written.
        """
        if self._claimed:
            return
        with storage_errors(self.folder):
            for run in self._in_the_way:
                _clear(run, OF_A_RUN)
                if not any(run.iterdir()):
                    run.rmdir()
            _clear(self.folder, OF_ALL)
        self.write([], [])

    def check(self, name: str, identity: dict) -> None:
        """Refuses, unless overwriting is allowed, what this evaluation would replace.

        Raises:
          ConfigError: there are results under that name of other parameters or data, or files of something else.
        """
        identity, folder = self._whole(identity), self.folder / name
        names = sorted(path.name for path in folder.glob("*"))
        others = [other for other in names if other not in OF_A_RUN and not other.startswith(".")]
        if others or (folder.exists() and not folder.is_dir()):
            raise ConfigError(f"{folder} is not of an evaluation ({', '.join(others[:5])}); name another --output")
        for found in (self._finished(name), self._begun(name)):
            if found is not None and found["identity"] != identity and not self._overwrite:
                changed = describe_differences(differences(found["identity"], identity))
                raise ConfigError(
                    f"{folder} holds results of another model or other data ({changed}); name "
                    "another --output, or replace them with --overwrite"
                )

    def finished(self, name: str, identity: dict) -> dict | None:
        """The evaluation of a run that was finished before, None if there is none."""
        found = self._finished(name)
        if found is None or found["identity"] != self._whole(identity):
            return None
        try:
            self.rows(name)
            complete = all((self.folder / name / file).exists() for each in found["evaluation"]["gallery"]
                           for file in each["files"].values())  # fmt: skip
        except DataError:
            complete = False
        if not complete:
            log.warning("%s: files are missing or damaged; evaluating again", self.folder / name)
        return found["evaluation"] if complete else None

    def rows(self, name: str) -> per_image_csv.PerImage:
        """The scores of each image of a finished run."""
        return per_image_csv.read(self.folder / name / "per_image.csv")

    def begun(self, name: str, identity: dict) -> dict[str, np.ndarray]:
        """What `keep` kept of a run that was stopped; empty if nothing."""
        found = self._begun(name)
        return found["arrays"] if found is not None and found["identity"] == self._whole(identity) else {}

    def begin(self, name: str) -> None:
        """Makes place for a run: what is left over of another one under that name goes."""
        folder = self.folder / name
        with storage_errors(folder):
            _clear(folder, OF_A_RUN)
            folder.mkdir(exist_ok=True)

    def keep(self, name: str, identity: dict, arrays: dict[str, np.ndarray]) -> None:
        """Writes down what has been computed so far."""
        text = json.dumps(self._whole(identity)).encode()
        content = io.BytesIO()
        np.savez(content, identity=np.frombuffer(text, np.uint8), **arrays)
        write_bytes(self.folder / name / "progress.npz", content.getvalue())

    def finish(self, name: str, identity: dict, evaluation: dict) -> None:
        """Marks a run as finished; its other files are written before."""
        content = {"format": FORMAT, "identity": self._whole(identity), "evaluation": evaluation}
        write_text(self.folder / name / "scores.json", _json(content))
        with storage_errors(self.folder / name):
            (self.folder / name / "progress.npz").unlink(missing_ok=True)

    def write(self, evaluations: list[dict], differences: list[dict]) -> None:
        """Writes evaluation.json and, if there is anything to show, tables, pictures, cards and the report."""
        content = {"format": FORMAT, "settings": self.settings, "evaluations": evaluations, "differences": differences}
        write_text(self.folder / "evaluation.json", _json(content))
        if not evaluations:
            return
        tables.write(self.folder, evaluations)
        galleries = {each["folder"]: report.read_gallery(self.folder / each["folder"], each) for each in evaluations}
        figures.write(self.folder / "figures", evaluations, galleries)
        for each in evaluations:
            model_card.write(self.folder / each["folder"] / "MODEL_CARD.md", each)
        report.write(self.folder / "report.html", content, galleries)

    def _whole(self, identity):
        return as_json({"format": FORMAT, **identity, "settings": self.settings})

    def _finished(self, name):
        path = self.folder / name / "scores.json"
        found = _read_results(path) if path.exists() else None
        sound = isinstance(found, dict) and isinstance(found.get("identity"), dict) and "evaluation" in found
        return found if sound or found is None else _damaged(path, "other fields")

    def _begun(self, name):
        path = self.folder / name / "progress.npz"
        if not path.exists():
            return None
        try:
            with np.load(path, allow_pickle=False) as file:
                arrays = {key: file[key] for key in file.files}
            return {"identity": json.loads(arrays.pop("identity").tobytes()), "arrays": arrays}
        except Exception as error:  # NumPy and zipfile raise many kinds for a damaged file
            return _damaged(path, first_line(error))


def _clear(folder, names):
    """Deletes what an evaluation wrote, nothing else."""
    for path in (folder / name for name in names):
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def _read_results(path):
    try:
        return read_json(path, "results of an evaluation", "they are left out")
    except DataError as error:
        log.warning("%s", error)
        return None


def _damaged(path, why):
    log.warning("%s: is damaged (%s) and left out", path, why)
    return None


def _json(content):
    return json.dumps(content, indent=1, allow_nan=False) + "\n"
