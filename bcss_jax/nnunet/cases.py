"""Finds the cases of a data set for nnU-Net. A case is an image with nnU-Net's labels (`bcss_jax.nnunet.labels`).

Cases come from one of two sources. The first is a layout that the other systems train on too; here, regions stay whole
instead of being cut into patches. The second is a folder in nnU-Net's own layout: `dataset.json`,
`imagesTr/NAME_0000.png`, `labelsTr/NAME.png` and optionally `imagesTs` and `labelsTs`.
"""

import contextlib
import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from bcss_jax.common.figures import CLASS_COLORS
from bcss_jax.common.files import storage_errors, wait_for_lock, write_text
from bcss_jax.common.json_files import read_json
from bcss_jax.common.progress import ProgressLine
from bcss_jax.data import checks, discovery, synthetic, tile_reader
from bcss_jax.data.cache import digest_of_files
from bcss_jax.data.discovery import DataSettings
from bcss_jax.data.image_files import SUFFIXES, read_pair
from bcss_jax.data.names import patient_of
from bcss_jax.errors import ConfigError, DataError, StorageError, printable
from bcss_jax.labels import LabelScheme, lookup_table
from bcss_jax.nnunet import labels

RAW = "nnunet"  # the layout of nnU-Net's raw data folders
LAYOUTS = (*discovery.LAYOUTS, RAW)
RAW_SPLITS = (("imagesTr", "labelsTr", "train"), ("imagesTs", "labelsTs", "test"))  # images, labels, split
VERSION = 1  # version of the prepared data; increase it when they change


@dataclasses.dataclass(frozen=True)
class Case:
    """An image with its labels.

    Attributes:
      name: name of the case, unique in the data set.
      patient: the patient. All cases of one patient belong to the same fold.
      split: split of the data set: "train", "val" or "test". Test cases are in no fold.
      read: function that returns the image, uint8 RGB [H, W, 3], and the labels, uint8 [H, W].
    """

    name: str
    patient: str
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
    """

    train: tuple[Case, ...]
    test: tuple[Case, ...]
    dataset: dict
    scheme: LabelScheme
    project_scheme: LabelScheme | None
    folder: Path
    description: dict | None


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
        return _raw(settings.folder or Path(), prepared_dir)
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
    tiles = discovery.find_tiles(dataclasses.replace(settings, patch_size=None), required=())
    options |= {"split": settings.split_by, "allow_missing": settings.allow_missing, "max_bad": settings.max_bad}
    files = (path for tile in tiles for path in (tile.image, tile.mask) if path)
    digest = digest_of_files(options, files, settings.folder)
    folder = prepared_dir / f"nnunet-{layout}-{digest[:16]}"
    with storage_errors(prepared_dir), wait_for_lock(folder):
        usable, report = _checked(tiles, folder, settings.allow_missing, settings.max_bad)
    description = _description(settings, settings.mpp, digest, report)
    cases = [_from_tile(tile, to_label) for tile in tiles if tile.key in usable]
    return _cases_of_splits(cases, scheme, folder, description)


def _checked(tiles, folder, allow_missing, max_bad):
    """Returns the keys of the usable tiles and the check report.

    The first call reads all tiles and stores the result in `folder`. Later calls read the stored result.
    """
    file = folder / "cases.json"
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
        folder.mkdir(parents=True, exist_ok=True)
        content = json.dumps({"usable": [tile.key for tile in usable], "report": report.to_json()})
        write_text(file, content, private=True)
    found = read_json(
        file, "the checked cases of a data set", "delete it to check them again", kind=dict, error_type=StorageError
    )
    return set(found["usable"]), checks.CheckReport(**found["report"])


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


def _raw(root, prepared_dir):
    """Returns the cases of a folder in nnU-Net's layout."""
    file = root / "dataset.json"
    dataset = read_json(
        file,
        "a raw data folder of nnU-Net with dataset.json, imagesTr and labelsTr",
        "correct the file, or name another folder with --config.data.dir",
        kind=dict,
    )
    labels.check_dataset(dataset)
    ending = dataset.get("file_ending", ".png")
    if ending not in SUFFIXES:
        raise DataError(
            f"{printable(file)}: expected file_ending {', '.join(SUFFIXES)}, found {ending!r}; convert the images"
        )
    pairs = [pair for folders in RAW_SPLITS for pair in _raw_pairs(root, *folders, ending)]
    digest = digest_of_files(
        {"layout": RAW, "dataset": dataset, "version": VERSION}, [path for pair in pairs for path in pair[1:3]], root
    )
    num_codes = len(dataset["labels"])
    cases = [
        Case(name, _patient(name), split, lambda i=image, m=mask: read_pair(i, m, num_codes, warn=lambda line: None))
        for name, image, mask, split in pairs
    ]
    train = tuple(case for case in cases if case.split == "train")
    folder = prepared_dir / f"nnunet-raw-{digest[:16]}"
    test = tuple(case for case in cases if case.split == "test")
    return Cases(train, test, dataset, scheme_of(dataset), None, folder, None)


def _raw_pairs(root, images_folder, labels_folder, split, ending):
    """Returns (name, image path, mask path, split) of each case in two folders of a raw data folder."""
    images_in, labels_in = root / images_folder, root / labels_folder
    if split == "test" and not labels_in.is_dir():
        return []
    for folder in (images_in, labels_in):
        if not folder.is_dir():
            raise DataError(f"{printable(folder)}: expected a folder, found none; complete the raw data folder")
    images = {path.name.removesuffix(f"_0000{ending}"): path for path in sorted(images_in.glob(f"*_0000{ending}"))}
    masks = {path.name.removesuffix(ending): path for path in sorted(labels_in.glob(f"*{ending}"))}
    more = sorted(path.name for path in images_in.glob(f"*_0001{ending}"))
    if more:
        raise DataError(
            f"{printable(images_in / more[0])}: expected one RGB file per case (NAME_0000{ending}), found one file "
            "per channel; join them"
        )
    unpaired = sorted(images.keys() ^ masks.keys())
    if unpaired or not images:
        found = f"{len(unpaired)} without the other, first {printable(unpaired[0])}" if unpaired else "none"
        raise DataError(
            f"{printable(images_in)}: expected images NAME_0000{ending} and masks {labels_in.name}/NAME{ending}, found "
            f"{found}; complete the folders"
        )
    return [(name, images[name], masks[name], split) for name in sorted(images)]


def _patient(name):
    """Returns the TCGA patient at the start of a name, or the name itself: such a case counts as a separate patient."""
    return patient_of(name) or name
