"""Label schemes: which tissue classes a model learns, and which codes of the masks belong to each class.

A mask file holds *codes*; a model sees *labels*. There are two code books: `bcss22`, the 22 codes of the original BCSS
masks (gtruth_codes.tsv of the data set), and `kaggle3`, the codes 0, 1 and 2 of the 224-pixel Kaggle tiles. A
`LabelScheme` says which code gives which label. It is stored in every checkpoint and metric file, because scores under
different schemes cannot be compared.

Four schemes come with the package, in `bcss_jax/label_schemes`. A file of the same form defines another one:

    # my_labels.toml
    class_names = ["ignored", "tumor", "stroma"]   # one output of the network each; the position is the label
    evaluated = ["tumor", "stroma"]                # order in tables and in label images; may be left out

    [colors]                                       # one per class, all different
    ignored = "#969696"
    tumor = "#E69F00"
    stroma = "#0072B2"

    [bcss22]                                       # one table for each code book that the scheme can express
    tumor = ["tumor", 19, "dcis"]                  # codes by name or by number
    stroma = ["stroma"]
    ignored = "rest"                               # all codes that the table does not list

    [own_codes]                                    # codes of your own masks of slides, by number
    tumor = [1, 2]
    stroma = [7]
    ignored = [0]

    [annotations]                                  # names of annotations; if two overlap, the first class counts
    ignored = ["Ignore*", "artifact"]
    tumor = ["invasive tumor", "DCIS"]
    stroma = ["tumor-associated stroma"]

The name `ignored` is for pixels without truth. Where it is one of the classes, the network has an output for it, which
is never trained; where it is not, these pixels get the label 255. Every code must be listed or covered by `"rest"`. A
table `[own_codes]` defines the codes of masks that have neither code book; a mask of a slide with a number that it
does not list is refused.

Annotations, such as QuPath's, have names instead of codes (`annotation_labels`). A class has its own name too and the
one that `regions.geojson` gives it. Without the table, the names of the codes count too. `unannotated = "stroma"`,
above the tables, is the class of pixels in no annotation; without it, they have no truth.

In the shipped schemes the codes tumor = {1, 19, 20}, inflammatory = {3, 10, 11} and necrosis = {4} are grouped as in
the BCSS challenge's baseline. Code 0 is "outside the ROI" in the original masks and carries no information; 7 (exclude)
and 15 (undetermined) are treated the same. In the Kaggle tiles 0 also covers every other tissue.
"""

import dataclasses
import difflib
import os
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bcss_jax.common.regular_file import read_regular_file
from bcss_jax.errors import ConfigError, first_line, printable

BCSS22_NAMES = (
    "outside_roi", "tumor", "stroma", "lymphocytic_infiltrate", "necrosis_or_debris", "glandular_secretions", "blood",
    "exclude", "metaplasia_NOS", "fat", "plasma_cells", "other_immune_infiltrate", "mucoid_material",
    "normal_acinus_or_duct", "lymphatics", "undetermined", "nerve", "skin_adnexa", "blood_vessel", "angioinvasion",
    "dcis", "other",
)  # fmt: skip
KAGGLE3_NAMES = ("other_or_outside", "tumor", "stroma")
CODE_BOOKS = {"bcss22": BCSS22_NAMES, "kaggle3": KAGGLE3_NAMES}
OWN_CODES = "own_codes"  # codes of masks that a scheme's file defines itself, without names
MAX_CODE = 255
SCHEME_CODES = "labels"  # instead of a code book: masks that hold the labels of the run's scheme, as slides' patches do
CODES_WITHOUT_TISSUE = {"bcss22": (0, 7, 15), "kaggle3": ()}  # outside the region of interest, excluded, undetermined
# Layouts whose masks use a code book.
DATA_OF_BOOKS = {"bcss22": "kaggle512 or roi", "kaggle3": "kaggle224", OWN_CODES: "slides"}

