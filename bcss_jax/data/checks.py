"""Reads every tile once, before anything is trained on it, and reports what is wrong and what is in there.

A data set with a defect is refused with the first few files named and all of them counted. What may be passed over
(`allow_missing`, `max_bad`) is passed over by the caller's decision, and counted too.
"""

import collections
import concurrent.futures
import contextlib
import dataclasses
import hashlib
import itertools
import logging
import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from bcss_jax import labels
from bcss_jax.data.discovery import Tile, require_parts
from bcss_jax.data.image_files import read_image, read_pair
from bcss_jax.errors import ConfigError, DataError, printable

log = logging.getLogger(__name__)

NAMED_FILES = 3  # how many bad files an error names; the rest are counted
LOGGED_WARNINGS = 5


@dataclasses.dataclass(frozen=True)
class CheckReport:
    """What a data set holds, and what was passed over.

    Attributes:
      tiles: per part, number of usable tiles.
      patients: per part, number of patients.
      patients_in_two_parts: patients with tiles in more than one part.
      code_pixels: per part and name of the code, number of pixels.
      all_ignored: per label scheme and part, number of tiles without any evaluated pixel: they teach nothing.
      absent: per label scheme and part, evaluated classes which occur nowhere in it.
      repeated: number of tiles whose pixels occur earlier in the same part.
      missing: files whose other half is missing, passed over because of `allow_missing`.
      bad: one line per unusable pair of files, passed over because of `max_bad`.
      warnings: what is odd but usable.
      content_sha256: of all usable tiles' keys, parts, images and masks. Copying the files somewhere else leaves it.
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

    def to_json(self) -> dict:
        """Plain dict."""
        return dataclasses.asdict(self)

    def counted(self) -> dict:
        """The same, with the number of files and patients in place of their lists."""
        lists = ("patients_in_two_parts", "missing", "bad", "warnings")
        return {name: len(value) if name in lists else value for name, value in self.to_json().items()}

    def log(self, scheme: labels.LabelScheme, codes: str) -> None:
        """Logs the counts, and as warnings what the user should know before training with this scheme.

        Args:
          scheme: the label scheme. Tiles without truth were counted under the schemes of the package only.
          codes: code book of the masks.
        """
        for part, count in self.tiles.items():
            log.info("%s: %d tiles of %d patients", part, count, self.patients[part])
        if self.patients_in_two_parts:
            log.warning(
                "patients with tiles in more than one part: %d, so validation figures flatter; --config.data.split=institute avoids it",
                len(self.patients_in_two_parts),
            )
        for part, pixels in self.code_pixels.items():
            names = labels.absent_classes(scheme, codes, pixels)
            if names:
                log.warning("%s holds no pixel of %s: there is no figure for it", part, ", ".join(names))
        for part, count in self.all_ignored.get(scheme.name, {}).items():
            if count:
                log.warning(
                    "%s: %d of %d tiles carry no truth under the scheme %s", part, count, self.tiles[part], scheme.name
                )
        for what, lines in (("left out for want of image or mask", self.missing), ("left out as unusable", self.bad)):
            if lines:
                log.warning("%d pairs of files %s, first: %s", len(lines), what, lines[0])
        if self.repeated:
            log.warning("%d tiles repeat the pixels of another tile of their part", self.repeated)
        for line in self.warnings[:LOGGED_WARNINGS]:
            log.warning("%s", line)
        if len(self.warnings) > LOGGED_WARNINGS:
            log.warning("and %d more warnings of this kind", len(self.warnings) - LOGGED_WARNINGS)


@dataclasses.dataclass(frozen=True)
class TileStats:
    """What the checks need to know about a tile once its pixels are gone.

    Attributes:
      size: (height, width).
      code_counts: int64 [22], pixels per code.
      digest: of the image's pixels; empty if they all have one color, for blank tiles resemble one another.
      pair_digest: of the pixels of image and mask.
    """

    size: tuple[int, int]
    code_counts: np.ndarray
    digest: bytes
    pair_digest: bytes


def content_of(image: np.ndarray, mask: np.ndarray | None) -> TileStats:
    """Sums up a tile: image uint8 [H, W, 3], mask uint8 [H, W] or None, which counts as no pixel of any code."""
    image = np.ascontiguousarray(image)
    if mask is None:
        mask, counts = np.empty(0, np.uint8), np.zeros(len(labels.BCSS22_NAMES), np.int64)
    else:
        counts = np.bincount(mask.ravel(), minlength=len(labels.BCSS22_NAMES))
    of_image = hashlib.sha256(image).digest()
    pair_digest = hashlib.sha256(of_image + hashlib.sha256(np.ascontiguousarray(mask)).digest()).digest()
    one_color = (image[0] == image[0, 0]).all() and (image == image[0, 0]).all()  # most are not: the first row says so
    return TileStats(image.shape[:2], counts, b"" if one_color else of_image, pair_digest)


def check(
    tiles: Iterable[Tile],
    *,
    allow_missing: bool = False,
    max_bad: float = 0.0,
    patients_may_recur: bool = False,
    sizes_may_differ: bool = False,
    required: tuple[str, ...] = ("train", "val"),
    progress: Callable[[int], None] | None = None,
) -> tuple[list[Tile], CheckReport]:
    """Reads every tile and judges the data set.

    Args:
      tiles: what `layouts.find_tiles` gives.
      allow_missing: pass over images without a mask and masks without an image.
      max_bad: share of the pairs of files, 0 to 1, that may be unusable and are then passed over.
      patients_may_recur: the same patient in two parts is no error: so it is by design in kaggle224 as published.
      sizes_may_differ: whole regions: no batch has to hold them as they are.
      required: the parts that must not be empty.
      progress: called after every pair of files with the number of tiles done.

    Returns:
      The usable tiles in the order given, and the report.

    Raises:
      ConfigError: `max_bad` is no share.
      DataError: missing or unusable files beyond what is allowed, tiles of different sizes, a patient or the very same
        image in two parts, or nothing left in a required part.
    """
    if not 0 <= max_bad <= 1:
        raise ConfigError(f"max_bad must be a share from 0 to 1; found {max_bad}")
    tiles = list(tiles)
    pairs, missing, bad, warnings, contents = 0, [], [], [], {}
    for pair, finding in examine(tiles, progress=progress):
        pairs += 1
        missing += finding.missing
        bad += finding.bad
        warnings += finding.warnings
        contents.update(zip((tile.key for tile in pair), finding.contents, strict=False))
    if not sizes_may_differ:
        bad += take_out_other_sizes(tiles, contents)
    if missing and not allow_missing:
        raise DataError(
            listed(missing, pairs)
            + "; complete or remove them, or leave them out with --config.data.allow_missing=True"
        )
    if len(bad) > max_bad * pairs:
        raise DataError(
            listed(bad, pairs)
            + "; mend or remove them, or leave out up to a share of them with --config.data.max_bad=0.01"
        )
    usable = [tile for tile in tiles if tile.key in contents]
    require_parts(usable, required)
    rows = [(tile.key, tile.split, tile.patient, contents[tile.key]) for tile in usable]
    report = judge(rows, usable[0].codes, patients_may_recur=patients_may_recur)
    return usable, dataclasses.replace(report, missing=missing, bad=bad, warnings=warnings)


def judge(rows: list[tuple[str, str, str, TileStats]], codes: str, *, patients_may_recur: bool = False) -> CheckReport:
    """Judges tiles that could all be read.

    Args:
      rows: key, part, patient and content of each tile.
      codes: the masks' code book.
      patients_may_recur: as in `check`.

    Raises:
      DataError: a patient or the very same image in two parts.
    """
    tiles = collections.Counter(part for _, part, *_ in rows)
    patients = {part: {patient for _, p, patient, _ in rows if p == part} for part in tiles}
    shared, repeated = same_images(rows)
    if shared:
        raise DataError(shared[0])
    recurring = recurring_patients(rows)
    if recurring and not patients_may_recur:
        raise DataError(recurring_line(recurring))
    counts = {part: sum(content.code_counts for _, p, _, content in rows if p == part) for part in tiles}
    names = labels.CODE_BOOKS[codes]
    return CheckReport(
        tiles=dict(tiles),
        patients={part: len(patients[part]) for part in tiles},
        patients_in_two_parts=recurring,
        code_pixels={
            part: {names[code]: int(counts[part][code]) for code in np.flatnonzero(counts[part])} for part in tiles
        },
        all_ignored=_per_scheme(codes, lambda seen: _all_ignored(rows, tiles, seen)),
        absent=_per_scheme(
            codes,
            lambda seen: {
                part: [name for name, its_codes in seen.items() if not counts[part][its_codes].any()] for part in tiles
            },
        ),
        repeated=repeated,
        missing=[],
        bad=[],
        warnings=[],
        content_sha256=hashlib.sha256(
            b"".join(
                f"{key} {part} ".encode(errors="surrogateescape") + content.pair_digest
                for key, part, _, content in sorted(rows, key=lambda row: row[0])
            )
        ).hexdigest(),
    )


def same_images(rows: list[tuple[str, str, str, TileStats]]) -> tuple[list[str], int]:
    """A line for every image whose pixels occur in an earlier part, and the number of repeats within the parts."""
    first_with, lines, repeated = {}, [], 0
    for key, part, _, content in rows:
        if not content.digest:
            continue
        other_key, other_part = first_with.setdefault(content.digest, (key, part))
        if other_part != part:
            lines.append(
                f"{printable(key)}: expected an image of its own in {part}, found the same pixels as in "
                f"{printable(other_key)} of {other_part}; remove one of the two"
            )
        else:
            repeated += other_key != key
    return lines, repeated


def recurring_patients(rows: list[tuple[str, str, str, TileStats]]) -> list[str]:
    """Patients with tiles in more than one part."""
    parts_of = collections.defaultdict(set)
    for _, part, patient, _ in rows:
        parts_of[patient].add(part)
    return sorted(patient for patient, parts in parts_of.items() if len(parts) > 1)


def recurring_line(recurring: list[str]) -> str:
    """What is wrong with a split in which these patients occur in several parts."""
    named = ", ".join(recurring[:NAMED_FILES]) + (", .." if len(recurring) > NAMED_FILES else "")
    return (
        f"the split: expected every patient in one part only, found {len(recurring)} in several ({named}); "
        "move their tiles into one part, or use --config.data.split=institute"
    )


@dataclasses.dataclass(frozen=True)
class Finding:
    """What came of one pair of files: a line for what is wrong, or the content of each of its tiles.

    Attributes:
      missing: a line, if one of the two files is not there.
      bad: a line, if they cannot be used.
      warnings: what is odd but usable.
      contents: of each tile, unless something is wrong.
      measures: of each tile, what `examine` was asked to measure.
    """

    missing: tuple[str, ...] = ()
    bad: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    contents: tuple[TileStats, ...] = ()
    measures: tuple = ()


def examine(
    tiles: Iterable[Tile],
    *,
    measure: Callable[[np.ndarray], Any] | None = None,
    progress: Callable[[int], None] | None = None,
) -> Iterator[tuple[list[Tile], Finding]]:
    """Reads every pair of files once, on several threads, and sums up the tiles that are cut from it.

    Args:
      tiles: those of one pair of files stand together.
      measure: called with the image of each tile, uint8 [H, W, 3]; what it returns stands in `Finding.measures`.
      progress: called after every pair of files with the number of tiles done.

    Yields:
      The tiles of a pair of files and what came of it, in the order given.
    """
    pairs = [list(group) for _, group in itertools.groupby(tiles, key=lambda tile: (tile.image, tile.mask))]
    # Threads do: decoding, hashing and NumPy let go of the interpreter. Regions take memory: not many at once.
    pool = concurrent.futures.ThreadPoolExecutor(min(8, os.cpu_count() or 1))
    with contextlib.ExitStack() as stack:
        stack.callback(pool.shutdown, cancel_futures=True)  # an interrupt does not wait for the rest
        done = 0
        for pair, finding in zip(pairs, pool.map(lambda pair: _examine(pair, measure), pairs), strict=True):
            yield pair, finding
            done += len(pair)
            if progress:
                progress(done)


def _examine(pair: list[Tile], measure: Callable[[np.ndarray], Any] | None) -> Finding:
    image_path, mask_path = pair[0].image, pair[0].mask
    for here, absent, what in ((image_path, mask_path, "mask"), (mask_path, image_path, "image")):
        if absent and not absent.exists():
            return Finding(missing=(f"{printable(here)}: expected its {what} {printable(absent)}, found none",))
    warnings = []
    try:
        image, mask = read_files(pair[0], warnings.append)
    except DataError as error:
        return Finding(bad=(str(error),))
    parts = [cut(image, mask, tile) for tile in pair]
    return Finding(
        warnings=tuple(warnings),
        contents=tuple(content_of(*part) for part in parts),
        measures=tuple(measure(part[0]) for part in parts) if measure else (),
    )


def read_files(tile: Tile, warn: Callable[[str], None]) -> tuple[np.ndarray, np.ndarray | None]:
    """The whole image and mask, None without one, that a tile is cut from; errors as `tiles.read_pair`."""
    if tile.mask is None:
        return read_image(tile.image, warn), None
    return read_pair(tile.image, tile.mask, tile.codes, warn)


def cut(image: np.ndarray, mask: np.ndarray | None, tile: Tile) -> tuple[np.ndarray, np.ndarray | None]:
    """The tile's window of its image [H, W, 3] and mask [H, W], if there is one."""
    if tile.window is None:
        return image, mask
    x, y, size = tile.window
    window = np.s_[y : y + size, x : x + size]
    return image[window], None if mask is None else mask[window]


