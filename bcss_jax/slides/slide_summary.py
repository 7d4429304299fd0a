"""The content of a slide's summary.json: one schema for those who write it and those who read it.

Segmenting writes it, scoring adds scores to it, and the tables of a batch, comparisons and the viewer read it.
"""

import dataclasses
import math
from pathlib import Path
from typing import Any

from bcss_jax.common.json_files import as_json, read_json
from bcss_jax.errors import DataError, first_line, printable
from bcss_jax.slides.grid import Grid

FORMAT = 1  # raised when older code could not read what newer code writes
FILE = "summary.json"  # in the folder of a slide's results
MAX_SIDE = 1 << 24  # pixels; ten times the side of the largest scans
MAX_NUMBER = 1e18  # of an area, a time or a resolution


@dataclasses.dataclass(frozen=True)
class SegmentedSlide:
    """The slide that was segmented.

    Attributes:
      path: of its file when it was segmented.
      name: of its file.
      format: as its reader names it, for example "aperio".
      width: of level 0, pixels.
      height: of level 0, pixels.
      mpp: um per level-0 pixel along x and y.
      mpp_from: "slide", or "--mpp" if the user gave it.
      bounds: x, y, width, height of the scanned area in level-0 pixels, if the slide states it.
    """

    path: str
    name: str
    format: str
    width: int
    height: int
    mpp: tuple[float, float]
    mpp_from: str
    bounds: tuple[int, int, int, int] | None


@dataclasses.dataclass(frozen=True)
class ClassArea:
    """A class and how much of the slide it covers.

    Attributes:
      value: in label images.
      name: of the class.
      color: RGB.
      pixels: of the grid.
      area_mm2: of those pixels.
    """

    value: int
    name: str
    color: tuple[int, int, int]
    pixels: int
    area_mm2: float