MAX_TOML = 1 << 20  # bytes of a file
MAX_NAME = 200  # characters of an annotation's name
CLASS_NAME = re.compile(r"\w[\w +.-]{0,63}")  # names go into tables, file columns and web pages
IGNORED = "ignored"  # the class without truth
NO_OUTPUT = 255  # label of ignored pixels where the network has no output for them
UNMAPPED = 254  # what the look-up table gives for a number that is not a code; never reaches a model
REST = "rest"  # in a file: all codes that are not listed
# Names of QuPath's built-in classes that correspond to our classes, and the code that each stands for.
QUPATH_NAMES = {
    "tumor": "Tumor",
    "stroma": "Stroma",
    "inflammatory": "Immune cells",
    "necrosis": "Necrosis",
    "other": "Other",
}
_QUPATH_CODES = {
    "Tumor": "tumor",
    "Stroma": "stroma",
    "Immune cells": "lymphocytic_infiltrate",
    "Necrosis": "necrosis_or_debris",
    "Other": "other",
}
QUPATH_IGNORED = "Ignore*"  # QuPath's class of what should not count
# Names used next to the class names in scores, label images and nnU-Net's data sets.
RESERVED_NAMES = ("macro", "background", "ignore", "unreadable", "not segmented")
# White is the background of label images and a correct pixel in error maps; gray is an unreadable or ignored pixel.
RESERVED_COLORS = ((255, 255, 255), (150, 150, 150))

Color = tuple[int, int, int]  # red, green, blue, from 0 to 255


@dataclasses.dataclass(frozen=True)
class LabelScheme:
    """What the logits of a model mean, and which codes of the masks they stand for.

    Attributes:
      name: name of its file, without the ending.
      class_names: one name per logit; the position is the label.
      ignore_index: the label without truth. It may be one of the logits (0) or outside them (255).
      evaluated: labels over which losses, predictions and metrics run.
      colors: one per class. Empty only for labels of nnU-Net's raw data folders, which define none.
      code_labels: for each code book that the scheme can express, the label of each code. May be empty if there are
        annotations. Those of `OWN_CODES` end with the highest code that is listed; `UNMAPPED` for numbers between.
      annotations: names of annotations with their labels, as the file lists them; see `annotation_labels`.
      unannotated: label of pixels in no annotation; None: they have no truth.
    """

    name: str
    class_names: tuple[str, ...]
    ignore_index: int
    evaluated: tuple[int, ...]
    colors: tuple[Color, ...] = ()
    code_labels: tuple[tuple[str, tuple[int, ...]], ...] = ()
    annotations: tuple[tuple[str, int], ...] = ()
    unannotated: int | None = None

    @property
    def num_classes(self) -> int:
        """Number of logits."""
        return len(self.class_names)

    @property
    def evaluated_names(self) -> tuple[str, ...]:
        """Names of the evaluated classes, in the order of `evaluated`."""
        return tuple(self.class_names[label] for label in self.evaluated)

    @property
    def ignores_tissue(self) -> bool:
        """Whether pixels of some tissue have no ground truth, so that there is no class for all other tissue.

        Codes and annotations of one's own do not say which tissue they stand for. They count as all tissue if there is
        a class "other", or if none of them is ignored.
        """
        labels_of = dict(self.code_labels)
        own = labels_of.pop(OWN_CODES, None)
        if labels_of:
            return any(
                label == self.ignore_index
                for book, labels in labels_of.items()
                for code, label in enumerate(labels)
                if code not in CODES_WITHOUT_TISSUE[book]
            )
        if "other" in (name.casefold() for name in self.class_names):
            return False
        return self.unannotated is None if own is None else self.ignore_index in own

    @property
    def report_classes(self) -> tuple[int, ...]:
        """Labels of tumor and stroma if this is the task of the report's own code; otherwise empty.

        That task has one class for each of the three codes of the Kaggle masks, and ignores none of them.
        """
        labels = dict(self.code_labels).get("kaggle3", ())
        is_task = self.num_classes == 3 and sorted(labels) == sorted(self.evaluated) == [0, 1, 2]
        return labels[1:] if is_task else ()

    @property
    def is_shipped(self) -> bool:
        """Whether the scheme is one of those that come with the package."""
        return SCHEMES.get(self.name) == self

    def to_json(self) -> dict:
        """Returns a plain dict for checkpoints and metric files, without fields of annotations that are unset."""
        values = dataclasses.asdict(self) | {"code_labels": dict(self.code_labels)}
        unset = [name for name, value in _OPTIONAL.items() if values[name] == value]
        return {name: value for name, value in values.items() if name not in unset}

    def identity(self) -> dict:
        """Returns what results of the scheme are recognized by, as JSON.

        For a shipped scheme these are the four fields that results of every version have.
        """
        values = self.to_json()
        return {name: values[name] for name in _FIRST_FIELDS} if self.is_shipped else values


