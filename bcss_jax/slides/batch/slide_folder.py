"""The folder with the results of one slide: finished, in progress, or failed.

labels.ome.tif, regions.geojson, overlay.png, disagreement.png, probabilities.zarr
summary.json     written last: the slide is finished; written again when it is scored
failure.json     written in its place if the slide failed: the reason
.work/           while the slide is not finished: the labels so far, and their identity

The identity is everything that the labels depend on. The ground truth is not part of it: another ground truth gives new
scores, not new labels.
"""

import contextlib
import dataclasses
import enum
import hashlib
import json
import logging
import os
from pathlib import Path
from typing import Any, NamedTuple

from typing_extensions import TypedDict

from bcss_jax.common.files import storage_errors, write_text
from bcss_jax.common.json_files import as_json, describe_differences, differences, read_json
from bcss_jax.common.outputs import written_files
from bcss_jax.common.regular_file import check_regular_file
from bcss_jax.errors import ConfigError, DataError, UserError, printable
from bcss_jax.slides import slide_summary
from bcss_jax.slides.slide_summary import SlideSummary, read_summary
from bcss_jax.slides.store import probability_store

HASHED_BYTES = 1 << 16  # at both ends of a slide, to recognize it
FAILURE = "failure.json"
log = logging.getLogger(__name__)
OUTPUTS = (
    "labels.ome.tif",
    "regions.geojson",
    "overlay.png",
    "disagreement.png",
    "probabilities.zarr",
    slide_summary.FILE,
    FAILURE,
    ".work",
)
FILES = tuple(name for name in OUTPUTS if name not in written_files.TREES)
# Paths in the folder of what is not finished, and of temporary files of earlier versions.
WORK_FILES = r"identity\.json|labels/(row|seam-counts|tiles|disagreement)-\d+(\.json)?|(labels/)?\.[^/]+\.tmp"
TRUTH_KEYS = ("truth", "truth_codes", "truth_region")  # of the identity's files and settings: they affect scores alone


class Done(enum.Enum):
    """What a command did for a slide that is finished now."""

    COMPUTED = "computed"
    SCORED = "computed before, scored now"
    BEFORE = "computed before, and scored if there is a ground truth"