@dataclasses.dataclass(frozen=True)
class SlideSummary:
    """The result of segmenting a slide with one model, except for its files.

    The order of the attributes is the order in the file.

    Attributes:
      slide: the slide.
      model: JSON: `name`, `network`, `label_scheme`, `params_sha256`, `checkpoint`, `tta`, `mpp`, `window`.
      grid: of the labels.
      classes: the evaluated classes.
      tissue_area_mm2: area that was segmented, without the glass inside it if that was taken out.
      unreadable_area_mm2: tissue whose pixels could not be decoded.
      tumor_stroma_ratio: area of tumor over area of stroma; None if there is no such ratio.
      windows: how many were `computed`, `of` how many.
      seams: JSON of `seams.seam_score`.
      files: names of the result files in the folder; None for those that were not written.
      resumed: some labels were there before the last session began, so that `seconds` are of that session alone. None
        in files of versions that did not record it.
      seconds: by stage, and `total`.
      peak_memory_mb: of the main process, MiB.
      versions: of this package, Python and the libraries.
      device: JSON, what JAX computed on.
      scores: JSON of `slide_scores.scores`; None if there is no ground truth.
      scores_of_region: as `scores`, for the region that was scored in addition.
      identity: JSON, what the labels depend on and what they were scored against (`slide_folder.SlideFolder`).
      notes: what a user should know of how the slide was read, a line each; None if there is nothing.
      glass_area_mm2: glass inside the tissue, which was taken out of it; None if all tissue was labeled, as earlier
        versions did.
      stain: JSON of the change to the training set's stain: `from` and `to` (`measured_stain.MeasuredStain`) and the
        `factors` on hematoxylin and eosin, or why the slide was `left_alone`; None if no change was asked for.
    """

    slide: SegmentedSlide
    model: dict[str, Any]
    grid: Grid
    classes: tuple[ClassArea, ...]
    tissue_area_mm2: float
    unreadable_area_mm2: float
    tumor_stroma_ratio: float | None
    windows: dict[str, int]
    seams: dict[str, Any]
    files: dict[str, str | None]
    resumed: bool | None
    seconds: dict[str, float]
    peak_memory_mb: int
    versions: dict[str, str]
    device: dict[str, Any]
    scores: dict[str, Any] | None
    scores_of_region: dict[str, Any] | None
    identity: dict[str, Any]
    notes: tuple[str, ...] | None = None
    glass_area_mm2: float | None = None
    stain: dict[str, Any] | None = None

    @property
    def dice(self) -> dict[str, float | None] | None:
        """Dice by class and "macro", None where a class has no score; None if there is no ground truth."""
        return None if self.scores is None else self.scores["dice"]

    @property
    def dice_of_region(self) -> dict[str, float | None] | None:
        """As `dice`, for the region that was scored in addition."""
        return None if self.scores_of_region is None else self.scores_of_region["dice"]

    @property
    def labels_file(self) -> str:
        """Name of the file of labels."""
        name = self.files["labels"]
        assert name is not None  # `from_json` checks it
        return name

    @property
    def fingerprint(self) -> dict[str, Any]:
        """`bytes` and `sha256_of_ends` of the slide, as `slide_folder.fingerprints` returns them."""
        return self.identity["files"]["slide"]

    def to_json(self) -> dict[str, Any]:
        """Returns the content of summary.json; `from_json` reads it."""
        values: dict[str, Any] = {"format": FORMAT, **dataclasses.asdict(self)}
        for each in values["classes"]:
            each["colour"] = each.pop("color")
        values["classes"] = [{name: each[name] for name in _CLASS_KEYS} for each in values["classes"]]
        return as_json({name: value for name, value in values.items() if name not in _OPTIONAL or value is not None})

    @classmethod
    def from_json(cls, values: Any) -> "SlideSummary":
        """Reads the content of summary.json and checks all that is used of it.

        Raises:
          ValueError: it is not the summary of a slide, or one of another format.
        """
        try:
            if values["format"] != FORMAT:
                raise ValueError(f"format {_short(values['format'])}, this version reads {FORMAT}")
            fields = {name: values[name] for name in _NAMES if name not in _OPTIONAL}
            fields |= {name: values.get(name) for name in _OPTIONAL}
            summary = cls(
                **fields
                | {
                    "slide": _slide(fields["slide"]),
                    "grid": _grid(fields["grid"]),
                    "classes": _classes(fields["classes"]),
                    "notes": _notes(fields["notes"]),
                }
            )
            _check(summary)
        except KeyError as error:
            raise ValueError(f"{error} missing") from error
        except (TypeError, AttributeError) as error:
            raise ValueError(first_line(error)) from error
        return summary


_NAMES = tuple(field.name for field in dataclasses.fields(SlideSummary))
_OPTIONAL = ("glass_area_mm2", "notes", "resumed", "scores", "scores_of_region", "stain")
_CLASS_KEYS = ("value", "name", "colour", "pixels", "area_mm2")


def read_summary(path: Path) -> SlideSummary:
    """Reads a summary.json.

    Raises:
      DataError: it cannot be read, or is not the summary of a slide.
    """
    expected, remedy = "the summary of a segmented slide", "segment the slide again"
    values = read_json(path, expected, remedy)
    try:
        return SlideSummary.from_json(values)
    except ValueError as error:
        raise DataError(f"{printable(path)}: expected {expected}, found: {first_line(error)}; {remedy}") from error


def _slide(values):
    return SegmentedSlide(
        path=_text(values["path"], "path"),
        name=_text(values["name"], "name"),
        format=_text(values["format"], "format"),
        width=_integer(values["width"], "width", 1, MAX_SIDE),
        height=_integer(values["height"], "height", 1, MAX_SIDE),
        mpp=_pair(values["mpp"], "mpp"),
        mpp_from=_text(values["mpp_from"], "mpp_from"),
        bounds=None if values["bounds"] is None else _bounds(values["bounds"]),
    )


def _grid(values):
    return Grid(
        width=_integer(values["width"], "width", 1, MAX_SIDE),
        height=_integer(values["height"], "height", 1, MAX_SIDE),
        mpp=_number(values["mpp"], "mpp", positive=True),
        scale=_pair(values["scale"], "scale"),
    )


def _pair(values, name) -> tuple[float, float]:
    if len(values) != 2:
        raise ValueError(f"{name} {_short(values)}")
    x, y = (_number(each, name, positive=True) for each in values)
    return x, y