_FIELDS = tuple(field.name for field in dataclasses.fields(LabelScheme))
_OPTIONAL = {"annotations": (), "unannotated": None}  # fields that files lack where they have these values
_FIRST_FIELDS = _FIELDS[:4]  # all that files had before schemes could be defined in files


def find_scheme(given: str, option: str = "config.labels") -> LabelScheme:
    """Returns the scheme that a setting names.

    Args:
      given: name of a shipped scheme, or the path of a TOML file.
      option: how the user gave it, for messages.

    Raises:
      ConfigError: there is no such scheme or file, or the file does not define a scheme; one line.
    """
    if given in SCHEMES:
        return SCHEMES[given]
    path = Path(given).expanduser()
    is_file = path.suffix.lower() == ".toml"
    if is_file and "\0" not in given and os.path.lexists(path):
        return read_scheme(path)
    near = difflib.get_close_matches(path.stem, SCHEMES, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]}?" if near else ""
    found = "there is no such file; it " if is_file else ""
    raise ConfigError(
        f"{option}={printable(given)}: {found}must be one of {', '.join(SCHEMES)}, or a TOML file that defines a label "
        f"scheme{hint}"
    )


def name_of(given: str) -> str:
    """Returns the name of the scheme that a setting names, without reading its file."""
    return Path(given).stem if given.lower().endswith(".toml") else given


def read_scheme(path: str | os.PathLike) -> LabelScheme:
    """Reads a scheme from a TOML file of the form that the module's docstring shows.

    Raises:
      ConfigError: one line with the file, what was expected, what was found, and what to do.
    """
    path = Path(path)
    content = read_regular_file(
        path, "a label scheme as TOML", "correct the path", max_bytes=MAX_TOML, error_type=ConfigError
    )
    try:
        scheme = _scheme_of_toml(path.stem, tomllib.loads(content.decode("utf-8-sig")))
        check(scheme)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(
            f"{printable(path)}: expected a label scheme as TOML, found: {first_line(error)}; correct the file"
        ) from error
    except ValueError as error:
        raise ConfigError(f"{printable(path)}: {error}") from error
    shipped = SCHEMES.get(scheme.name)
    if shipped is not None and scheme != shipped:
        raise ConfigError(
            f"{printable(path)}: expected a different name, found {scheme.name}, which is a scheme of the package "
            "with other content; rename the file"
        )
    return scheme


def _scheme_of_toml(name: str, values: dict[str, Any]) -> LabelScheme:
    """Returns the scheme that the content of a file describes by names; `check` follows. Raises ValueError."""
    known = ("class_names", "evaluated", "unannotated", "colors", *CODE_BOOKS, OWN_CODES, "annotations")
    _check_keys("", values, known)
    class_names = _names("class_names", values.get("class_names"))
    _check_names(name, class_names)
    for class_name in class_names:
        if class_name != IGNORED and class_name.casefold() == IGNORED:
            raise ValueError(f"expected {IGNORED!r} for pixels without truth, found {class_name!r}; rename the class")
    labels = {class_name: label for label, class_name in enumerate(class_names)}
    evaluated = [class_name for class_name in class_names if class_name != IGNORED]
    if "evaluated" in values:
        evaluated = _names("evaluated", values["evaluated"])
        _check_keys("evaluated: ", evaluated, class_names)
    colors = values.get("colors", {})
    if not isinstance(colors, dict):
        raise ValueError(f"[colors]: expected a table with a color for each class, found {_short(colors)}")
    _check_keys("[colors]: ", colors, class_names)
    missing = [class_name for class_name in class_names if class_name not in colors]
    if missing:
        raise ValueError(f'[colors]: expected a color for {missing[0]}, found none; add {missing[0]} = "#RRGGBB"')
    unannotated = values.get("unannotated", IGNORED)
    if not isinstance(unannotated, str):
        raise ValueError(f"unannotated: expected the name of a class, found {_short(unannotated)}")
    _check_keys("unannotated: ", [unannotated], [*class_names, IGNORED])
    ignore_index = labels.setdefault(IGNORED, NO_OUTPUT)
    return LabelScheme(
        name,
        tuple(class_names),
        ignore_index,
        tuple(labels[class_name] for class_name in evaluated),
        tuple(_color(class_name, colors[class_name]) for class_name in class_names),
        tuple(
            (book, _labels_of_codes(book, values[book], labels)) for book in (*CODE_BOOKS, OWN_CODES) if book in values
        ),
        _labels_of_names(values["annotations"], labels) if "annotations" in values else (),
        None if unannotated == IGNORED else labels[unannotated],
    )


