"""Stores what is derived from a data set: its fingerprint, and the preprocessed cases that patches are cut from."""

import contextlib
import dataclasses
import functools
import hashlib
import json
import logging
import os
from collections.abc import Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import Field
from typing_extensions import TypedDict

from bcss_jax.common import digests
from bcss_jax.common.files import storage_errors, sync, sync_tree, wait_for_lock
from bcss_jax.common.interruption import safe_point
from bcss_jax.common.json_files import as_json, read_json
from bcss_jax.common.npz_files import read_npz
from bcss_jax.common.outputs import written_files
from bcss_jax.common.progress import ProgressLine
from bcss_jax.errors import DataError, StorageError, first_line, printable
from bcss_jax.nnunet.cases import Case, Cases
from bcss_jax.nnunet.fingerprint import extract_fingerprint
from bcss_jax.nnunet.preprocess import preprocess
from bcss_jax.nnunet.run_files import read_fingerprint

_ARRAYS = ("data.npy", "labels.npy", "locations.npz")
_NO_DIGESTS = "no digests"
log = logging.getLogger(__name__)


_AGAIN = "delete its folder, so that the cases are preprocessed again"
_Pair = Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=2, max_length=2)]


class _Properties(TypedDict):
    """What is read of the JSON file of a case."""

    shape_before_cropping: _Pair
    bbox_used_for_cropping: Annotated[list[_Pair], Field(min_length=2, max_length=2)]


@dataclasses.dataclass(frozen=True)
class StoredCase:
    """A preprocessed case in files, which are opened at each access: data sets have tens of thousands of cases.

    Attributes:
      name: of the case.
      path: of its files, without their suffixes.
    """

    name: str
    path: Path

    @property
    def data(self) -> np.ndarray:
        """float32 [H, W, C], a memory map."""
        return self._open("data.npy")

    @property
    def labels(self) -> np.ndarray:
        """Integers [H, W], a memory map."""
        return self._open("labels.npy")

    @property
    def class_locations(self) -> dict[Hashable, np.ndarray]:
        """As in `preprocess.PreprocessedCase`."""
        path = self.file("locations.npz")
        found = read_npz(path, "the locations of the classes of a preprocessed case", _AGAIN)
        try:
            return {_key(name): array for name, array in found.items()}
        except ValueError as error:
            raise DataError(
                f"{printable(path)}: expected labels as names, found {first_line(error)}; {_AGAIN}"
            ) from error

    @property
    def properties(self) -> dict:
        """As in `preprocess.PreprocessedCase`, without the class locations."""
        return read_json(self.file("json"), "a preprocessed case", _AGAIN, kind=_Properties)

    def file(self, ending: str) -> Path:
        """Returns the path of one of the files of the case."""
        return self.path.with_name(f"{self.path.name}.{ending}")

    def _open(self, ending):
        path = self.file(ending)
        try:
            return np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise DataError(
                f"{printable(path)}: expected an array of a preprocessed case, found: {first_line(error)}; {_AGAIN}"
            ) from error


def fingerprint_of(cases: Cases) -> dict:
    """Returns the fingerprint of the training cases; it is computed once and stored.

    Raises:
      DataError: a case cannot be read.
      StorageError: it cannot be stored.
    """
    file = cases.folder / "dataset_fingerprint.json"
    with storage_errors(file), wait_for_lock(cases.folder):
        if file.exists() and not digests.is_as_written(file):
            log.warning("%s: damaged (its SHA-256 differs); it is taken again", file)
            file.unlink()
        if not file.exists():
            cases.folder.mkdir(parents=True, exist_ok=True)
            count = len(cases.train)
            with contextlib.closing(ProgressLine("fingerprint", count)) as line:

                @functools.lru_cache(1)  # image and mask are read together, and used one after the other
                def read(index):
                    safe_point()
                    line.update(index)
                    return cases.train[index].read()

                images, masks = _Column(read, count, 0), _Column(read, count, 1)
                found = extract_fingerprint(images, masks, names=[case.name for case in cases.train])
            digests.write_text_with_digest(file, json.dumps(found, indent=1))
        return read_fingerprint(file, "delete it to take it again", StorageError)


