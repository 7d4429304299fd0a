"""Reads a folder in nnU-Net's raw layout and compares what it promises with what it holds.

`dataset.json`, `imagesTr/NAME_0000.png`, `labelsTr/NAME.png` and optionally `imagesTs` and `labelsTs`. Nothing is left
out without being counted: `dataset.json` says how many training cases there are (`numTraining`) and may list their
files, and the folders must hold exactly these.
"""

import collections
import dataclasses
import os
import re
from pathlib import Path
from typing import Any, NamedTuple

from bcss_jax.common.digests import sha256_of_file
from bcss_jax.common.interruption import safe_point
from bcss_jax.common.json_files import read_json
from bcss_jax.common.ranges import Range
from bcss_jax.common.regular_file import check_regular_file
from bcss_jax.data.image_files import FORMATS, SUFFIXES
from bcss_jax.data.image_folder import LeftOut, comparable, composed, list_images, misspelled
from bcss_jax.errors import DataError, printable
from bcss_jax.nnunet import labels

SPLITS = (("imagesTr", "labelsTr", "train"), ("imagesTs", "labelsTs", "test"))  # images, labels, split
READERS = (None, "", "NaturalImage2DIO")  # nnU-Net's reader of 2D images; it is the default
_CHANNEL = re.compile(r"(?P<name>.+)_(?P<channel>\d{4})", re.DOTALL)


class RawCase(NamedTuple):
    """The files of a case: its name, image, mask, and "train" or "test"."""

    name: str
    image: Path
    mask: Path
    split: str


@dataclasses.dataclass(frozen=True)
class RawFolder:
    """A raw data folder.

    Attributes:
      path: of the folder.
      dataset: content of dataset.json.
      cases: the cases with a mask, the training cases first, sorted by name.
      left_out: what else the folders hold.
      remarks: what differs from the promise and is accepted, one phrase each.
    """

    path: Path
    dataset: dict[str, Any]
    cases: tuple[RawCase, ...]
    left_out: LeftOut
    remarks: tuple[str, ...]

    def counts(self) -> dict:
        """Returns the number of cases that were promised and found, and of what was left out, as JSON."""
        return {
            "promised": {key: self.dataset[key] for key in ("numTraining", "numTest") if key in self.dataset},
            "cases": {split: self._number(split) for split in ("train", "test")},
            "left_out": self.left_out.counts(),
        }

    def line(self) -> str:
        """Returns the counts as one line of text."""
        promised = self.dataset.get("numTraining")
        parts = [
            f"{self._number('train')} training cases ("
            + ("dataset.json gives no number" if promised is None else f"dataset.json says {promised}")
            + f"), {self._number('test')} test cases with masks",
            *self.remarks,
        ]
        if line := self.left_out.line():
            parts.append(f"left out: {line}")
        return f"{printable(self.path)}: {'; '.join(parts)}"

    def _number(self, split):
        return sum(case.split == split for case in self.cases)


def read_raw_folder(root: Path, *, allow_missing: bool = False) -> RawFolder:
    """Lists the cases of a raw data folder. No pixel is read.

    Args:
      root: the folder.
      allow_missing: leave out images without a mask and masks without an image, and accept another number of cases than
        dataset.json promises, instead of raising an error.

    Raises:
      DataError: dataset.json is missing or cannot be used, or the folders do not hold what it promises.
    """
    file = root / "dataset.json"
    for wanted, found in misspelled(root, ["dataset.json", *(name for names in SPLITS for name in names[:2])]).items():
        raise DataError(f"{printable(root / found)}: expected the name {wanted}; rename it")
    dataset = read_json(
        file,
        "a raw data folder of nnU-Net with dataset.json, imagesTr and labelsTr",
        "correct the file, or name another folder with --config.data.dir",
        kind=dict,
    )
    try:
        labels.check_dataset(dataset)
    except DataError as error:
        raise DataError(f"{printable(file)}: {str(error).removeprefix('nnU-Net dataset.json: ')}") from error
    endings = _check_fields(file, dataset)
    left_out, remarks, cases = LeftOut(), [], []
    for images, masks, split in SPLITS:
        cases += _cases_of_split(root / images, root / masks, split, endings, left_out, allow_missing)
    _refuse_common_names(cases)
    train = [case for case in cases if case.split == "train"]
    promised = dataset.get("numTraining")
    if promised is not None and promised != len(train):
        if not allow_missing:
            raise DataError(
                f"{printable(file)}: expected {promised} training cases (numTraining), found {len(train)} in imagesTr "
                f"and labelsTr{_also(left_out)}; complete the folders, or correct numTraining"
            )
        remarks.append("the others are missing")
    tests = len(left_out.unlabeled) + len(cases) - len(train)
    if dataset.get("numTest", tests) != tests:
        remarks.append(f"dataset.json says {dataset['numTest']} test images, imagesTs holds {tests}")
    _check_listed(file, dataset, train)
    remarks += _equal_images(cases)
    return RawFolder(root, dataset, tuple(cases), left_out, tuple(remarks))


