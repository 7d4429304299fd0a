"""Checks the tiles of a data set before anything is trained on them, and reports what they contain.

A data set with a defect is refused: the error names the first few files and counts all of them. The user can decide to
leave out missing halves and unusable files (`allow_missing`, `max_bad`), which are then counted in the report.
"""

import collections
import dataclasses
import hashlib
import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Annotated, NamedTuple, NotRequired

import numpy as np
from pydantic import AfterValidator, Field
from typing_extensions import TypedDict

from bcss_jax import labels
from bcss_jax.data.discovery import Tile, require_splits
from bcss_jax.data.tile_reader import TileStats, read_pairs
from bcss_jax.errors import ConfigError, DataError, one_line, printable

log = logging.getLogger(__name__)

NAMED_FILES = 3  # number of bad files that an error names; the others are counted
LOGGED_WARNINGS = 5


_Count = Annotated[int, Field(ge=0)]


class _ReportFields(TypedDict):
    tiles: dict[str, _Count]
    patients: dict[str, _Count]
    patients_in_two_parts: list[str]
    code_pixels: dict[str, dict[str, _Count]]
    all_ignored: dict[str, dict[str, _Count]]
    absent: dict[str, dict[str, list[str]]]
    repeated: _Count
    missing: list[str]
    bad: list[str]
    warnings: list[str]
    left_out: NotRequired[dict[str, _Count]]
    content_sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


def _check_splits(values: dict) -> dict:
    """Raises ValueError unless all parts of a report name the same splits."""
    splits = values["tiles"].keys()
    parts = [values["patients"], values["code_pixels"], *values["all_ignored"].values(), *values["absent"].values()]
    if any(part.keys() != splits for part in parts):
        raise ValueError("numbers of different splits")
    return values


CheckReportJson = Annotated[_ReportFields, AfterValidator(_check_splits)]  # `CheckReport` in a file


@dataclasses.dataclass(frozen=True)
class CheckReport:
    """What a data set contains, and what was left out. The names of the fields are those of report.json.

    Attributes:
      tiles: number of usable tiles of each split.
      patients: number of patients of each split.
      patients_in_two_parts: patients with tiles in more than one split.
      code_pixels: for each split, number of pixels by the name of their code.
      all_ignored: for each label scheme and split, number of tiles without any evaluated pixel; nothing is learned from
        them.
      absent: for each label scheme and split, evaluated classes that do not occur in it.
      repeated: number of tiles whose pixels occur earlier in the same split.
      missing: files whose other half is missing and that were left out because of `allow_missing`.
      bad: one line for each unusable pair of files that was left out because of `max_bad`.
      warnings: what is unusual but usable.
      content_sha256: of the keys, splits, images and masks of all usable tiles. It stays the same if the files are
        copied.
      left_out: number of hidden files, folders, files that are no images, and test images without masks, which are not
        read; kinds that do not occur are missing, and all kinds in reports that were written before.
    """

    tiles: dict[str, int]
    patients: dict[str, int]
    patients_in_two_parts: list[str]
    code_pixels: dict[str, dict[str, int]]
    all_ignored: dict[str, dict[str, int]]
    absent: dict[str, dict[str, list[str]]]
    repeated: int
    missing: list[str]
    bad: list[str]
    warnings: list[str]
    content_sha256: str
    left_out: dict[str, int] = dataclasses.field(default_factory=dict)

    @classmethod
    def from_json(cls, values: dict) -> "CheckReport":
        """Returns the report that `to_json` wrote."""
        return cls(**{field.name: values[field.name] for field in dataclasses.fields(cls) if field.name in values})

    def to_json(self) -> dict:
        """Returns the report as a plain dict."""
        return dataclasses.asdict(self)

    def counted(self) -> dict:
        """Returns the report as a plain dict with the number of files and patients in place of their lists."""
        lists = ("patients_in_two_parts", "missing", "bad", "warnings")
        return {name: len(value) if name in lists else value for name, value in self.to_json().items()}

    def log(self, scheme: labels.LabelScheme, codes: str) -> None:
        """Logs the counts, and as warnings what the user should know before training with this label scheme.

        Args:
          scheme: the label scheme. Tiles without ground truth were counted under the schemes of the package only.
          codes: code book of the masks.
        """
        for split, count in self.tiles.items():
            log.info("%s: %d tiles of %d patients", split, count, self.patients[split])
        if self.patients_in_two_parts:
            log.warning(
                "%d patients have tiles in more than one split, so validation scores are too high; "
                "--config.data.split=institute avoids this",
                len(self.patients_in_two_parts),
            )
        for split, pixels in self.code_pixels.items():
            names = labels.absent_classes(scheme, codes, pixels)
            if names:
                log.warning("%s contains no pixel of %s, so there is no score for it", split, ", ".join(names))
        for split, count in self.all_ignored.get(scheme.name, {}).items():
            if count:
                log.warning(
                    "%s: %d of %d tiles have no ground truth in the label scheme %s",
                    split,
                    count,
                    self.tiles[split],
                    scheme.name,
                )
        for why, lines in (("their image or mask is missing", self.missing), ("they are unusable", self.bad)):
            if lines:
                log.warning("%d pairs of files are left out because %s, first: %s", len(lines), why, one_line(lines[0]))
        if self.repeated:
            log.warning("%d tiles repeat the pixels of another tile of their split", self.repeated)
        for line in self.warnings[:LOGGED_WARNINGS]:
            log.warning("%s", one_line(line))
        if len(self.warnings) > LOGGED_WARNINGS:
            log.warning("and %d more warnings of this kind", len(self.warnings) - LOGGED_WARNINGS)


