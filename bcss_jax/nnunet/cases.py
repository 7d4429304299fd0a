"""Finds the cases of a data set for nnU-Net. A case is an image with nnU-Net's labels (`bcss_jax.nnunet.labels`).

Cases come from one of two sources. The first is a layout that the other systems train on too; here, regions stay whole
instead of being cut into patches. The second is a folder in nnU-Net's own layout (`bcss_jax.nnunet.raw_folder`).
"""

import contextlib
import dataclasses
import json
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
from typing_extensions import TypedDict

from bcss_jax.common import digests
from bcss_jax.common.figures import CLASS_COLORS
from bcss_jax.common.files import storage_errors, wait_for_lock
from bcss_jax.common.json_files import read_json
from bcss_jax.common.progress import ProgressLine
from bcss_jax.data import checks, discovery, synthetic, tile_reader
from bcss_jax.data.cache import digest_of_files, is_decoded_as_today, mark_decoder
from bcss_jax.data.discovery import DataSettings
from bcss_jax.data.image_files import read_pair
from bcss_jax.data.image_folder import LeftOut
from bcss_jax.data.mask_codes import PaletteColors
from bcss_jax.data.names import stated_patient
from bcss_jax.errors import ConfigError, DataError, StorageError, printable
from bcss_jax.labels import LabelScheme, lookup_table
from bcss_jax.nnunet import labels, raw_folder

RAW = "nnunet"  # the layout of nnU-Net's raw data folders
LAYOUTS = (*discovery.TILE_LAYOUTS, RAW)
log = logging.getLogger(__name__)
VERSION = 1  # version of the prepared data; increase it when they change


class _Checked(TypedDict):
    """Content of cases.json."""

    usable: list[str]
    report: checks.CheckReportJson


@dataclasses.dataclass(frozen=True)
class Case:
    """An image with its labels.

    Attributes:
      name: name of the case, unique in the data set.
      patient: the patient. All cases of one patient belong to the same fold. None: the name does not say it, and the
        case counts as a patient of its own.
      split: split of the data set: "train", "val" or "test". Test cases are in no fold.
      read: function that returns the image, uint8 RGB [H, W, 3], and the labels, uint8 [H, W].
    """

    name: str
    patient: str | None
    split: str
    read: Callable[[], tuple[np.ndarray, np.ndarray]]


@dataclasses.dataclass(frozen=True)
class Cases:
    """The cases of a data set and their labels.

    Attributes:
      train: cases of the training and validation splits, sorted by name.
      test: cases of the test split that have masks.
      dataset: content of nnU-Net's dataset.json.
      scheme: meaning of nnU-Net's labels, for scores and pictures.
      project_scheme: label scheme that nnU-Net's labels were made from; None for a raw data folder.
      folder: folder for data derived from this data set. Its name changes when a file of the data set changes.
      description: description of the data for checkpoints, like that of `tfrecords.PreparedData.describe`; None for a
        raw data folder.
      counts: number of cases that a raw data folder promises and holds, of patients (None: not known), and of what was
        left out, as JSON; None for the other layouts, which count in `description`.
      line: the same as text; "" if there is nothing to say.
    """

    train: tuple[Case, ...]
    test: tuple[Case, ...]
    dataset: dict
    scheme: LabelScheme
    project_scheme: LabelScheme | None
    folder: Path
    description: dict | None
    counts: dict | None = None
    line: str = ""