def _labels_of_names(table: Any, labels: Mapping[str, int]) -> tuple[tuple[str, int], ...]:
    """Returns the names of annotations in the order of the file, each with its label. Raises ValueError."""
    where = "[annotations]"
    if not isinstance(table, dict) or not table:
        raise ValueError(f"{where}: expected a table of classes with names of annotations, found {_short(table)}")
    _check_keys(f"{where}: ", table, labels)
    found: dict[str, tuple[str, str]] = {}  # the name as it is compared -> as it is written, class
    for class_name, names in table.items():
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise ValueError(f"{where} {class_name}: expected a list of names, found {_short(names)}")
        if not names:
            raise ValueError(f"{where} {class_name}: expected names of annotations, found none; add them, or remove it")
        for name in names:
            compared = comparable(name)
            if not compared or not name.isprintable() or len(name) > MAX_NAME:
                raise ValueError(f"{where} {class_name}: expected a name, found {_short(name)}; correct it")
            written, other = found.setdefault(compared, (name, class_name))
            if other != class_name:
                raise ValueError(
                    f"{where}: expected each name in one class, found {_short(written)} in {other} and {class_name}; "
                    "remove one"
                )
    own = {comparable(class_name): class_name for class_name in labels}
    for compared, (name, class_name) in found.items():
        if own.get(compared, class_name) != class_name:
            raise ValueError(
                f"{where} {class_name}: expected names that are no other class, found {_short(name)}, which is the "
                f"class {own[compared]}: the names run in a circle; remove it"
            )
    return tuple((name, labels[class_name]) for name, class_name in found.values())


def comparable(name: str) -> str:
    """Returns an annotation's name as names are compared: case, underscores and repeated spaces make no difference."""
    return " ".join(name.replace("_", " ").split()).casefold()


def annotation_labels(scheme: LabelScheme) -> dict[str, int]:
    """Returns what annotations may be called: each name, as `comparable` returns it, with its label.

    These are the names in the scheme's file; the classes' own names, which `regions.geojson` writes in QuPath's
    spelling; and QuPath's `Ignore*` for pixels without truth. If the file lists no names, they are also the names of
    the codes, and QuPath's built-in classes, which stand for codes.

    Where annotations overlap, the label that comes first counts: in the order of the scheme's file; without a list,
    first what has no truth, then in the order of the classes.
    """
    of_class = {name: label for label, name in enumerate(scheme.class_names)} | {IGNORED: scheme.ignore_index}
    own = {name: label for class_name, label in of_class.items() for name in _names_of_class(class_name)}
    if scheme.annotations:
        pairs = [*scheme.annotations, *own.items()]
    else:
        codes = {
            name: label
            for book, labels in reversed(scheme.code_labels)  # the larger book, which is first, decides
            if book != OWN_CODES
            for name, label in zip(CODE_BOOKS[book], labels, strict=True)
        }
        qupath = {name: codes[code] for name, code in _QUPATH_CODES.items() if code in codes}
        pairs = [*own.items(), *(codes | qupath).items()]
    found: dict[str, int] = {}
    for name, label in pairs:
        found.setdefault(comparable(name), label)
    listed = {label for _, label in scheme.annotations}
    order = {label: place for place, label in enumerate(dict.fromkeys(label for _, label in scheme.annotations))}
    if scheme.ignore_index not in listed:
        order[scheme.ignore_index] = -1
    return dict(sorted(found.items(), key=lambda pair: order.get(pair[1], len(order) + pair[1])))