class CheckedTile(NamedTuple):
    """A tile that could be read: its key, split and patient, and the statistics of its pixels."""

    key: str
    split: str
    patient: str
    stats: TileStats


def check_tiles(
    tiles: Iterable[Tile],
    *,
    allow_missing: bool = False,
    max_bad: float = 0.0,
    patients_may_recur: bool = False,
    sizes_may_differ: bool = False,
    required: tuple[str, ...] = ("train", "val"),
    progress: Callable[[int], None] | None = None,
) -> tuple[list[Tile], CheckReport]:
    """Reads every tile and checks the data set.

    Args:
      tiles: as `discovery.find_tiles` returns them.
      allow_missing: leave out images without a mask and masks without an image.
      max_bad: share of the pairs of files, from 0 to 1, that may be unusable and are then left out.
      patients_may_recur: allow a patient in two splits, as in the published split of kaggle224.
      sizes_may_differ: allow tiles of different sizes, for whole regions, which are not batched as they are.
      required: the splits that must not be empty.
      progress: called after every pair of files with the number of tiles done.

    Returns:
      The usable tiles in the given order, and the report.

    Raises:
      ConfigError: `max_bad` is not a share.
      DataError: more files are missing or unusable than allowed, tiles have different sizes, a patient or the same
        image is in two splits, or a required split is empty.
    """
    if not 0 <= max_bad <= 1:
        raise ConfigError(f"max_bad must be a share from 0 to 1; found {max_bad}")
    tiles = list(tiles)
    num_pairs, missing, bad, warnings, stats = 0, [], [], [], {}
    for pair, result in read_pairs(tiles, progress=progress):
        num_pairs += 1
        missing += result.missing
        bad += result.bad
        warnings += result.warnings
        stats.update(zip((tile.key for tile in pair), result.stats, strict=False))
    if not sizes_may_differ:
        bad += remove_other_sizes(tiles, stats)
    if missing and not allow_missing:
        raise DataError(
            summarize_defects(missing, num_pairs)
            + "; complete or remove them, or leave them out with --config.data.allow_missing=True"
        )
    if len(bad) > max_bad * num_pairs:
        raise DataError(
            summarize_defects(bad, num_pairs)
            + "; repair or remove them, or leave out up to a share of them with --config.data.max_bad=0.01"
        )
    usable = [tile for tile in tiles if tile.key in stats]
    require_splits(usable, required)
    checked = [CheckedTile(tile.key, tile.split, tile.patient, stats[tile.key]) for tile in usable]
    report = report_on(checked, usable[0].codes, patients_may_recur=patients_may_recur)
    return usable, dataclasses.replace(report, missing=missing, bad=bad, warnings=warnings)


