"""The segmented slides of a folder: finds each summary.json and checks what the page needs of it.

Files say anything. What is wrong with one result becomes a line beside its name and leaves the others alone.
"""

import dataclasses
import math
import os
from pathlib import Path

from bcss_jax.common.json_files import read_json
from bcss_jax.errors import DataError, first_line, printable
from bcss_jax.slides.grid import Grid

SUMMARY, FORMAT = "summary.json", 1
MAX_SIDE = 1 << 24  # pixels; the largest scanners give a tenth of it


@dataclasses.dataclass(frozen=True)
class AreaOfClass:
    """A class: its value in label images, name, color (RGB) and area in mm2."""

    value: int
    name: str
    color: tuple[int, int, int]
    area_mm2: float


@dataclasses.dataclass(frozen=True)
class Summary:
    """What the page shows of a summary.json.

    Attributes:
      slide_path: where the slide was when it was segmented.
      slide_name: its file's name.
      fingerprint: by which the file is known again, as of `slide_folder.fingerprints`.
      width: of level 0, pixels.
      height: likewise.
      bounds: x, y, width, height of the scanned area at level 0, if the slide says so.
      model: name of the model.
      grid: of the labels.
      classes: in the order of their values.
      tissue_mm2: area of the tissue.
      unreadable_mm2: tissue whose pixels the slide did not give.
      tumor_stroma_ratio: None where there is no such.
      dice: by class and "macro", None where there is no score; None if there is no truth.
      dice_of_region: likewise, of the region that was scored besides.
      labels: name of the file of labels.
      overlay: name of the picture of slide and labels, if there is one.
    """

    slide_path: Path
    slide_name: str
    fingerprint: dict
    width: int
    height: int
    bounds: tuple[int, int, int, int] | None
    model: str
    grid: Grid
    classes: tuple[AreaOfClass, ...]
    tissue_mm2: float
    unreadable_mm2: float
    tumor_stroma_ratio: float | None
    dice: dict[str, float | None] | None
    dice_of_region: dict[str, float | None] | None
    labels: str
    overlay: str | None


@dataclasses.dataclass(frozen=True)
class Result:
    """One slide, segmented by one model.

    Attributes:
      key: its name in URLs: the folder's path below the parent of the folder that is served.
      folder: of its files.
      summary: None if it cannot be used.
      problem: why not, one line.
    """

    key: str
    folder: Path
    summary: Summary | None
    problem: str | None

    @property
    def title(self) -> str:
        """Name of the slide, or of the folder if the slide's is not known."""
        return self.summary.slide_name if self.summary else self.key


def find(folder: Path) -> dict[str, Result]:
    """The results of a folder: in itself, in its subfolders (slides) and in theirs (models).

    Args:
      folder: out/ with many slides, or out/<stem>/ of one.

    Returns:
      key -> result, by the slides' names, then the models'. Empty if there are none. Links that lead out of the folder
      are not followed.

    Raises:
      DataError: the folder cannot be read.
    """
    try:
        top = folder.resolve(strict=True)
        folders = [top, *_subfolders(top, top)]
    except OSError as error:
        raise DataError(
            f"{printable(folder)}: expected a folder that bcss_jax.segment wrote ({error.strerror})"
        ) from error
    for slide in folders[1:]:
        try:
            folders.extend(_subfolders(slide, top))
        except OSError:
            continue  # a folder of somebody else
    results = [result_in(each, top) for each in folders if inside(each / SUMMARY, top)]
    results.sort(key=lambda result: (result.title, result.summary.model if result.summary else "", result.key))
    return {result.key: result for result in results}


def inside(path: Path, top: Path) -> bool:
    """Whether a file or folder exists and lies, all links followed, in `top` (which has none)."""
    try:
        return path.resolve(strict=True).is_relative_to(top)
    except (OSError, RuntimeError):  # RuntimeError: links in a circle
        return False


def _subfolders(folder: Path, top: Path) -> list[Path]:
    found = [folder / name for name in os.listdir(folder) if not name.startswith(".")]
    return [each for each in found if inside(each, top) and each.is_dir()]