def _check_fields(file: Path, dataset: dict) -> tuple[str, ...]:
    """Checks the fields of dataset.json that say how files are named and read. Returns the endings of the files."""
    ending = dataset.get("file_ending", ".png")
    alike = [endings for endings in FORMATS.values() if isinstance(ending, str) and ending.lower() in endings]
    if not alike:
        found = repr(ending) if len(repr(ending)) <= 40 else f"{repr(ending)[:40]}..."
        raise DataError(
            f"{printable(file)}: expected file_ending {', '.join(SUFFIXES)}, found {found}; convert the images, or "
            "correct it"
        )
    for key in ("numTraining", "numTest"):
        if key in dataset and dataset[key] not in Range(0, 10**9, whole=True):
            found = ascii(dataset[key])[:80]
            raise DataError(f"{printable(file)}: expected {key} as a number of cases, found {found}; correct it")
    reader = dataset.get("overwrite_image_reader_writer")
    if reader not in READERS:
        raise DataError(
            f"{printable(file)}: expected overwrite_image_reader_writer NaturalImage2DIO or none, found {reader!r}, "
            "which reads other files than plain RGB images; convert the images and remove the field"
        )
    return alike[0]


def _cases_of_split(images_in, masks_in, split, endings, left_out, allow_missing) -> list[RawCase]:
    """Returns the cases of a folder of images and its folder of masks."""
    if split == "test" and not masks_in.is_dir():
        if images_in.is_dir():
            left_out.unlabeled += list_images(images_in, left_out)
        return []
    for folder in (images_in, masks_in):
        if not folder.is_dir():
            raise DataError(f"{printable(folder)}: expected a folder, found none; complete the raw data folder")
    images = _images(images_in, endings, left_out)
    masks = _masks(masks_in, endings, left_out, images)
    if not images and not masks and split == "test":
        return []
    unpaired = {name: images.get(name) or masks[name] for name in sorted(images.keys() ^ masks.keys())}
    if not images or (unpaired and not allow_missing):
        without = [
            f"{len(names)} {what}, first {printable(unpaired[names[0]].name)}"
            for what, names in (
                ("image(s) without a mask", [name for name in unpaired if name in images]),
                ("mask(s) without an image", [name for name in unpaired if name in masks]),
            )
            if names
        ]
        raise DataError(
            f"{printable(images_in)}: expected images NAME_0000{endings[0]} and masks {masks_in.name}/NAME"
            f"{endings[0]}, found {', '.join(without) or 'none'}{_also(left_out)}; complete the folders"
            + (", or leave them out with --config.data.allow_missing" if images else "")
        )
    left_out.unpaired += unpaired.values()
    return [RawCase(name, images[name], masks[name], split) for name in sorted(images.keys() & masks.keys())]


def _images(folder, endings, left_out) -> dict[str, Path]:
    """Returns the images in a folder by the name of their case."""
    images, channels, misnamed, others = {}, [], [], []
    for path in list_images(folder, left_out):
        match = _CHANNEL.fullmatch(path.stem)
        if path.suffix.lower() not in endings:
            (others if match else left_out.others).append(path)
        elif match is None:
            misnamed.append(path)
        elif match["channel"] != "0000":
            channels.append(path)
        else:
            images[path] = match["name"]
    expected = f"one RGB file per case (NAME_0000{endings[0]})"
    _refuse(channels, expected, "found one file per channel", "join the channels")
    _refuse(misnamed, expected, "found an image without _0000", "rename or remove it")
    _refuse(others, f"{expected}, as file_ending says", "found another ending", "convert or remove it")
    return _by_name(images)


