"""The folder with the results of one slide: finished, to be gone on with, or failed.

labels.ome.tif, regions.geojson, overlay.png, probabilities.zarr
summary.json     written last: the slide is finished; anew when it is scored
failure.json     instead, why it failed
.work/           of a slide that is not finished: labels so far, and what they are of

What the labels depend on is their identity. The truth that they are scored against is no part of it: another truth makes
new scores, not new labels.
"""

import contextlib
import enum
import hashlib
import json
import os
import shutil
from pathlib import Path

from bcss_jax.common.files import storage_errors, write_text
from bcss_jax.common.json_files import as_json, describe_differences, differences, read_json
from bcss_jax.errors import ConfigError, DataError, UserError, printable

FORMAT = 1  # of summary.json
HASHED = 1 << 16  # bytes at both ends of a slide by which it is known again
OUTPUTS = (
    "labels.ome.tif",
    "regions.geojson",
    "overlay.png",
    "probabilities.zarr",
    "summary.json",
    "failure.json",
    ".work",
)
OF_TRUTH = ("truth", "truth_codes", "truth_region")  # of an identity's files and settings, those of the scores


class Done(enum.Enum):
    """How a slide came to be done."""

    COMPUTED = "computed"
    SCORED = "computed before, scored now"
    BEFORE = "computed before, and scored if there is a truth"


class SlideFolder:
    """The results of one slide with one model and one set of settings, which are its identity."""

    def __init__(self, path: Path, identity: dict):
        """Takes the identity with the truth, if there is one: `files.truth` and the settings `OF_TRUTH`.

        Looks at nothing yet.
        """
        self.path, self._with_truth = path, as_json({"format": FORMAT, **identity})
        self._identity = _of_labels(self._with_truth)

    @property
    def work(self) -> Path:
        """Folder of what is not finished."""
        return self.path / ".work"

    @property
    def labels(self) -> Path:
        """Folder of the labels so far."""
        return self.work / "labels"

    def forget_labels(self) -> None:
        """Takes away the labels so far.

        Raises:
          StorageError: it cannot be written.
        """
        with storage_errors(self.labels):
            self._clear((".work/labels",))

    def finished(self) -> dict | None:
        """The summary, if the slide was finished before with this identity; whatever it was scored against."""
        summary = _read(self.path / "summary.json")
        if summary is None or _of_labels(summary.get("identity")) != self._identity:
            return None
        names = [name for name in summary["files"].values() if name]
        if not all((self.path / name).exists() for name in names):
            return None
        self.forget_work()
        return summary

    def is_scored(self, summary: dict) -> bool:
        """Whether a summary has the scores against the truth of this identity, or there is none to score against."""
        return "truth" not in self._with_truth["files"] or summary.get("identity") == self._with_truth

    def forget_work(self) -> None:
        """Takes away labels in progress.

        Raises:
          StorageError: it cannot be written.
        """
        with storage_errors(self.work):
            self._clear((".work",))

    def check(self) -> None:
        """Raises ConfigError if the folder holds results of another identity, or files of something else."""
        self._refuse_foreign()
        before = self._identity_there()
        # What was begun and has not got a row of labels has nothing that other settings could lose.
        to_lose = (self.path / "summary.json").exists() or any(self.labels.glob("row-*"))
        if to_lose and before is not None and before != self._identity:
            raise ConfigError(
                f"{self.path} holds results of other settings ({describe_differences(differences(before, self._identity))}); name "
                "another --output, take the same settings, or replace them with --overwrite"
            )

    def begin(self, *, replace: bool, anew: bool) -> None:
        """Makes the folder ready to work in: goes on with labels of this identity, makes way for them otherwise.

        Args:
          replace: results of another identity make way.
          anew: those of this one too.

        Raises:
          ConfigError: as `check`; with `replace` only for files of something else.
          StorageError: it cannot be written.
        """
        self._refuse_foreign() if replace else self.check()
        with storage_errors(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            # Without the labels they were made from, other results are of no use.
            if anew or _of_labels(_read(self.work / "identity.json")) != self._identity:
                self._clear(OUTPUTS)
            self._clear(("summary.json", "failure.json"))
            self._clear([left.name for name in OUTPUTS for left in self.path.glob(f".{name}.*")])  # of a killed process
            self.work.mkdir(exist_ok=True)
        write_text(self.work / "identity.json", json.dumps(self._identity))

    def _refuse_foreign(self):
        if self.path.exists() and not self.path.is_dir():
            raise ConfigError(f"{self.path} is no folder; name another --output")
        if self._identity_there() is not None:
            return  # a folder of ours, to which somebody may have added files
        with storage_errors(self.path):
            found = sorted(path.name for path in self.path.iterdir()) if self.path.exists() else []
        models = [name for name in found if is_of_slide(self.path / name)]
        if models:
            raise ConfigError(
                f"{self.path} holds the results of several models ({', '.join(models[:5])}), each in a folder of its own; "
                "name another --output for one alone"
            )
        others = [name for name in found if name not in OUTPUTS and not name.startswith(".")]
        if others:
            raise ConfigError(
                f"{self.path} holds {', '.join(others[:5])}, which no segmentation of a slide wrote; name another --output"
            )

    def _identity_there(self):
        summary = _read(self.path / "summary.json")
        return _of_labels(summary.get("identity") if summary else _read(self.work / "identity.json"))

    def finish(self, summary: dict) -> None:
        """Writes the summary, without scores yet, and takes away what was in progress.

        Raises:
          StorageError: it cannot be written.
        """
        self._write(summary, self._identity)
        self.forget_work()

    def keep_scores(self, summary: dict) -> None:
        """Writes the summary of a finished slide with the scores against the truth of this identity.

        Raises:
          StorageError: it cannot be written; the one without them stays.
        """
        self._write(summary, self._with_truth)

    def _write(self, summary, identity):
        rest = {name: value for name, value in summary.items() if name != "identity"}
        write_text(self.path / "summary.json", json.dumps({**rest, "identity": identity}, indent=1) + "\n")

    def _clear(self, names):
        for path in (self.path / name for name in names):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)