def _names_of_class(class_name: str) -> list[str]:
    names = [class_name, QUPATH_NAMES.get(class_name, class_name)]
    return [*names, QUPATH_IGNORED] if class_name == IGNORED else names


def _labels_of_codes(book: str, table: Any, labels: Mapping[str, int]) -> tuple[int, ...]:
    """Returns the label of each code of a code book, as `LabelScheme.code_labels` has them. Raises ValueError."""
    code_names, where = CODE_BOOKS.get(book, ()), f"[{book}]"
    if not isinstance(table, dict):
        raise ValueError(f"{where}: expected a table of classes with their codes, found {_short(table)}")
    _check_keys(f"{where}: ", table, labels)
    found: dict[int, str] = {}
    rest = [class_name for class_name, codes in table.items() if codes == REST]
    if len(rest) > 1:
        raise ValueError(f'{where}: expected "rest" for one class, found it for {" and ".join(rest)}; list the codes')
    for class_name, codes in table.items():
        if codes == REST:
            continue
        if not isinstance(codes, list):
            raise ValueError(f'{where} {class_name}: expected a list of codes or "rest", found {_short(codes)}')
        for code in codes:
            if code == REST:
                raise ValueError(f'{where} {class_name}: expected "rest" without a list, found {_short(codes)}')
            number = _code(f"{where} {class_name}", code, code_names)
            if number in found:
                named = f"{number} ({code_names[number]})" if code_names else f"{number}"
                raise ValueError(
                    f"{where}: expected each code in one class, found {named} in {found[number]} and {class_name}; "
                    "remove one"
                )
            found[number] = class_name
    if book == OWN_CODES:
        if not found:
            raise ValueError(f"{where}: expected codes, found none; list them, or remove the table")
        others = labels[rest[0]] if rest else UNMAPPED
        length = MAX_CODE + 1 if rest else max(found) + 1
        return tuple(labels[found[number]] if number in found else others for number in range(length))
    left = [number for number in range(len(code_names)) if number not in found]
    if left and not rest:
        raise ValueError(
            f"{where}: expected a class for every code, found none for "
            f"{_listed(code_names[number] for number in left)}; "
            f'list them, or give a class "rest", as in {IGNORED} = "rest"'
        )
    return tuple(labels[found.get(number, rest[0] if rest else "")] for number in range(len(code_names)))


def _code(where: str, code: Any, code_names: tuple[str, ...]) -> int:
    """Returns the number of a code; a code book without names has the codes 0 to 255. Raises ValueError."""
    if not code_names:
        if type(code) is int and 0 <= code <= MAX_CODE:
            return code
        raise ValueError(f"{where}: expected codes from 0 to {MAX_CODE}, found {_short(code)}")
    if isinstance(code, str) and code in code_names:
        return code_names.index(code)
    if type(code) is int and 0 <= code < len(code_names):
        return code
    near = difflib.get_close_matches(code, code_names, n=1, cutoff=0.5) if isinstance(code, str) else []
    hint = f"; did you mean {near[0]}?" if near else ""
    raise ValueError(
        f"{where}: expected codes from 0 to {len(code_names) - 1} or names of the code book ({_listed(code_names)}), "
        f"found {_short(code)}{hint}"
    )


def _names(key: str, values: Any) -> list[str]:
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise ValueError(f"{key}: expected a list of names, found {'nothing' if values is None else _short(values)}")
    return values


def _color(class_name: str, text: Any) -> Color:
    if not isinstance(text, str) or not re.fullmatch("#[0-9a-fA-F]{6}", text):
        raise ValueError(f'[colors] {class_name}: expected "#RRGGBB" with hexadecimal digits, found {_short(text)}')
    red, green, blue = bytes.fromhex(text[1:])
    return red, green, blue


def _check_keys(where: str, found: Iterable[str], known: Iterable[str]) -> None:
    known = list(known)
    for key in found:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ValueError(f"{where}expected {', '.join(known)}, found {_short(key)}{hint}")