def result_in(folder: Path, top: Path) -> Result:
    """The result of one folder.

    Args:
      folder: of its files.
      top: the folder that is served, without links.
    """
    key = printable(folder.relative_to(top.parent)).replace(os.sep, "/")
    try:
        return Result(key, folder, read(folder / SUMMARY), None)
    except DataError as error:
        return Result(key, folder, None, str(error))


def read(path: Path) -> Summary:
    """Reads a summary.json.

    Raises:
      DataError: it cannot be read, or is not what this version writes.
    """
    values = read_json(path, "the summary of a segmented slide", "segment the slide again")
    try:
        if values["format"] != FORMAT:
            raise ValueError(f"format {values['format']!r}, this version reads {FORMAT}")
        return _summary(values)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        found = f"{error} missing" if isinstance(error, KeyError) else first_line(error)
        raise DataError(
            f"{printable(path)}: expected the summary of a segmented slide, found: {found}; segment the slide again"
        ) from error


def _summary(values: dict) -> Summary:
    slide, grid, files = values["slide"], values["grid"], values["files"]
    scale = tuple(_number(each, "scale", positive=True) for each in grid["scale"])
    if len(scale) != 2:
        raise ValueError(f"scale {grid['scale']}")
    return Summary(
        slide_path=Path(_text(slide["path"], "path")),
        slide_name=_text(slide["name"], "name"),
        fingerprint=_fingerprint(values["identity"]["files"]["slide"]),
        width=_integer(slide["width"], "width", 1, MAX_SIDE),
        height=_integer(slide["height"], "height", 1, MAX_SIDE),
        bounds=_bounds(slide["bounds"]),
        model=_text(values["model"]["name"], "name"),
        grid=Grid(
            _integer(grid["width"], "width", 1, MAX_SIDE),
            _integer(grid["height"], "height", 1, MAX_SIDE),
            _number(grid["mpp"], "mpp", positive=True),
            scale,
        ),
        classes=_classes(values["classes"]),
        tissue_mm2=_number(values["tissue_area_mm2"], "tissue_area_mm2"),
        unreadable_mm2=_number(values["unreadable_area_mm2"], "unreadable_area_mm2"),
        tumor_stroma_ratio=_optional(values["tumor_stroma_ratio"], "tumor_stroma_ratio"),
        dice=_dice(values.get("scores")),
        dice_of_region=_dice(values.get("scores_of_region")),
        labels=_text(files["labels"], "labels"),
        overlay=None if files["overlay"] is None else _text(files["overlay"], "overlay"),
    )


def _classes(values) -> tuple[AreaOfClass, ...]:
    classes = tuple(
        AreaOfClass(
            _integer(each["value"], "value", 1, 254),
            _text(each["name"], "name"),
            tuple(_integer(part, "colour", 0, 255) for part in each["colour"]),
            _number(each["area_mm2"], "area_mm2"),
        )
        for each in values
    )
    numbers = {each.value for each in classes}
    if not classes or len(numbers) != len(classes) or any(len(each.color) != 3 for each in classes):
        raise ValueError("classes without values or colors of their own")
    return tuple(sorted(classes, key=lambda each: each.value))


def _fingerprint(values):
    return {
        "bytes": _integer(values["bytes"], "bytes", 0, 1 << 62),
        "sha256_of_ends": _text(values["sha256_of_ends"], "sha256_of_ends"),
    }


def _dice(scores):
    if scores is None:
        return None
    return {_text(name, "dice"): _optional(value, "dice") for name, value in scores["dice"].items()}


def _bounds(values):
    if values is None:
        return None
    x, y, width, height = (_integer(value, "bounds", 0, MAX_SIDE) for value in values)
    return (x, y, width, height) if width and height else None


def _integer(value, name, low, high) -> int:
    if type(value) is not int or not low <= value <= high:
        raise ValueError(f"{name} {_short(value)}")
    return value


def _number(value, name, positive=False) -> float:
    if type(value) not in (int, float) or not 0 <= value < math.inf or (positive and value == 0):
        raise ValueError(f"{name} {_short(value)}")
    return float(value)


def _optional(value, name) -> float | None:
    return None if value is None else _number(value, name)


def _text(value, name) -> str:
    if not isinstance(value, str) or not value or "\0" in value:
        raise ValueError(f"{name} {_short(value)}")
    return printable(value)


def _short(value) -> str:
    return ascii(value)[:60]