def fingerprints(slide: Path, **others: str | None) -> dict[str, dict]:
    """By which a slide and its files are known again.

    Args:
      slide: by its size, and the SHA-256 of both ends, without reading all of it.
      **others: masks and regions, which somebody may correct anywhere: by size, and the SHA-256 of all of it.

    Returns:
      Of `slide`, and of those others that are there.

    Raises:
      DataError: one cannot be read.
    """
    with _opened(slide) as (file, size):
        ends = file.read(HASHED)
        file.seek(max(0, size - HASHED))
        ends += file.read(HASHED)
    found = {"slide": {"bytes": size, "sha256_of_ends": hashlib.sha256(ends).hexdigest()}}
    for name, path in others.items():
        if path is not None:
            with _opened(Path(path)) as (file, size):
                found[name] = {"bytes": size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
    return found


@contextlib.contextmanager
def _opened(path):
    """A file that can be read, and its size."""
    try:
        with open(path, "rb") as file:
            yield file, os.fstat(file.fileno()).st_size
    except IsADirectoryError as error:
        raise DataError(
            f"{printable(path)}: expected a file, found a folder; name the file itself, of a DICOM slide one of its .dcm files"
        ) from error
    except OSError as error:
        raise DataError(f"{printable(path)}: expected a file, found: {error.strerror}; check the path") from error


def note_failure(path: Path, error: UserError) -> None:
    """Writes into a slide's folder why it failed; what was computed stays for another try.

    Raises:
      StorageError: it cannot be written.
    """
    write_text(path / "failure.json", json.dumps({"reason": str(error), "exit_code": error.exit_code}) + "\n")


def forget_failure(path: Path) -> None:
    """Takes away what `note_failure` wrote."""
    with storage_errors(path):
        (path / "failure.json").unlink(missing_ok=True)


def refuse_results_of_one(path: Path) -> None:
    """Raises ConfigError if a slide's folder, which is to hold one of each model, holds the results of a single one."""
    if any((path / name).exists() for name in ("summary.json", ".work")):
        raise ConfigError(f"{path} holds the results of one model; name another --output for several")


def status_of(path: Path) -> tuple[str, dict]:
    """("done", its summary), ("failed", its failure) or ("pending", {}) of a slide's folder."""
    summary, failure = _read(path / "summary.json"), _read(path / "failure.json")
    if summary is not None:
        return "done", summary
    return ("pending", {}) if failure is None else ("failed", failure)


def reason_of(path: Path) -> str:
    """Why the last try of a slide failed, also if it was done before; "" if it did not."""
    return (_read(path / "failure.json") or {}).get("reason", "")


def models_in(path: Path) -> list[Path]:
    """The folders of each model in that of a slide that several were asked about."""
    return sorted(folder for folder in path.glob("*/") if is_of_slide(folder))


def is_of_slide(path: Path) -> bool:
    """Whether a folder is one of results, finished, begun or failed."""
    return any((path / name).exists() for name in ("summary.json", "failure.json", ".work"))


def _read(path):
    """Returns the JSON object in a file, or None if there is none."""
    try:
        return read_json(path, "a JSON object", "it is left out", kind=dict)
    except DataError:
        return None


def _of_labels(identity):
    """An identity without the truth; of what is no identity, itself."""
    if not isinstance(identity, dict):
        return identity
    parts = {name: part for name in ("files", "settings") if isinstance(part := identity.get(name), dict)}
    return identity | {
        name: {key: value for key, value in part.items() if key not in OF_TRUTH} for name, part in parts.items()
    }