def check(scheme: LabelScheme) -> None:
    """Raises ValueError, with one line on what is wrong, unless all fields of a scheme belong together."""
    _check_names(scheme.name, scheme.class_names)
    _check_evaluated(scheme)
    if len(scheme.colors) != scheme.num_classes:
        raise ValueError(f"expected {scheme.num_classes} colors, one per class, found {len(scheme.colors)}")
    for label, color in enumerate(scheme.colors):
        name = scheme.class_names[label]
        if color in scheme.colors[:label]:
            other = scheme.class_names[scheme.colors.index(color)]
            raise ValueError(f"expected different colors, found {_hex(color)} for {other} and for {name}; change one")
        if color in RESERVED_COLORS and label != scheme.ignore_index:
            raise ValueError(
                f"expected a color that nothing else has, found {_hex(color)} for {name}, which shows pixels without a "
                "class; change it"
            )
    if not (scheme.code_labels or scheme.annotations):
        raise ValueError(
            f"expected a table [{'] or ['.join([*CODE_BOOKS, OWN_CODES])}] with the codes of each class, or "
            "[annotations], found none"
        )
    of_names = [label for _, label in scheme.annotations]
    unknown = {*of_names, scheme.unannotated} - {*scheme.evaluated, scheme.ignore_index, None}
    if unknown:
        raise ValueError(f"annotations: expected labels of the classes, found {unknown.pop()}")
    for book, labels in scheme.code_labels:
        unknown = set(labels) - {*scheme.evaluated, scheme.ignore_index, UNMAPPED if book == OWN_CODES else None}
        if unknown:
            raise ValueError(f"[{book}]: expected labels of the classes, found {min(unknown)}")
        absent = [scheme.class_names[label] for label in scheme.evaluated if label not in labels]
        if absent:
            raise ValueError(
                f"[{book}]: expected codes for every evaluated class, found none for {absent[0]}; add them, or remove "
                f"the table if masks with these codes cannot express the scheme"
            )


def _check_names(scheme_name: str, class_names: Sequence[str]) -> None:
    for what, names in (("label scheme", (scheme_name,)), ("class", class_names)):
        for name in names:
            if not CLASS_NAME.fullmatch(name):
                raise ValueError(
                    f"the {what} name {ascii(name)[:70]} is not made of letters, digits, spaces, _ + . and -; rename it"
                )
    for number, name in enumerate(class_names):
        if name.casefold() in RESERVED_NAMES:
            raise ValueError(f"the class name {name!r} means something else in results; rename the class")
        if name != name.strip():
            raise ValueError(f"the class name {name!r} begins or ends with a space; remove it")
        if name.casefold() in [other.casefold() for other in class_names[:number]]:
            raise ValueError(f"the class name {name!r} occurs twice; rename one")


def _check_evaluated(scheme: LabelScheme) -> None:
    """Raises ValueError unless every class is evaluated or ignored, because scores have no other kind of pixel."""
    expected = scheme.class_names.index(IGNORED) if IGNORED in scheme.class_names else NO_OUTPUT
    if scheme.ignore_index != expected:
        raise ValueError(f"the ignored label is {scheme.ignore_index}, expected {expected}")
    for number, label in enumerate(scheme.evaluated):
        if not 0 <= label < scheme.num_classes:
            raise ValueError(f"the evaluated label {label} is not one of the {scheme.num_classes} classes")
        if label in scheme.evaluated[:number]:
            raise ValueError(f"the evaluated class {scheme.class_names[label]!r} occurs twice; remove one")
    if scheme.ignore_index in scheme.evaluated:
        raise ValueError(f"the class {IGNORED!r} has no truth and cannot be evaluated; remove it from evaluated")
    left = [name for label, name in enumerate(scheme.class_names) if label not in (*scheme.evaluated, expected)]
    if left and scheme.evaluated:
        raise ValueError(
            f"the class {left[0]!r} is neither evaluated nor ignored; add it to evaluated, or give its codes to "
            f"{IGNORED}"
        )
    if len(scheme.evaluated) < 2:
        raise ValueError(
            f"expected two or more evaluated classes to choose from, found {len(scheme.evaluated)}; add classes"
        )