def find(settings: DataSettings, *, prepared_dir: str | os.PathLike, scheme: LabelScheme) -> Cases:
    """Returns the cases of a data set. Checks them unless they have been checked before.

    Args:
      settings: location and layout of the data set. The layout "nnunet" is a raw data folder of nnU-Net. Regions are
        not cut into patches.
      prepared_dir: folder for data derived from data sets.
      scheme: label scheme. It is not used for a raw data folder, whose dataset.json defines the labels.

    Raises:
      ConfigError: a setting is invalid.
      DataError: the data are missing or unusable.
      StorageError: `prepared_dir` cannot be written.
    """
    layout, prepared_dir = settings.layout, Path(prepared_dir).expanduser()
    if layout == RAW:
        return _raw(settings.folder or Path(), prepared_dir, settings.allow_missing)
    try:
        table = lookup_table(scheme, settings.codes)
    except ValueError as error:
        raise ConfigError(f"scheme {scheme.name} with layout {layout}: {error}") from error
    to_label = labels.remap_table(scheme)[table]
    options = {
        "layout": layout,
        "scheme": scheme.name if scheme.is_shipped else scheme.to_json(),
        "version": VERSION,
    }
    if layout == "sample":
        digest = digest_of_files(options | {"drawn_by": synthetic.VERSION}, [], None)
        patches = list(synthetic.draw())
        checked = [
            checks.CheckedTile(patch.key, patch.split, patch.patient, tile_reader.tile_stats(patch.image, patch.mask))
            for patch in patches
        ]
        description = _description(settings, synthetic.MPP, digest, checks.report_on(checked, settings.codes))
        cases = [_drawn(patch, to_label) for patch in patches]
        return _cases_of_splits(cases, scheme, prepared_dir / f"nnunet-sample-{digest[:16]}", description)
    left_out = LeftOut()
    tiles = discovery.find_tiles(dataclasses.replace(settings, patch_size=None), required=(), left_out=left_out)
    options |= {"split": settings.split_by, "allow_missing": settings.allow_missing, "max_bad": settings.max_bad}
    files = [path for tile in tiles for path in (tile.image, tile.mask) if path]
    digest = digest_of_files(options, files, settings.folder)
    folder = prepared_dir / f"nnunet-{layout}-{digest[:16]}"
    with storage_errors(prepared_dir), wait_for_lock(folder):
        _make_folder(folder, files)
        usable, report = _checked(tiles, folder, settings.allow_missing, settings.max_bad)
    report = dataclasses.replace(report, left_out=left_out.counts())
    description = _description(settings, settings.mpp, digest, report)
    lines = [f"left out: {line}"] if (line := left_out.line()) else []
    for what, paths in (("without image or mask", report.missing), ("unusable", report.bad)):
        if paths:
            lines.append(f"{len(paths)} pairs of files are {what} and left out, first {paths[0]}")
    cases = [_from_tile(tile, to_label) for tile in tiles if tile.key in usable]
    found = _cases_of_splits(cases, scheme, folder, description)
    lines += _shared_patients(found.train, found.test)
    return dataclasses.replace(found, line=f"{printable(settings.folder or '')}: {'; '.join(lines)}" if lines else "")


def _checked(tiles, folder, allow_missing, max_bad):
    """Returns the keys of the usable tiles and the check report.

    The first call reads all tiles and stores the result in `folder`. Later calls read the stored result.
    """
    file = folder / "cases.json"
    if file.exists() and not digests.is_as_written(file):
        log.warning("%s: damaged (its SHA-256 differs); the cases are checked again", file)
        file.unlink()
    if not file.exists():
        with contextlib.closing(ProgressLine("checking", len(tiles))) as line:
            usable, report = checks.check_tiles(
                tiles,
                allow_missing=allow_missing,
                max_bad=max_bad,
                patients_may_recur=True,  # the folds keep patients apart, not the splits
                sizes_may_differ=True,
                required=(),
                progress=line.update,
            )
        digests.write_text_with_digest(
            file, json.dumps({"usable": [tile.key for tile in usable], "report": report.to_json()})
        )
    expected, remedy = "the checked cases of a data set", "delete it to check them again"
    found = read_json(file, expected, remedy, kind=_Checked, error_type=StorageError)
    usable, report = set(found["usable"]), checks.CheckReport.from_json(found["report"])
    if not len(found["usable"]) == len(usable) == sum(report.tiles.values()) or not usable <= {t.key for t in tiles}:
        raise StorageError(f"{printable(file)}: expected {expected}, found another number of them; {remedy}")
    return usable, report


def _make_folder(folder: Path, files: list[Path]) -> None:
    """Makes the folder for derived data, and empties it if the files were decoded by other rules. Raises OSError."""
    if folder.is_dir() and not is_decoded_as_today(folder, files):
        shutil.rmtree(folder)
    if not folder.is_dir():
        folder.mkdir(parents=True)
        mark_decoder(folder)


def _description(settings, mpp, digest, report):
    return {
        "layout": settings.layout,
        "split": settings.effective_split_by,
        "codes": settings.codes,
        "mpp": mpp,
        "fingerprint": digest,
        "data_version": f"nnunet {VERSION}",
        **report.counted(),
    }