class SlideFolder:
    """The results of one slide with one model and one set of settings, which are its identity."""

    def __init__(self, path: Path, identity: dict):
        """Reads and writes nothing yet.

        Args:
          path: of the folder.
          identity: JSON, with the ground truth if there is one: `files.truth` and the settings in `TRUTH_KEYS`.
        """
        self.path = path
        self._identity_with_truth = as_json({"format": slide_summary.FORMAT, **identity})
        self.identity: dict[str, Any] = _without_truth(self._identity_with_truth)

    @property
    def work(self) -> Path:
        """Folder of what is not finished."""
        return self.path / ".work"

    @property
    def labels(self) -> Path:
        """Folder of the labels so far."""
        return self.work / "labels"

    def delete_labels(self) -> None:
        """Deletes the labels so far.

        Raises:
          StorageError: they cannot be deleted.
        """
        with storage_errors(self.labels):
            written_files.delete_tree(self.labels, WORK_FILES.replace("labels/", ""))

    def is_begun(self) -> bool:
        """Returns whether the folder holds results of this identity, finished or not."""
        return self._found_identity() == self.identity

    def finished(self) -> SlideSummary | None:
        """Returns the summary if the slide was finished with this identity, regardless of its ground truth.

        Results that are missing are computed again, and so are labels and probabilities that have changed since they
        were written. Regions and the overlay, which the user may have edited, stay as they are.
        """
        summary = _finished_summary(self.path)
        if summary is None or _without_truth(summary.identity) != self.identity:
            return None
        kinds = {name: kind for kind, name in summary.files.items() if name}
        if not all((self.path / name).exists() for name in kinds):
            return None
        for name in written_files.changed(self.path, kinds):
            what = f"{printable(self.path / name)}: has changed since it was written"
            if kinds[name] in ("labels", "probabilities"):
                log.warning("%s; the slide is computed again", what)
                return None
            log.warning("%s; it stays as it is (--overwrite computes the slide again)", what)
        self.delete_work()
        return summary

    def is_scored(self, summary: SlideSummary) -> bool:
        """Returns whether a summary has the scores against this ground truth, or there is no ground truth."""
        return "truth" not in self._identity_with_truth["files"] or summary.identity == self._identity_with_truth

    def delete_work(self) -> None:
        """Deletes labels in progress.

        Raises:
          StorageError: they cannot be deleted.
        """
        with storage_errors(self.work):
            written_files.delete_tree(self.work, WORK_FILES)

    def check(self, *, replace: bool = False) -> None:
        """Checks that the results may be written into the folder, and changes nothing.

        Args:
          replace: results of another identity may be there.

        Raises:
          ConfigError: the folder holds results of another identity, or files or links of something else.
        """
        self._refuse_foreign()
        if replace:
            return
        found = self._found_identity()
        # Without a summary or a row of labels there is nothing to lose.
        is_worth_keeping = (self.path / slide_summary.FILE).exists() or any(self.labels.glob("row-*"))
        if is_worth_keeping and found is not None and found != self.identity:
            raise ConfigError(
                f"{self.path} holds results of other settings "
                f"({describe_differences(differences(found, self.identity))}); name another --output, use the same "
                "settings, or replace the results with --overwrite"
            )

    def begin(self, *, replace: bool, recompute: bool) -> None:
        """Prepares the folder: keeps labels in progress that have this identity, and deletes all other results.

        Args:
          replace: results of another identity may be deleted.
          recompute: results of this identity are deleted too.

        Raises:
          ConfigError: as `check`; with `replace` only for files of something else.
          StorageError: it cannot be written.
        """
        self.check(replace=replace)
        with storage_errors(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            _adopt(self.path)
            # The other results are of no use without the labels that they were made from.
            if recompute or _without_truth(_read_object(self.work / "identity.json")) != self.identity:
                written_files.delete(self.path, FILES)
                probability_store.delete(self.path / "probabilities.zarr")
                written_files.delete_tree(self.work, WORK_FILES)
            written_files.delete(self.path, (slide_summary.FILE, FAILURE))
            self.work.mkdir(exist_ok=True)
        write_text(self.work / "identity.json", json.dumps(self.identity), private=True)

    def _refuse_foreign(self):
        if self.path.exists() and not self.path.is_dir():
            raise ConfigError(f"{self.path} is not a folder; name another --output")
        if self.path.is_symlink():
            raise ConfigError(f"{self.path} is a link to another folder; name another --output")
        outputs = [self.path / name for name in OUTPUTS]
        if written_files.has_record(self.path):
            written_files.check(outputs)
        written_files.check_tree(self.work, WORK_FILES)
        probability_store.check(self.path / "probabilities.zarr")
        if _has_own_document(self.path):
            # Results of this program, to which somebody may have added files.
            return written_files.check(path for path in outputs if path.is_symlink())
        with storage_errors(self.path):
            found = sorted(path.name for path in self.path.iterdir()) if self.path.exists() else []
        models = [name for name in found if has_results(self.path / name)]
        if models:
            raise ConfigError(
                f"{self.path} holds the results of several models ({', '.join(models[:5])}), one folder for each; name "
                "another --output for a single model"
            )
        own = {*written_files.names(self.path), *written_files.TREES}
        others = [name for name in found if not name.startswith(".") and name not in own]
        if others:
            raise ConfigError(
                f"{self.path} holds {', '.join(others[:5])}, which segmenting a slide did not write; name another "
                "--output"
            )

    def _found_identity(self) -> Any:
        """Returns the identity of the results in the folder without the ground truth; None if there is none."""
        summary = _read_object(self.path / slide_summary.FILE)
        return _without_truth(summary.get("identity") if summary else _read_object(self.work / "identity.json"))

    def finish(self, summary: SlideSummary) -> None:
        """Writes the summary, which has no scores yet, and deletes the labels in progress.

        Raises:
          StorageError: it cannot be written.
        """
        probabilities = summary.files.get("probabilities")
        if probabilities:
            with storage_errors(self.path):
                written_files.add_tree(self.path / probabilities)
        self._write(summary, self.identity)
        self.delete_work()

    def write_scores(self, summary: SlideSummary) -> None:
        """Writes the summary of a finished slide with the scores against this ground truth.

        Raises:
          StorageError: it cannot be written; the summary without the scores stays.
        """
        self._write(summary, self._identity_with_truth)

    def _write(self, summary, identity):
        with storage_errors(self.path):
            _adopt(self.path)
        content = dataclasses.replace(summary, identity=identity).to_json()
        write_text(self.path / slide_summary.FILE, json.dumps(content, indent=1) + "\n")


def fingerprints(slide: Path, **others: str | None) -> dict[str, dict]:
    """Returns what a slide and the files that belong to it are recognized by.

    Args:
      slide: recognized by its size and the SHA-256 of both its ends, so that it is not read whole.
      **others: masks and regions, which may be corrected anywhere: recognized by size and the SHA-256 of all bytes.

    Returns:
      JSON by name, for `slide` and those of the others that are not None.

    Raises:
      DataError: a file cannot be read.
    """
    with _opened(slide) as (file, size):
        ends = file.read(HASHED_BYTES)
        file.seek(max(0, size - HASHED_BYTES))
        ends += file.read(HASHED_BYTES)
    found: dict[str, dict] = {"slide": {"bytes": size, "sha256_of_ends": hashlib.sha256(ends).hexdigest()}}
    for name, path in others.items():
        if path is not None:
            with _opened(Path(path)) as (file, size):
                found[name] = {"bytes": size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
    return found


@contextlib.contextmanager
def _opened(path):
    """Yields the open file and its size."""
    check_regular_file(path, "a file", "name the file itself (for a DICOM slide, one of its .dcm files)")
    try:
        with open(path, "rb") as file:
            yield file, os.fstat(file.fileno()).st_size
    except OSError as error:
        raise DataError(f"{printable(path)}: expected a file, found: {error.strerror}; check the path") from error


def write_failure(path: Path, error: UserError) -> None:
    """Writes into a slide's folder why it failed; what was computed stays for another try.

    Raises:
      StorageError: it cannot be written.
    """
    with storage_errors(path):
        _adopt(path)
    write_text(path / FAILURE, json.dumps({"reason": str(error), "exit_code": error.exit_code}) + "\n")


def delete_failure(path: Path) -> None:
    """Deletes what `write_failure` wrote."""
    with storage_errors(path):
        _adopt(path)
        written_files.delete(path, [FAILURE])


def refuse_results_of_one_model(path: Path) -> None:
    """Raises ConfigError if a slide's folder holds the results of one model instead of a folder for each model."""
    if any((path / name).exists() for name in (slide_summary.FILE, ".work")):
        raise ConfigError(f"{path} holds the results of one model; name another --output for several models")


class FolderStatus(NamedTuple):
    """The status of a slide, as found in its folder.

    Attributes:
      name: "done", "failed" or "pending".
      summary: if it is done.
      reason: why the last try failed, also if the slide was done before that try; "" otherwise.
    """

    name: str
    summary: SlideSummary | None
    reason: str


def status_of(path: Path) -> FolderStatus:
    """Returns the status of a slide's folder."""
    summary, failure = _finished_summary(path), _read_object(path / FAILURE, _Failure)
    name = "done" if summary is not None else "pending" if failure is None else "failed"
    return FolderStatus(name, summary, " ".join(failure["reason"].split()) if failure else "")


def model_folders(path: Path) -> list[Path]:
    """Returns the folders of each model in the folder of a slide that was segmented by several models."""
    return sorted(folder for folder in path.glob("*/") if has_results(folder))


def is_of_several_models(path: Path) -> bool:
    """Returns whether a path is the folder of a slide with a folder of results for each of several models."""
    return path.is_dir() and not (path / slide_summary.FILE).exists() and bool(model_folders(path))


def has_results(path: Path) -> bool:
    """Returns whether a folder is one of results: finished, begun or failed."""
    return any((path / name).exists() for name in (slide_summary.FILE, FAILURE, ".work"))


def _has_own_document(path: Path) -> bool:
    """Returns whether a folder has what this program writes into every folder of a slide."""
    documents = (path / slide_summary.FILE, "identity"), (path / FAILURE, "exit_code")
    own = any(key in (_read_object(file) or {}) for file, key in documents if not file.is_symlink())
    return own or _read_object(path / ".work" / "identity.json") is not None


def _adopt(path: Path) -> None:
    """Records the files of a folder of results that was written before there were records."""
    if not written_files.has_record(path) and _has_own_document(path):
        written_files.adopt(path)


def _finished_summary(path) -> SlideSummary | None:
    """Returns the summary in a folder, or None if it is missing or damaged."""
    try:
        return read_summary(path / slide_summary.FILE)
    except DataError:
        return None


class _Failure(TypedDict):
    """What is read of failure.json."""

    reason: str


def _read_object(path, kind: Any = dict) -> Any:
    """Returns the JSON object in a file, or None if there is none of this shape."""
    try:
        return read_json(path, "a JSON object", "it is left out", kind=kind)
    except DataError:
        return None


def _without_truth(identity: Any) -> Any:
    """Returns the identity without its truth entries; values that are not identities are returned unchanged."""
    if not isinstance(identity, dict):
        return identity
    parts = {name: part for name in ("files", "settings") if isinstance(part := identity.get(name), dict)}
    return identity | {
        name: {key: value for key, value in part.items() if key not in TRUTH_KEYS} for name, part in parts.items()
    }