def scheme_from_json(values: Any) -> LabelScheme:
    """Returns the scheme that `LabelScheme.to_json` gave. Files may say anything, so everything is checked.

    Files of older versions have the first four fields, and always a shipped scheme.

    Raises:
      ValueError: one line on what is wrong.
    """
    if not isinstance(values, dict) or sorted(values.keys() | _OPTIONAL) not in (
        sorted(_FIELDS),
        sorted({*_FIRST_FIELDS, *_OPTIONAL}),
    ):
        raise ValueError(f"a label scheme has the fields {', '.join(_FIELDS)}")
    names, evaluated = values["class_names"], values["evaluated"]
    if not all(isinstance(value, list | tuple) and value for value in (names, evaluated)):
        raise ValueError("class_names and evaluated must be lists that are not empty")
    if not isinstance(values["name"], str) or not all(isinstance(name, str) for name in names):
        raise ValueError("the names of a label scheme and its classes must be text")
    if not _are_integers([values["ignore_index"], *evaluated]):
        raise ValueError("ignore_index and evaluated of a label scheme must be integers")
    given = LabelScheme(values["name"], tuple(names), values["ignore_index"], tuple(evaluated))
    _check_names(given.name, given.class_names)
    _check_evaluated(given)
    known, complete = SCHEMES.get(given.name), "colors" in values
    if complete:
        given = dataclasses.replace(
            given,
            colors=_colors_of_json(values["colors"]),
            code_labels=_code_labels_of_json(values["code_labels"]),
            annotations=_annotations_of_json(values.get("annotations", ())),
            unannotated=_unannotated_of_json(values.get("unannotated")),
        )
    if known is None:
        if not complete:
            raise ValueError(f"the label scheme {ascii(given.name)[:70]} is none of {', '.join(SCHEMES)}")
        check(given)
        return given
    if given != (known if complete else dataclasses.replace(known, colors=(), code_labels=())):
        raise ValueError(
            f"its classes are not those of {known.name}: {', '.join(known.class_names)}, evaluated "
            f"{', '.join(known.evaluated_names)}, ignored label {known.ignore_index}, with the colors and codes of the "
            "package's file"
        )
    return known


def _colors_of_json(values: Any) -> tuple[Color, ...]:
    if not isinstance(values, list | tuple) or not all(
        isinstance(each, list | tuple) and len(each) == 3 and _are_integers(each) and 0 <= min(each) and max(each) < 256
        for each in values
    ):
        raise ValueError("the colors of a label scheme must be lists of three integers from 0 to 255")
    return tuple((red, green, blue) for red, green, blue in values)


def _annotations_of_json(values: Any) -> tuple[tuple[str, int], ...]:
    if not isinstance(values, list | tuple) or not all(
        isinstance(each, list | tuple) and len(each) == 2 and isinstance(each[0], str) and _are_integers(each[1:])
        for each in values
    ):
        raise ValueError("annotations of a label scheme must be pairs of a name and an integer")
    return tuple((name, label) for name, label in values)


def _unannotated_of_json(value: Any) -> int | None:
    if value is not None and type(value) is not int:
        raise ValueError("unannotated of a label scheme must be an integer")
    return value


def _code_labels_of_json(values: Any) -> tuple[tuple[str, tuple[int, ...]], ...]:
    if not isinstance(values, dict) or not all(
        book in (*CODE_BOOKS, OWN_CODES)
        and isinstance(labels, list | tuple)
        and _are_integers(labels)
        and (0 < len(labels) <= MAX_CODE + 1 if book == OWN_CODES else len(labels) == len(CODE_BOOKS[book]))
        for book, labels in values.items()
    ):
        raise ValueError("code_labels of a label scheme must have one integer for every code of a code book")
    return tuple((book, tuple(values[book])) for book in (*CODE_BOOKS, OWN_CODES) if book in values)


