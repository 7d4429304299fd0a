"""The annotated slides of a data set: from a folder or a list, with their patients and splits."""

import collections
import dataclasses
import logging
import math
import os
from collections.abc import Sequence
from pathlib import Path

from bcss_jax.common.files import portable_stem
from bcss_jax.data import names
from bcss_jax.data.csv_list import number_of, read_rows
from bcss_jax.data.image_folder import LeftOut, comparable
from bcss_jax.data.resolution.check import check_mpp
from bcss_jax.data.sampling.folds import NUM_FOLDS, by_patient
from bcss_jax.data.slides.pairs import pairs_in_folder
from bcss_jax.errors import DataError, printable

log = logging.getLogger(__name__)

COLUMNS = ("slide", "annotations", "mpp", "patient", "split", "weight")
SPLITS = ("train", "val", "test")
MAX_WEIGHT = 1000.0
MAX_NAME = 200  # characters of a patient


@dataclasses.dataclass(frozen=True)
class AnnotatedSlide:
    """A slide with its annotations.

    Attributes:
      slide: the file.
      annotations: the file of its annotations.
      name: unique in the data set: the stem of the slide's file, with its folder where that is not unique.
      patient: whose tissue it shows.
      split: "train", "val" or "test".
      mpp: um per pixel of level 0 that the list gives; None: what the slide states.
      weight: how often its patches are drawn, compared with those of other slides.
    """

    slide: Path
    annotations: Path
    name: str
    patient: str
    split: str = ""
    mpp: float | None = None
    weight: float = 1.0


@dataclasses.dataclass(frozen=True)
class FoundSlides:
    """The slides of a data set.

    Attributes:
      slides: sorted by name.
      split_by: "list" if the list says the splits; "patient" if the patients of all slides are known; else "slide".
      missing: a line for each slide without annotations and each file of annotations without a slide.
    """

    slides: tuple[AnnotatedSlide, ...]
    split_by: str
    missing: tuple[str, ...]


def find_slides(
    folder: Path | None, slide_list: Path | None, *, allow_missing: bool = False, left_out: LeftOut | None = None
) -> FoundSlides:
    """Finds the slides of a data set, the patient of each and its split. No slide is opened.

    The patient is what the list says, or else what the name of the slide says (`names.stated_patient`), or else the
    slide counts as a patient. Without a column `split`, about one patient in five is held out for validation: the first
    fold of `folds.by_patient`.

    Args:
      folder: slides beside annotations of the same stem; None with a list.
      slide_list: CSV with the columns `COLUMNS`, of which slide and annotations are required. Paths are relative to its
        folder.
      allow_missing: leave out slides without annotations and the reverse, instead of raising an error.
      left_out: gets what else is in the folder.

    Raises:
      DataError: a file is missing, a line of the list is wrong, a slide is there twice, a patient is in two splits, or
        there are too few patients to train on some and validate on others.
    """
    where = printable(slide_list or folder or "")
    if slide_list is not None:
        slides, missing = _slides_of_list(slide_list)
    else:
        assert folder is not None, "the settings are checked"
        pairs, missing = pairs_in_folder(folder, LeftOut() if left_out is None else left_out)
        slides = [AnnotatedSlide(slide, annotations, "", "") for slide, annotations in pairs]
    if missing and not allow_missing:
        more = f" (and {len(missing) - 1} more such files)" if len(missing) > 1 else ""
        raise DataError(
            f"{missing[0]}{more}; complete or remove them, or leave them out with --config.data.allow_missing=True"
        )
    if not slides:
        raise DataError(
            f"{where}: expected slides with annotations, found none; add them, or give a list with --config.data.list"
        )
    slides = _with_patients(_with_names(slides, where))
    slides.sort(key=lambda slide: slide.name)
    unknown = [slide for slide in slides if slide.patient == slide.name and not names.stated_patient(slide.name)]
    listed = any(slide.split for slide in slides)
    if unknown:
        log.warning(
            "%s: the patient of %d of %d slides is not known (first %s), so each counts as one; if a patient has "
            "several of them%s, scores are too high: give the patients in a column of --config.data.list",
            where,
            len(unknown),
            len(slides),
            printable(unknown[0].slide.name),
            " in different splits" if listed else "",
        )
    if listed:
        _check_splits(slides, where)
        return FoundSlides(tuple(slides), "list", tuple(missing))
    split_by = "slide" if unknown else "patient"
    return FoundSlides(tuple(_split_by_patient(slides, where)), split_by, tuple(missing))