def take_out_other_sizes(tiles: list[Tile], contents: dict[str, TileStats]) -> list[str]:
    """Lines for tiles which have not the size of most; takes them out of `contents`, for no batch could hold them."""
    sizes = collections.Counter(content.size for content in contents.values())
    if len(sizes) < 2:
        return []
    (height, width), _ = sizes.most_common(1)[0]
    lines = []
    for tile in tiles:
        if tile.key in contents and contents[tile.key].size != (height, width):
            h, w = contents.pop(tile.key).size
            lines.append(f"{printable(tile.image)}: expected {width}x{height} pixels as most tiles have, found {w}x{h}")
    return lines


def listed(lines: list[str], total: int) -> str:
    """The first few lines and the number of all, as one."""
    if len(lines) == 1:
        return lines[0]
    return (
        f"{len(lines)} of {total} pairs of files cannot be used: "
        + " | ".join(lines[:NAMED_FILES])
        + (" | .." if len(lines) > NAMED_FILES else "")
    )


def _per_scheme(codes: str, of: Callable[[dict[str, np.ndarray]], dict]) -> dict[str, dict]:
    """Applies `of` to {evaluated class: its codes} of every scheme that these masks can express."""
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


def _all_ignored(rows: list, tiles: Iterable[str], evaluated: dict[str, np.ndarray]) -> dict[str, int]:
    codes = np.concatenate(list(evaluated.values()))
    number = dict.fromkeys(tiles, 0)
    for _, part, _, content in rows:
        number[part] += not content.code_counts[codes].any()
    return number