def complete_json(values: dict) -> dict:
    """Returns the JSON of a scheme with all fields. Files of older versions have the first four, of a shipped scheme.

    Nothing is checked; JSON that is not of a shipped scheme is returned unchanged.
    """
    known = SCHEMES.get(values.get("name", ""))
    lists = {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
    if known is not None and lists == {
        name: list(v) if isinstance(v, tuple) else v for name, v in known.identity().items()
    }:
        return known.to_json()
    return values


def unchecked_scheme(values: dict) -> LabelScheme:
    """Returns the scheme of JSON that this package wrote and checked before, such as that of an evaluation."""
    values = complete_json(values)
    return LabelScheme(
        values["name"],
        tuple(values["class_names"]),
        values["ignore_index"],
        tuple(values["evaluated"]),
        tuple(map(tuple, values.get("colors", ()))),
        tuple((book, tuple(labels)) for book, labels in values.get("code_labels", {}).items()),
        tuple((name, label) for name, label in values.get("annotations", ())),
        values.get("unannotated"),
    )


def _are_integers(values: Iterable) -> bool:
    return all(type(value) is int for value in values)


def _hex(color: Color) -> str:
    return "#" + bytes(color).hex().upper()


def _short(value: Any) -> str:
    return ascii(value)[:70]


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + more


def codes_of_slide_masks(scheme: LabelScheme) -> str:
    """Returns which codes masks of slides hold unless something else is said: the scheme's own, else those of BCSS."""
    books = [book for book, _ in scheme.code_labels]
    return OWN_CODES if OWN_CODES in books else (*books, "bcss22")[0]


def readable_codes(scheme: LabelScheme, codes: str) -> str | int:
    """Returns the code book as the readers of masks take it; for `OWN_CODES`, the number of codes from 0."""
    return len(dict(scheme.code_labels).get(codes, (0,))) if codes == OWN_CODES else codes


def lookup_table(scheme: LabelScheme, codes: str) -> np.ndarray:
    """Returns the table from mask code to label.

    Args:
      scheme: the target labels.
      codes: code book of the masks, a key of `CODE_BOOKS`; `OWN_CODES`; or `SCHEME_CODES` if they hold labels already.

    Returns:
      uint8 array of 256 entries; `table[mask]` gives labels. Numbers that are not codes give `UNMAPPED`.

    Raises:
      ValueError: the masks cannot express the scheme (five classes from three codes).
    """
    of_books = dict(scheme.code_labels)
    if codes == SCHEME_CODES:
        table = np.full(256, UNMAPPED, np.uint8)
        labels = [*range(scheme.num_classes), scheme.ignore_index]
        table[labels] = labels
        return table
    if codes not in of_books and codes == OWN_CODES:
        raise ValueError(f"the label scheme {scheme.name} has no table [{OWN_CODES}]; add it to the scheme's file")
    if codes not in of_books:
        names = ", ".join(f"{number} {name}" for number, name in enumerate(CODE_BOOKS[codes][:3]))
        more = ", ..." if len(CODE_BOOKS[codes]) > 3 else ""
        usable = " or ".join(DATA_OF_BOOKS[book] for book in of_books)
        raise ValueError(
            f"masks with the codes of {codes} ({names}{more}) cannot express the label scheme {scheme.name}; use "
            f"{usable or 'other'} data, or a scheme that has the table [{codes}]"
        )
    table = np.full(256, UNMAPPED, np.uint8)
    table[: len(of_books[codes])] = of_books[codes]
    return table


def names_of_codes(scheme: LabelScheme) -> dict[int, str]:
    """Returns the name of each code of masks that hold the scheme's labels (`SCHEME_CODES`)."""
    return {scheme.ignore_index: IGNORED} | dict(enumerate(scheme.class_names))


def absent_classes(scheme: LabelScheme, codes: str, pixels: Mapping[str, int]) -> list[str]:
    """Returns the evaluated classes that masks hold no pixel of.

    Args:
      scheme: the label scheme.
      codes: code book of the masks.
      pixels: number of pixels by the name of their code; a missing code has none.
    """
    if codes == SCHEME_CODES:
        return [name for name in scheme.evaluated_names if not pixels.get(name)]
    of_codes = dict(scheme.code_labels).get(codes, ())
    names = zip(of_codes, CODE_BOOKS.get(codes, ()), strict=False)
    present = {label for label, name in names if pixels.get(name)}
    return [scheme.class_names[label] for label in scheme.evaluated if label not in present]


def _shipped() -> dict[str, LabelScheme]:
    schemes = {}
    for name in ("tumor_stroma", "tumor_stroma_other", "five_classes", "tiatoolbox_bcss"):
        text = (Path(__file__).with_name("label_schemes") / f"{name}.toml").read_text(encoding="utf-8")
        schemes[name] = _scheme_of_toml(name, tomllib.loads(text))
    return schemes


SCHEMES = _shipped()