def _cases_of_splits(cases, scheme, folder, description):
    cases = sorted(cases, key=lambda case: case.name)
    train = tuple(case for case in cases if case.split != "test")
    if not train:
        raise DataError(f"{printable(folder)}: expected cases to train on, found none; complete the data set")
    dataset = labels.dataset_of(scheme, len(train))
    test = tuple(case for case in cases if case.split == "test")
    return Cases(train, test, dataset, scheme_of(dataset, scheme), scheme, folder, description)


def scheme_of(dataset: dict, project_scheme: LabelScheme | None = None) -> LabelScheme:
    """Returns the label scheme of nnU-Net's labels.

    The background is the first class, `ignore` is not a class, and all classes except the background are evaluated.

    Args:
      dataset: content of a dataset.json that `labels.check_dataset` accepts.
      project_scheme: label scheme that the labels were made from; its classes keep their colors. If None, the scheme
        has no colors and `figures.class_colors` chooses them by name.
    """
    by_label = {label: name for name, label in dataset["labels"].items() if name != "ignore"}
    names = tuple(by_label[label] for label in range(len(by_label)))
    colors = ()
    if project_scheme is not None:
        of_names = dict(zip(project_scheme.class_names, project_scheme.colors, strict=True))
        colors = (CLASS_COLORS["background"], *(of_names.get(name, CLASS_COLORS["ignored"]) for name in names[1:]))
    return LabelScheme("nnunet", names, len(names), tuple(range(1, len(names))), colors)


def _drawn(patch, to_label):
    return Case(patch.key, patch.patient, patch.split, lambda: (patch.image, to_label[patch.mask]))


def _from_tile(tile, to_label):
    def read():
        # The check has already given the warnings.
        image, mask = read_pair(tile.image, tile.mask, tile.codes, warn=lambda line: None)
        return image, to_label[mask]

    return Case(tile.key, tile.patient, tile.split, read)


def _raw(root, prepared_dir, allow_missing):
    """Returns the cases of a folder in nnU-Net's layout."""
    raw = raw_folder.read_raw_folder(root, allow_missing=allow_missing)
    dataset, num_codes = raw.dataset, len(raw.dataset["labels"])
    files = [path for case in raw.cases for path in (case.image, case.mask)]
    digest = digest_of_files({"layout": RAW, "dataset": dataset, "version": VERSION}, files, root)
    warn, colors = _warn_once(), PaletteColors()
    cases = [
        Case(
            name,
            stated_patient(name),
            split,
            lambda i=image, m=mask: read_pair(i, m, num_codes, warn, colors),
        )
        for name, image, mask, split in raw.cases
    ]
    train = tuple(case for case in cases if case.split == "train")
    test = tuple(case for case in cases if case.split == "test")
    patients = {case.patient for case in train if case.patient}
    line = f"{raw.line()}; {_patients_line(train, patients)}"
    line = "; ".join([line, *_shared_patients(train, test)])
    unstated = sum(case.patient is None for case in train)
    counts = {**raw.counts(), "patients": None if unstated else len(patients), "cases_without_patient": unstated}
    folder = prepared_dir / f"nnunet-raw-{digest[:16]}"
    with storage_errors(prepared_dir), wait_for_lock(folder):
        _make_folder(folder, files)
    return Cases(train, test, dataset, scheme_of(dataset), None, folder, None, counts, line)


def _warn_once() -> Callable[[str], None]:
    """Returns a function that logs a warning unless it has logged it before: cases are read several times."""
    said = set()

    def warn(line):
        if line not in said:
            said.add(line)
            log.warning("%s", line)

    return warn


def _shared_patients(train, test):
    """Returns a phrase if patients have cases to train on and test cases."""
    shared = {case.patient for case in train if case.patient} & {case.patient for case in test}
    if not shared:
        return []
    return [
        f"{len(shared)} patients have cases to train on and test cases (first {printable(min(shared))}), so the scores "
        "of the test cases are too high"
    ]


def _patients_line(cases, patients):
    unstated = sum(case.patient is None for case in cases)
    if not unstated:
        return f"{len(patients)} patients by the beginnings of the names (first {printable(min(patients))})"
    return (
        f"the names of {unstated} cases do not say their patient, so each of these cases counts as a patient of its own"
    )
