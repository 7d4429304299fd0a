"""The results folder of an evaluation: keeps finished runs, resumes stopped ones and refuses results of other settings.

    DIR/evaluation.json        settings, and everything about every model (its format has the number `FORMAT`)
    DIR/table.md, table.tex    the same in short
    DIR/report.html, figures/  for people
    DIR/NAME/                  one folder for each model
        scores.json            its entry in evaluation.json; written last, so that its presence means "finished"
        per_image.csv, gallery/, MODEL_CARD.md
        progress.npz           only if the evaluation was stopped: counts of the images so far

scores.json and progress.npz are used again only for the same parameters, data and settings. Together these are the
*identity* of a result.
"""

import io
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NotRequired

import numpy as np
from typing_extensions import TypedDict

from bcss_jax.common.digests import sha256_of, sha256_of_file
from bcss_jax.common.files import storage_errors, write_bytes, write_text
from bcss_jax.common.interruption import safe_point
from bcss_jax.common.json_files import as_json, describe_differences, differences, parse_json, read_json
from bcss_jax.common.npz_files import read_npz
from bcss_jax.common.outputs import written_files
from bcss_jax.errors import ConfigError, DataError, first_line
from bcss_jax.evaluation import per_image_csv
from bcss_jax.evaluation.reporting import figures, model_card, report, tables

FORMAT = 1  # of evaluation.json and scores.json; increases when the meaning of their content changes
SUMMARY_FILES = ("evaluation.json", "table.md", "table.tex", "report.html", "figures")
MODEL_FILES = ("scores.json", "progress.npz", "per_image.csv", "gallery", "MODEL_CARD.md")
log = logging.getLogger(__name__)


class _Document(TypedDict):
    """What is read of evaluation.json."""

    format: int
    settings: dict[str, Any]


class _Picture(TypedDict):
    rank: str
    place: int
    key: str
    dice: float | None
    files: dict[str, str]


class _Evaluation(TypedDict):
    """What the tables, figures and the report need of an entry of evaluation.json."""

    name: str
    folder: str
    label_scheme: dict[str, Any]
    data: dict[str, Any]
    part: str
    checkpoint: dict[str, Any]
    scores: dict[str, Any]
    gallery: list[_Picture]
    history: NotRequired[list[dict[str, Any]]]
    seconds: NotRequired[dict[str, float]]


# Of the evaluation as JSON with sorted keys, and of the bytes of a file.
_Sha256 = TypedDict("_Sha256", {"evaluation": str, "per_image.csv": str})


class _Scores(TypedDict):
    """Content of scores.json. Results of older versions have no digests."""

    identity: dict[str, Any]
    evaluation: _Evaluation
    sha256: NotRequired[_Sha256]


