"""Label schemes: which tissue classes a model learns, and how mask codes map onto them.

A mask file holds *codes*; a model sees *labels*. Two code books occur: `bcss22`, the 22 codes of the original BCSS
masks (gtruth_codes.tsv of the data set), and `kaggle3`, the 0/1/2 of the 224-pixel Kaggle tiles. A `LabelScheme`
turns either into labels through a look-up table, and travels with every checkpoint and metric file: figures of
different schemes are never comparable.

The grouping tumor = {1, 19, 20}, inflammatory = {3, 10, 11}, necrosis = {4} is that of the BCSS challenge's baseline.
Code 0 is "outside the ROI" in the original masks and carries no information; 7 (exclude) and 15 (undetermined) are
treated the same. In the Kaggle tiles 0 also covers every other tissue.
"""

import dataclasses
import re

import numpy as np

BCSS22_NAMES = (
    "outside_roi", "tumor", "stroma", "lymphocytic_infiltrate", "necrosis_or_debris", "glandular_secretions", "blood",
    "exclude", "metaplasia_NOS", "fat", "plasma_cells", "other_immune_infiltrate", "mucoid_material",
    "normal_acinus_or_duct", "lymphatics", "undetermined", "nerve", "skin_adnexa", "blood_vessel", "angioinvasion",
    "dcis", "other",
)  # fmt: skip
KAGGLE3_NAMES = ("other_or_outside", "tumor", "stroma")
CODE_BOOKS = {"bcss22": BCSS22_NAMES, "kaggle3": KAGGLE3_NAMES}

TUMOR, STROMA, INFLAMMATORY, NECROSIS = (1, 19, 20), (2,), (3, 10, 11), (4,)
UNKNOWN = (0, 7, 15)  # outside the ROI, excluded, undetermined: no truth to learn from
CLASS_NAME = re.compile(r"\w[\w +.-]{0,63}")  # names go into tables, file columns and web pages
UNMAPPED = 254  # what the look-up table gives for a number that is no code; never reaches a model


@dataclasses.dataclass(frozen=True)
class LabelScheme:
    """What the logits of a model mean.

    Attributes:
      name: "tumor_stroma", "tumor_stroma_other" or "five_classes".
      class_names: one name per logit; index = label.
      ignore_index: the label that carries no truth. It may be one of the logits (0) or outside them (255).
      evaluated: labels over which losses, predictions and metrics run.
    """

    name: str
    class_names: tuple[str, ...]
    ignore_index: int
    evaluated: tuple[int, ...]

    @property
    def num_classes(self) -> int:
        """Number of logits."""
        return len(self.class_names)

    @property
    def evaluated_names(self) -> tuple[str, ...]:
        """Names of the evaluated classes, in the order of `evaluated`."""
        return tuple(self.class_names[label] for label in self.evaluated)

    def to_json(self) -> dict:
        """Plain dict for checkpoints and metric files."""
        return dataclasses.asdict(self)


SCHEMES = {
    scheme.name: scheme
    for scheme in (
        LabelScheme("tumor_stroma", ("ignored", "tumor", "stroma"), ignore_index=0, evaluated=(1, 2)),
        LabelScheme("tumor_stroma_other", ("other", "tumor", "stroma"), ignore_index=255, evaluated=(0, 1, 2)),
        LabelScheme(
            "five_classes",
            ("ignored", "tumor", "stroma", "inflammatory", "necrosis", "other"),
            ignore_index=0,
            evaluated=(1, 2, 3, 4, 5),
        ),
    )
}


def scheme_from_json(values: dict) -> LabelScheme:
    """The scheme that `LabelScheme.to_json` gave, if it is one of `SCHEMES`: files may say anything.

    Raises:
      ValueError: one line on what is wrong.
    """
    fields = [field.name for field in dataclasses.fields(LabelScheme)]
    if not isinstance(values, dict) or sorted(values) != sorted(fields):
        raise ValueError(f"a label scheme has the fields {', '.join(fields)}")
    names, evaluated = values["class_names"], values["evaluated"]
    if not all(isinstance(value, list | tuple) and value for value in (names, evaluated)):
        raise ValueError("class_names and evaluated must be lists that are not empty")
    for name in names:
        if not isinstance(name, str) or not CLASS_NAME.fullmatch(name):
            raise ValueError(f"the class name {ascii(name)[:70]} is not made of letters, digits, spaces, _ + . and -")
    for what, entries in (("class name", names), ("evaluated label", evaluated)):
        twice = [entry for number, entry in enumerate(entries) if entry in entries[:number]]
        if twice:
            raise ValueError(f"the {what} {twice[0]!r} stands there twice")
    known = SCHEMES.get(values["name"]) if isinstance(values["name"], str) else None
    if known is None:
        raise ValueError(f"the label scheme {ascii(values['name'])[:70]} is none of {', '.join(SCHEMES)}")
    if LabelScheme(known.name, tuple(names), values["ignore_index"], tuple(evaluated)) != known:
        raise ValueError(
            f"its classes are not those of {known.name}: {', '.join(known.class_names)}, evaluated "
            f"{', '.join(known.evaluated_names)}, ignored label {known.ignore_index}"
        )
    return known


def lookup_table(scheme: LabelScheme, codes: str) -> np.ndarray:
    """Table from mask code to label.

    Args:
      scheme: the target labels.
      codes: code book of the masks, a key of `CODE_BOOKS`.

    Returns:
      uint8 array of 256 entries; `table[mask]` gives labels. Numbers that are no code give `UNMAPPED`.

    Raises:
      ValueError: the code book cannot express the scheme (five classes from three codes).
    """
    table = np.full(256, UNMAPPED, np.uint8)
    if codes == "kaggle3":
        if scheme.name == "five_classes":
            raise ValueError("masks with the codes 0, 1, 2 cannot give five classes; use kaggle512 or roi data")
        table[:3] = (0, 1, 2)  # 0: ignored in `tumor_stroma`, a class of its own in `tumor_stroma_other`
        return table
    names = {name: label for label, name in enumerate(scheme.class_names)}
    everything_else = names.get("other", scheme.ignore_index)
    table[: len(BCSS22_NAMES)] = everything_else
    for codes_of_class, name in (
        (TUMOR, "tumor"),
        (STROMA, "stroma"),
        (INFLAMMATORY, "inflammatory"),
        (NECROSIS, "necrosis"),
    ):
        table[list(codes_of_class)] = names.get(name, everything_else)
    table[list(UNKNOWN)] = scheme.ignore_index
    return table