def report_on(checked: Sequence[CheckedTile], codes: str, *, patients_may_recur: bool = False) -> CheckReport:
    """Reports on tiles that could all be read.

    Args:
      checked: the tiles.
      codes: the code book of the masks.
      patients_may_recur: as in `check_tiles`.

    Raises:
      DataError: a patient or the same image is in two splits.
    """
    tiles = collections.Counter(tile.split for tile in checked)
    patients = {split: {tile.patient for tile in checked if tile.split == split} for split in tiles}
    shared, repeated = find_shared_images(checked)
    if shared:
        raise DataError(shared[0])
    recurring = find_recurring_patients(checked)
    if recurring and not patients_may_recur:
        raise DataError(describe_recurring_patients(recurring))
    counts = {
        split: np.sum([tile.stats.code_counts for tile in checked if tile.split == split], axis=0) for split in tiles
    }
    names = labels.CODE_BOOKS[codes]
    return CheckReport(
        tiles=dict(tiles),
        patients={split: len(patients[split]) for split in tiles},
        patients_in_two_parts=recurring,
        code_pixels={
            split: {names[code]: int(counts[split][code]) for code in np.flatnonzero(counts[split])} for split in tiles
        },
        all_ignored=_for_each_scheme(codes, lambda classes: _count_all_ignored(checked, tiles, classes)),
        absent=_for_each_scheme(
            codes,
            lambda classes: {
                split: [name for name, of_class in classes.items() if not counts[split][of_class].any()]
                for split in tiles
            },
        ),
        repeated=repeated,
        missing=[],
        bad=[],
        warnings=[],
        content_sha256=hashlib.sha256(
            b"".join(
                f"{tile.key} {tile.split} ".encode(errors="surrogateescape") + tile.stats.pair_digest
                for tile in sorted(checked, key=lambda tile: tile.key)
            )
        ).hexdigest(),
    )


def find_shared_images(checked: Sequence[CheckedTile]) -> tuple[list[str], int]:
    """Returns a line for every image that also occurs in an earlier split, and the number of repeats within splits."""
    first_with, lines, repeated = {}, [], 0
    for tile in checked:
        if not tile.stats.digest:
            continue
        other_key, other_split = first_with.setdefault(tile.stats.digest, (tile.key, tile.split))
        if other_split != tile.split:
            lines.append(
                f"{printable(tile.key)}: expected an image that only {tile.split} has, found the same pixels as in "
                f"{printable(other_key)} of {other_split}; remove one of the two"
            )
        else:
            repeated += other_key != tile.key
    return lines, repeated


def find_recurring_patients(checked: Sequence[CheckedTile]) -> list[str]:
    """Returns the patients with tiles in more than one split."""
    splits_of = collections.defaultdict(set)
    for tile in checked:
        splits_of[tile.patient].add(tile.split)
    return sorted(patient for patient, splits in splits_of.items() if len(splits) > 1)


def describe_recurring_patients(recurring: list[str]) -> str:
    """Returns the line of an error for patients that are in more than one split."""
    named = ", ".join(recurring[:NAMED_FILES]) + (", .." if len(recurring) > NAMED_FILES else "")
    return (
        f"the split: expected every patient in one split only, found {len(recurring)} in several ({named}); "
        "move their tiles into one split, or use --config.data.split=institute"
    )


def remove_other_sizes(tiles: list[Tile], stats: dict[str, TileStats]) -> list[str]:
    """Removes the tiles from `stats` that differ in size from most tiles: they do not fit into a batch.

    Returns:
      One line for each tile that was removed.
    """
    sizes = collections.Counter(each.size for each in stats.values())
    if len(sizes) < 2:
        return []
    (height, width), _ = sizes.most_common(1)[0]
    lines = []
    for tile in tiles:
        if tile.key in stats and stats[tile.key].size != (height, width):
            h, w = stats.pop(tile.key).size
            lines.append(f"{printable(tile.image)}: expected {width}x{height} pixels as most tiles have, found {w}x{h}")
    return lines


def summarize_defects(lines: list[str], total: int) -> str:
    """Returns the first few lines and the number of all of them as one line."""
    if len(lines) == 1:
        return lines[0]
    return (
        f"{len(lines)} of {total} pairs of files cannot be used: "
        + " | ".join(lines[:NAMED_FILES])
        + (" | .." if len(lines) > NAMED_FILES else "")
    )


def _for_each_scheme(codes: str, of: Callable[[dict[str, np.ndarray]], dict]) -> dict[str, dict]:
    """Calls `of` with {evaluated class: its codes} of every label scheme that these masks can express."""
    result = {}
    for scheme in labels.SCHEMES.values():
        try:
            table = labels.lookup_table(scheme, codes)
        except ValueError:
            continue
        result[scheme.name] = of(
            {scheme.class_names[label]: np.flatnonzero(table == label) for label in scheme.evaluated}
        )
    return result


def _count_all_ignored(
    checked: Sequence[CheckedTile], splits: Iterable[str], classes: dict[str, np.ndarray]
) -> dict[str, int]:
    codes = np.concatenate(list(classes.values()))
    number = dict.fromkeys(splits, 0)
    for tile in checked:
        number[tile.split] += not tile.stats.code_counts[codes].any()
    return number