def _bounds(values) -> tuple[int, int, int, int]:
    if len(values) != 4:
        raise ValueError(f"bounds {_short(values)}")
    x, y, width, height = (_integer(each, "bounds", -MAX_SIDE, MAX_SIDE) for each in values)
    return x, y, width, height


def _color(values) -> tuple[int, int, int]:
    if len(values) != 3:
        raise ValueError(f"colour {_short(values)}")
    red, green, blue = (_integer(each, "colour", 0, 255) for each in values)
    return red, green, blue


def _classes(values):
    classes = tuple(
        ClassArea(
            value=_integer(each["value"], "value", 1, 254),
            name=_text(each["name"], "name"),
            color=_color(each["colour"]),
            pixels=_integer(each["pixels"], "pixels", 0, 1 << 62),
            area_mm2=_number(each["area_mm2"], "area_mm2"),
        )
        for each in values
    )
    if not classes or len({each.value for each in classes}) != len(classes):
        raise ValueError("the classes do not have distinct values")
    return classes


def _notes(values) -> tuple[str, ...] | None:
    if values is None:
        return None
    if not isinstance(values, list):
        raise ValueError(f"notes {_short(values)}")
    return tuple(_text(each, "notes") for each in values)


def _check(summary: SlideSummary) -> None:
    """Raises ValueError, KeyError, TypeError or AttributeError unless the parts that stay JSON are valid."""
    sides = ((summary.grid.width, summary.slide.width), (summary.grid.height, summary.slide.height))
    for scale, (pixels, slide_pixels) in zip(summary.grid.scale, sides, strict=True):
        if not math.isclose(scale * pixels, slide_pixels, rel_tol=1e-6):
            raise ValueError(f"scale {_short(scale)}, which does not fit {slide_pixels} pixels of the slide")
    _text(summary.model["name"], "name of the model")
    _number(summary.model["mpp"], "mpp of the model", positive=True)
    for name in ("tissue_area_mm2", "unreadable_area_mm2"):
        _number(getattr(summary, name), name)
    _optional_number(summary.glass_area_mm2, "glass_area_mm2")
    _optional_number(summary.tumor_stroma_ratio, "tumor_stroma_ratio")
    for name in ("computed", "of"):
        _integer(summary.windows[name], f"{name} windows", 0, 1 << 62)
    _optional_number(summary.seams["score"], "score of the seams")
    _text(summary.files["labels"], "labels")
    for name, file in summary.files.items():
        if file is not None:
            _text(file, name)
    if type(summary.resumed) not in (bool, type(None)):
        raise ValueError(f"resumed {_short(summary.resumed)}")
    for name, seconds in summary.seconds.items():
        _number(seconds, f"seconds of {name}")
    _number(summary.seconds["total"], "total seconds")
    if not isinstance(summary.stain, dict | None):
        raise ValueError(f"stain {_short(summary.stain)}")
    for scores in (summary.scores, summary.scores_of_region):
        if scores is not None:
            names = {each.name for each in summary.classes} | {"macro"}
            if scores["dice"].keys() != names:
                raise ValueError("dice of other classes")
            for name, dice in scores["dice"].items():
                _optional_number(dice, f"dice of {name}")
    fingerprint = summary.fingerprint
    _integer(fingerprint["bytes"], "bytes", 0, 1 << 62)
    _text(fingerprint["sha256_of_ends"], "sha256_of_ends")


def _integer(value, name, low, high) -> int:
    if type(value) is not int or not low <= value <= high:
        raise ValueError(f"{name} {_short(value)}")
    return value


def _number(value, name, positive=False) -> float:
    if type(value) not in (int, float) or not 0 <= value <= MAX_NUMBER or (positive and value == 0):
        raise ValueError(f"{name} {_short(value)}")
    return value


def _optional_number(value, name) -> None:
    if value is not None:
        _number(value, name)


def _text(value, name) -> str:
    if not isinstance(value, str) or not value or "\0" in value:
        raise ValueError(f"{name} {_short(value)}")
    return value


def _short(value) -> str:
    return ascii(value)[:60]