def preprocessed(cases: Sequence[Case], dataset: dict, plan: dict, folder: Path) -> list[StoredCase]:
    """Preprocesses the cases that are not stored yet. Returns all of them.

    Args:
      cases: of one data set.
      dataset: its dataset.json.
      plan: its `2d` configuration decides how cases are preprocessed.
      folder: for everything derived from the data set; each way of preprocessing has its own folder in it.

    Raises:
      DataError: a case cannot be read or does not fit the plan.
      StorageError: the files cannot be written.
    """
    configuration = plan["configurations"]["2d"]
    keys = ("normalization_schemes", "use_mask_for_norm", "spacing")
    how = [configuration[key] for key in keys] + [plan["foreground_intensity_properties_per_channel"]]
    digest = hashlib.sha256(json.dumps(how, sort_keys=True).encode()).hexdigest()
    home = folder / f"preprocessed-{digest[:12]}"
    stored = [StoredCase(case.name, home / hashlib.sha256(case.name.encode()).hexdigest()[:24]) for case in cases]
    with storage_errors(home), wait_for_lock(home):
        home.mkdir(parents=True, exist_ok=True)
        sound = _sound(stored)
        missing = [(case, to) for case, to, done in zip(cases, stored, sound, strict=True) if not done]
        with contextlib.closing(ProgressLine("preprocessing", len(missing))) as line:
            for done, (case, to) in enumerate(missing, 1):
                safe_point("stopped between two cases; the same command goes on from there")
                _write(case, to.path, dataset, plan)
                line.update(done)
    return stored


def _sound(stored: Sequence[StoredCase]) -> list[bool]:
    """Returns which cases are complete and as they were written. Logs the damaged ones.

    Cases of earlier versions have no digests, so they are only complete.
    """
    complete = [case for case in stored if case.path.with_suffix(".json").exists()]
    problems = {}
    with (
        ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool,
        contextlib.closing(ProgressLine("verifying", len(complete))) as line,
    ):
        for done, (case, problem) in enumerate(zip(complete, pool.map(_damage, complete), strict=True), 1):
            problems[case.path] = problem
            line.update(done)
    damaged = {case.name: problems[case.path] for case in complete if problems[case.path] not in (None, _NO_DIGESTS)}
    for name, problem in damaged.items():
        log.warning("%s: the preprocessed case is damaged (%s); it is preprocessed again", name, problem)
    unverified = sum(problem == _NO_DIGESTS for problem in problems.values())
    if unverified:
        log.warning(
            "%s: %d cases were preprocessed by an earlier version, without digests: used, but not verified",
            stored[0].path.parent,
            unverified,
        )
    return [case.path in problems and case.name not in damaged for case in stored]


def _damage(case: StoredCase) -> str | None:
    """Returns what is damaged in the files of a case, or that it has no digests; None if all is as it was written."""
    try:
        record = read_json(case.path.with_suffix(".json"), "a preprocessed case", "preprocess it again", kind=dict)
        expected = record.pop("sha256", None)
        if expected is None:
            return _NO_DIGESTS
        found = {ending: digests.sha256_of_file(case.file(ending)) for ending in _ARRAYS}
        return digests.differing(expected, found | {"json": digests.sha256_of_json(record)})
    except (DataError, OSError, AttributeError) as error:
        return first_line(error)


def _write(case, path, dataset, plan):
    image, mask = case.read()
    try:
        data, labels, properties = preprocess(image, mask, plan, dataset)
    except DataError as error:
        raise DataError(f"{case.name}: {error}") from error
    partial = path.with_name(path.name + ".partial")
    written_files.delete_tree(partial, r"(data|labels)\.npy|locations\.npz|json")
    partial.mkdir()
    np.save(partial / "data.npy", data, allow_pickle=False)
    np.save(partial / "labels.npy", labels, allow_pickle=False)
    locations = properties.pop("class_locations")
    np.savez(partial / "locations.npz", **{_name(key): pixels.astype(np.int32) for key, pixels in locations.items()})
    record = as_json({"name": case.name, **properties})
    sha256 = digests.sha256_of_files(partial, _ARRAYS) | {"json": digests.sha256_of_json(record)}
    (partial / "json").write_text(json.dumps(record | {"sha256": sha256}))
    sync_tree(partial)
    for ending in (*_ARRAYS, "json"):  # the last one shows that the case is complete
        os.replace(partial / ending, path.with_name(f"{path.name}.{ending}"))
    partial.rmdir()
    sync(path.parent)


def _name(key: Hashable) -> str:
    """Returns the name of an array of locations, which `_key` reads: label 2 -> "2", labels (0, 1) -> "0,1,"."""
    return "".join(f"{label}," for label in key) if isinstance(key, tuple) else str(key)


def _key(name: str) -> Hashable:
    return tuple(int(label) for label in name.split(",")[:-1]) if "," in name else int(name)


class _Column(Sequence):
    """The images (0) or the masks (1) of cases, which are read when they are accessed."""

    def __init__(self, read, count, which):
        self._read, self._count, self._which = read, count, which

    def __len__(self):
        return self._count

    def __getitem__(self, index):
        return self._read(index)[self._which]