class ResultsFolder:
    """The results folder of an evaluation, used by one process at a time (`common.files.locked`).

    Attributes:
      folder: the folder.
      settings: settings of the evaluation, as JSON.
    """

    def __init__(self, folder: Path, settings: dict, overwrite: bool):
        """Reads what the folder holds, without changing anything.

        Args:
          folder: an existing folder.
          settings: settings of the evaluation, as JSON.
          overwrite: whether results of other settings, models or data may be replaced.

        Raises:
          ConfigError: The folder holds results of other settings, or files that no evaluation wrote.
        """
        self.folder, self.settings, self._overwrite = folder, as_json(settings), overwrite
        document = folder / "evaluation.json"
        found = sorted(path.name for path in folder.iterdir() if not written_files.is_hidden_own(path.name))
        if found and not document.exists():
            raise ConfigError(
                f"{folder}: expected a results folder, found {', '.join(found[:5])} and no evaluation.json; choose "
                "another --output"
            )
        content = _read_results(document, _Document) if found and not document.is_symlink() else None
        recorded = written_files.has_record(folder)
        self._written_before = not recorded and content is not None
        if found and not recorded and content is None:
            raise ConfigError(
                f"{document}: expected results of an evaluation, found a file of something else; choose another "
                "--output"
            )
        self._check_files(folder, SUMMARY_FILES)
        changed, known = {}, content is not None and content["format"] == FORMAT
        if content is not None and known:
            changed = differences(content["settings"], self.settings)
        self._claimed = known and not changed
        results = {path.parent for name in ("scores.json", "progress.npz") for path in folder.glob(f"*/{name}")}
        self._outdated = [] if self._claimed else sorted(results)
        if self._outdated and not overwrite:  # settings may change as long as nothing was computed with them
            what = f"of other settings ({describe_differences(changed)})" if known else "that this program cannot read"
            raise ConfigError(
                f"{folder} holds results {what}; choose another --output, use the same settings, or replace the "
                "results with --overwrite"
            )

    def claim(self) -> None:
        """Ties the folder to the settings. Deletes results of other settings, which `overwrite` has allowed.

        Raises:
          StorageError: The folder cannot be written.
        """
        if self._written_before:
            with storage_errors(self.folder):
                written_files.adopt(self.folder)
        if self._claimed:
            return
        with storage_errors(self.folder):
            for model_folder in self._outdated:
                written_files.delete(self.folder, [model_folder.name])
            written_files.delete(self.folder, SUMMARY_FILES)
        self.write_summary([], [])

    def check(self, name: str, identity: dict) -> None:
        """Checks that this evaluation may write the results of a model.

        Raises:
          ConfigError: The folder of that name holds results of other parameters or data and overwriting is not allowed,
            or it holds files that no evaluation wrote.
        """
        identity, folder = self._full_identity(identity), self.folder / name
        names = sorted(path.name for path in folder.glob("*"))
        others = [other for other in names if other not in MODEL_FILES and not other.startswith(".")]
        if others or (folder.exists() and not folder.is_dir()):
            raise ConfigError(
                f"{folder}: expected results of an evaluation, found something else ({', '.join(others[:5])}); choose "
                "another --output"
            )
        self._check_files(folder, MODEL_FILES)
        for found in (self._read_scores(name), self._read_progress(name)):
            if found is not None and found["identity"] != identity and not self._overwrite:
                changed = describe_differences(differences(found["identity"], identity))
                raise ConfigError(
                    f"{folder} holds results of another model or other data ({changed}); choose another --output, or "
                    "replace the results with --overwrite"
                )

    def _check_files(self, folder: Path, names: Sequence[str]) -> None:
        """Raises ConfigError if one of the files is a link, or was not written by this program."""
        paths = [folder / name for name in names]
        if self._written_before:
            paths = [path for path in paths if path.is_symlink()]
        else:
            written_files.check_folders(folder / "figures", folder / "gallery", folder / "figures" / folder.name)
        written_files.check(paths)

    def load_finished(self, name: str, identity: dict) -> dict | None:
        """Returns the finished evaluation of a model; None if there is none or its files are incomplete."""
        found = self._read_scores(name)
        if found is None or found["identity"] != self._full_identity(identity):
            return None
        try:
            sha256 = found.get("sha256", {}).get("per_image.csv")
            if sha256 is not None and sha256_of_file(self.folder / name / "per_image.csv") != sha256:
                raise DataError("changed")
            self.per_image(name)
            gallery = [self.folder / name / file for each in found["evaluation"]["gallery"]
                       for file in each["files"].values()]  # fmt: skip
            complete = all(path.exists() and not written_files.changed(path.parent, [path.name]) for path in gallery)
        except (DataError, OSError):
            complete = False
        if not complete:
            log.warning("%s: files are missing or damaged; evaluating again", self.folder / name)
        return found["evaluation"] if complete else None

    def per_image(self, name: str) -> per_image_csv.PerImageScores:
        """Reads the scores of each image of a finished model."""
        return per_image_csv.read_per_image(self.folder / name / "per_image.csv")

    def load_progress(self, name: str, identity: dict) -> dict[str, np.ndarray]:
        """Returns the arrays of `save_progress` for a model whose evaluation was stopped; empty if there are none."""
        found = self._read_progress(name)
        return found["arrays"] if found is not None and found["identity"] == self._full_identity(identity) else {}

    def start(self, name: str) -> None:
        """Makes the folder of a model, and deletes what an earlier evaluation left in it."""
        folder = self.folder / name
        with storage_errors(folder):
            written_files.delete(folder, MODEL_FILES)
            folder.mkdir(exist_ok=True)

    def save_progress(self, name: str, identity: dict, arrays: dict[str, np.ndarray]) -> None:
        """Writes the results so far of a model."""
        text = json.dumps(self._full_identity(identity)).encode()
        content = io.BytesIO()
        entries: dict[str, Any] = {"identity": np.frombuffer(text, np.uint8), **arrays}
        np.savez(content, **entries)
        write_bytes(self.folder / name / "progress.npz", content.getvalue())

    def finish(self, name: str, identity: dict, evaluation: dict) -> None:
        """Marks a model as finished, after its other files were written."""
        content = {
            "format": FORMAT,
            "identity": self._full_identity(identity),
            "evaluation": evaluation,
            "sha256": {
                "evaluation": _digest(evaluation),
                "per_image.csv": sha256_of_file(self.folder / name / "per_image.csv"),
            },
        }
        write_text(self.folder / name / "scores.json", _json(content))
        with storage_errors(self.folder / name):
            written_files.delete(self.folder / name, ["progress.npz"])

    def write_summary(self, evaluations: list[dict], paired_differences: list[dict]) -> None:
        """Writes evaluation.json and, if there are evaluations, tables, figures, model cards and the report.

        Args:
          evaluations: entries of the finished models.
          paired_differences: differences between the models, as `target.paired_differences` returns them.
        """
        content = {
            "format": FORMAT,
            "settings": self.settings,
            "evaluations": evaluations,
            "differences": paired_differences,
        }
        write_text(self.folder / "evaluation.json", _json(content))
        if not evaluations:
            return
        safe_point()
        tables.write(self.folder, evaluations)
        galleries = {each["folder"]: report.read_gallery(self.folder / each["folder"], each) for each in evaluations}
        safe_point()
        figures.write(self.folder / "figures", evaluations, galleries)
        safe_point()
        for each in evaluations:
            model_card.write(self.folder / each["folder"] / "MODEL_CARD.md", each)
        report.write(self.folder / "report.html", content, galleries)

    def _full_identity(self, identity):
        return as_json({"format": FORMAT, **identity, "settings": self.settings})

    def _read_scores(self, name):
        path = self.folder / name / "scores.json"
        found = _read_results(path, _Scores) if path.exists() else None
        sha256 = found.get("sha256") if found else None  # results of older versions have none
        if found is None or sha256 is None:
            return found
        if sha256["evaluation"] != _digest(found["evaluation"]):
            return _warn_damaged(path, "it was changed after it was written")
        return found

    def _read_progress(self, name):
        path = self.folder / name / "progress.npz"
        if not path.exists():
            return None
        try:
            arrays = read_npz(path, "the results so far of a stopped evaluation", "it is left out")
            text = arrays.pop("identity", np.zeros(0, np.uint8)).tobytes()
            return {"identity": parse_json(text, kind=dict), "arrays": arrays}
        except DataError as error:
            log.warning("%s", error)
        except ValueError as error:
            return _warn_damaged(path, first_line(error))
        return None


def _digest(evaluation: dict) -> str:
    """Returns the SHA-256 of an evaluation without the time that it took: equal results have equal digests."""
    content = {name: value for name, value in evaluation.items() if name != "seconds"}
    return sha256_of(json.dumps(content, sort_keys=True, allow_nan=False).encode())


def _read_results(path, kind):
    try:
        return read_json(path, "results of an evaluation", "they are left out", kind=kind)
    except DataError as error:
        log.warning("%s", error)
        return None


def _warn_damaged(path, why):
    log.warning("%s: is damaged (%s) and is ignored", path, why)
    return None


def _json(content):
    return json.dumps(content, indent=1, allow_nan=False) + "\n"