def _slides_of_list(path: Path) -> tuple[list[AnnotatedSlide], list[str]]:
    rows, blank = read_rows(path, COLUMNS[:2], COLUMNS[2:])
    slides, missing, seen = [], [], {}
    for line, cells in rows:
        where = f"{printable(path)}, line {line}"
        slide = _slide_of_row(cells, where, Path(path).parent)
        for file, what, remedy in (
            (slide.slide, "slide", "remove one of them, and join their annotations in one file"),
            (slide.annotations, "file of annotations", "give each slide its own"),
        ):
            other = seen.setdefault(os.path.realpath(file), line)
            if other != line:
                raise DataError(
                    f"{where}: expected each {what} once, found {printable(file.name)} in line {other} too; {remedy}"
                )
        absent = [
            f"{where}: expected the {what} {printable(file)}, found no such file"
            for what, file in (("slide", slide.slide), ("annotations", slide.annotations))
            if not file.exists()
        ]
        missing += absent[:1]
        slides += [] if absent else [slide]
    if blank:
        log.info("%s: %d blank lines", printable(path), blank)
    return slides, missing


def _slide_of_row(cells: dict[str, str], where: str, folder: Path) -> AnnotatedSlide:
    if not cells["annotations"]:
        raise DataError(f"{where}: expected annotations, found an empty field; fill it or remove the line")
    mpp, weight, split = None, 1.0, cells.get("split", "").lower()
    if cells.get("mpp"):
        mpp = number_of(cells["mpp"], f"{where}, mpp", "um per pixel")
        check_mpp(mpp, f"{where}, mpp", error_type=DataError)
    if cells.get("weight"):
        weight = number_of(cells["weight"], f"{where}, weight", "a number")
        if not (math.isfinite(weight) and 0 < weight <= MAX_WEIGHT):
            raise DataError(
                f"{where}, weight: expected a number above 0 and up to {MAX_WEIGHT:g}, found {cells['weight'][:40]}; "
                "correct it, or remove the line of a slide that must not count"
            )
    if "split" in cells and split not in SPLITS:
        raise DataError(
            f"{where}, split: expected {', '.join(SPLITS)}, found {ascii(cells['split'])[:40]}; correct it, or remove "
            "the column to split by patient"
        )
    patient = cells.get("patient", "")
    if len(patient) > MAX_NAME or not patient.isprintable():
        raise DataError(f"{where}, patient: expected a name, found {ascii(patient)[:80]}; correct it")
    return AnnotatedSlide(folder / cells["slide"], folder / cells["annotations"], "", patient, split, mpp, weight)


def _with_names(slides: Sequence[AnnotatedSlide], where: str) -> list[AnnotatedSlide]:
    """Returns the slides with a unique name each."""
    stems = [portable_stem(slide.slide) for slide in slides]
    counts = collections.Counter(map(comparable, stems))
    named, seen = [], {}
    for slide, stem in zip(slides, stems, strict=True):
        name = stem if counts[comparable(stem)] == 1 else f"{slide.slide.absolute().parent.name}_{stem}"
        other = seen.setdefault(comparable(name), slide)
        if other is not slide:
            raise DataError(
                f"{where}: expected slides with different names, found {printable(other.slide)} and "
                f"{printable(slide.slide)}; rename one of them"
            )
        named.append(dataclasses.replace(slide, name=name))
    return named


def _with_patients(slides: Sequence[AnnotatedSlide]) -> list[AnnotatedSlide]:
    return [
        slide if slide.patient else dataclasses.replace(slide, patient=names.stated_patient(slide.name) or slide.name)
        for slide in slides
    ]


def _check_splits(slides: Sequence[AnnotatedSlide], where: str) -> None:
    """Raises DataError if a patient is in two splits, or there is nothing to train on or to validate on."""
    first = {}
    for slide in slides:
        other = first.setdefault(comparable(slide.patient), slide)
        if other.split != slide.split:
            raise DataError(
                f"{where}: expected every patient in one split, found {printable(slide.patient)} in {other.split} "
                f"({printable(other.slide.name)}) and in {slide.split} ({printable(slide.slide.name)}); give all of a "
                "patient's slides the same split"
            )
    for split in SPLITS[:2]:
        if all(slide.split != split for slide in slides):
            raise DataError(f"{where}, split: expected slides for {split}, found none; give some slides that split")


def _split_by_patient(slides: list[AnnotatedSlide], where: str) -> list[AnnotatedSlide]:
    patients = sorted({slide.patient for slide in slides})
    if len(patients) < 2:
        raise DataError(
            f"{where}: expected slides of two or more patients, to train on some and validate on others, found "
            f"{len(slides)} of {printable(patients[0])}; add slides of another patient"
        )
    count = min(NUM_FOLDS, len(patients))
    held_out = set(by_patient([slide.name for slide in slides], [slide.patient for slide in slides], count)[0]["val"])
    return [dataclasses.replace(slide, split="val" if slide.name in held_out else "train") for slide in slides]