def _masks(folder, endings, left_out, images) -> dict[str, Path]:
    """Returns the masks in a folder by the name of their case."""
    masks, others = [], []
    for path in list_images(folder, left_out):
        if path.suffix.lower() in endings:
            masks.append(path)
        else:
            (others if composed(path.stem) in images else left_out.others).append(path)
    expected = f"masks NAME{endings[0]}, as file_ending says"
    _refuse(others, expected, "found another ending", "export it again, or remove it")
    return _by_name({path: path.stem for path in masks})


def _by_name(names: dict[Path, str]) -> dict[str, Path]:
    found = {}
    for path, name in names.items():
        check_regular_file(path, "an image file", "remove it, or restore what the link leads to")
        if comparable(name) in found:
            other = printable(found[comparable(name)][1].name)
            raise DataError(
                f"{printable(path)}: expected one file of that name, found {other} too; remove or rename one of them"
            )
        found[comparable(name)] = composed(name), path
    return dict(found.values())


def _refuse(paths, expected, found, remedy):
    if paths:
        more = f" (and {len(paths) - 1} more)" if len(paths) > 1 else ""
        raise DataError(f"{printable(paths[0])}{more}: expected {expected}, {found}; {remedy}")


def _refuse_common_names(cases: list[RawCase]) -> None:
    """Raises DataError if a training case and a test case have the same name: results are stored by name."""
    seen = {}
    for case in cases:
        other = seen.setdefault(comparable(case.name), case)
        if other is not case:
            raise DataError(
                f"{printable(case.image)}: expected a name that no training case has, found {printable(other.image)}; "
                "rename or remove one of the cases"
            )


def _equal_images(cases: list[RawCase]) -> list[str]:
    """Returns a phrase if images of several cases are the same but for their names: folds do not keep them together.

    Only files of one size are read, and of these the whole content only if their beginnings are equal.
    """
    groups = [cases]
    for key in (lambda path: path.stat().st_size, _beginning, sha256_of_file):
        found = collections.defaultdict(list)
        for number, group in enumerate(groups):
            for case in group:
                safe_point()
                try:
                    found[number, key(case.image)].append(case)
                except OSError:  # whoever reads the pixels reports what is wrong with the file
                    continue
        groups = [group for group in found.values() if len(group) > 1]
    if not groups:
        return []
    first, second = groups[0][:2]
    return [
        f"{sum(map(len, groups))} cases repeat the image of another case (first {printable(first.name)} and "
        f"{printable(second.name)}); where one is trained on and another one scored, the score is too high"
    ]


def _beginning(path: Path) -> bytes:
    with open(path, "rb") as file:
        return file.read(4096)


def _check_listed(file: Path, dataset: dict, cases: list[RawCase]) -> None:
    """Raises DataError if dataset.json lists other training files than those in imagesTr and labelsTr.

    nnU-Net v1 wrote the list `training` with images and labels, nnU-Net v2 reads `dataset`, names with their files.
    """
    found = {(_place(file.parent, case.image), _place(file.parent, case.mask)) for case in cases}
    for key, kind in (("training", list), ("dataset", dict)):
        if not (entries := dataset.get(key)):
            continue
        entries = list(entries.values() if isinstance(entries, dict) else entries) if isinstance(entries, kind) else []
        if not entries or not all(isinstance(entry, dict) for entry in entries):
            raise DataError(
                f"{printable(file)}: expected {key} to list the image and the label of each case, found something "
                "else; correct or remove it"
            )
        listed = [_listed(file.parent, entry) for entry in entries]
        differing = sorted(found.symmetric_difference(listed))
        if differing or len(set(listed)) < len(listed):
            raise DataError(
                f"{printable(file)}: expected {key} to list the cases of imagesTr and labelsTr once, found "
                f"{len(listed)} entries for {len(found)} cases"
                + (f", differing first in {printable(differing[0][0])}" if differing else "")
                + "; complete the folders, or correct or remove the list"
            )


def _listed(root, entry):
    images = entry.get("images", entry.get("image"))
    images = images if isinstance(images, list) else [images]
    return ",".join(_place(root, str(image)) for image in images), _place(root, str(entry.get("label")))


def _place(root: Path, path: Path | str) -> str:
    """Returns a path relative to the root for comparison: without the channel, which lists of nnU-Net v1 lack."""
    stem, ending = os.path.splitext(os.path.relpath(root / path, root))
    return composed(stem).removesuffix("_0000") + ending.lower()


def _also(left_out: LeftOut) -> str:
    line = left_out.line()
    return f" (left out: {line})" if line else ""
