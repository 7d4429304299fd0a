"""Stores what is derived from a data set: its fingerprint, and the preprocessed cases that patches are cut from."""

import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import shutil
from collections.abc import Hashable, Sequence
from pathlib import Path

import numpy as np

from bcss_jax.common.files import storage_errors, wait_for_lock, write_text
from bcss_jax.common.json_files import read_json
from bcss_jax.common.progress import ProgressLine
from bcss_jax.errors import DataError, StorageError
from bcss_jax.nnunet.cases import Case, Cases
from bcss_jax.nnunet.fingerprint import extract_fingerprint
from bcss_jax.nnunet.preprocess import preprocess


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
        with np.load(self._file("locations.npz"), allow_pickle=False) as arrays:
            return {_key(name): array for name, array in arrays.items()}

    @property
    def properties(self) -> dict:
        """As in `preprocess.PreprocessedCase`, without the class locations."""
        return json.loads(self._file("json").read_text())

    def _open(self, ending):
        return np.load(self._file(ending), mmap_mode="r", allow_pickle=False)

    def _file(self, ending):
        return self.path.with_name(f"{self.path.name}.{ending}")


def fingerprint_of(cases: Cases) -> dict:
    """Returns the fingerprint of the training cases; it is computed once and stored.

    Raises:
      DataError: a case cannot be read.
      StorageError: it cannot be stored.
    """
    file = cases.folder / "dataset_fingerprint.json"
    with storage_errors(file), wait_for_lock(cases.folder):
        if not file.exists():
            cases.folder.mkdir(parents=True, exist_ok=True)
            count = len(cases.train)
            with contextlib.closing(ProgressLine("fingerprint", count)) as line:

                @functools.lru_cache(1)  # image and mask are read together, and used one after the other
                def read(index):
                    line.update(index)
                    return cases.train[index].read()

                images, masks = _Column(read, count, 0), _Column(read, count, 1)
                found = extract_fingerprint(images, masks, names=[case.name for case in cases.train])
            write_text(file, json.dumps(found, indent=1), private=True)
        return read_json(
            file, "the fingerprint of a data set", "delete it to take it again", kind=dict, error_type=StorageError
        )


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
        missing = [
            (case, to) for case, to in zip(cases, stored, strict=True) if not to.path.with_suffix(".json").exists()
        ]
        with contextlib.closing(ProgressLine("preprocessing", len(missing))) as line:
            for done, (case, to) in enumerate(missing, 1):
                _write(case, to.path, dataset, plan)
                line.update(done)
    return stored


def _write(case, path, dataset, plan):
    image, mask = case.read()
    try:
        data, labels, properties = preprocess(image, mask, plan, dataset)
    except DataError as error:
        raise DataError(f"{case.name}: {error}") from error
    partial = path.with_name(path.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    np.save(partial / "data.npy", data, allow_pickle=False)
    np.save(partial / "labels.npy", labels, allow_pickle=False)
    locations = properties.pop("class_locations")
    np.savez(partial / "locations.npz", **{_name(key): pixels.astype(np.int32) for key, pixels in locations.items()})
    (partial / "json").write_text(json.dumps({"name": case.name, **properties}))
    for ending in ("data.npy", "labels.npy", "locations.npz", "json"):  # the last one shows that the case is complete
        os.replace(partial / ending, path.with_name(f"{path.name}.{ending}"))
    partial.rmdir()


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
