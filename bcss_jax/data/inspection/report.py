"""Reports the results of an inspection as JSON and as lines of text."""

import collections
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np

from bcss_jax import labels
from bcss_jax.data.discovery import SPLITS
from bcss_jax.data.inspection import neighbors, similar, stain
from bcss_jax.data.inspection.survey import Survey
from bcss_jax.data.names import mpp_of_names

LISTED = 1000  # maximum number of entries of a list in the JSON; the number of all entries is next to it


def report(survey: Survey, scheme: labels.LabelScheme) -> dict:
    """Returns the results as JSON. Lists of tiles contain their keys.

    Args:
      survey: statistics of at least one tile.
      scheme: a label scheme that the masks can express.
    """
    tiles = survey.tiles
    splits = [split for split in SPLITS if any(tile.split == split for tile in tiles)]
    names_of_sizes = collections.Counter("x".join(map(str, stats.size[::-1])) for stats in survey.stats)
    patients = {split: {tile.patient for tile in tiles if tile.split == split} for split in splits}
    counts_of = collections.defaultdict(collections.Counter)
    for tile in tiles:
        counts_of[tile.patient][tile.split] += 1
    recurring = {patient: dict(counts) for patient, counts in sorted(counts_of.items()) if len(counts) > 1}
    said, other_mpp = mpp_of_names([tile.key for tile in tiles], tiles[0].mpp)
    by_name, overlapping = neighbors.neighbors(tiles, [stats.size for stats in survey.stats])
    outliers = stain.outliers(survey.tissue, survey.densities)
    return {
        "tiles": {split: sum(tile.split == split for tile in tiles) for split in splits},
        "without_masks": {split: n for split in splits if (n := sum(t.split == split and not t.mask for t in tiles))},
        "empty_parts": [split for split in SPLITS if split not in splits],
        "sizes": dict(names_of_sizes),
        "institutes": dict(collections.Counter(tile.institute for tile in tiles).most_common()),
        "patients": {split: len(patients[split]) for split in splits},
        "patients_in_several_parts": recurring,
        "classes": _classes(survey, scheme),
        "no_evaluated_class": _listed(_without_class(survey, scheme)),
        "same_pixels": _same_pixels(survey),
        "near_copies": _near_copies(survey, splits),
        "neighbors_by_name": {
            "per_part": {split: by_name[split] for split in splits},
            "overlapping": _listed([[tiles[i].key, tiles[j].key] for i, j in overlapping]),
        },
        "mpp": {
            "declared": tiles[0].mpp,
            "names_say": said,
            "others": _listed([{"tile": tiles[i].key, "mpp": value} for i, value in other_mpp]),
        },
        "stain": {
            "limit": stain.FAR,
            "hardly_any_tissue": _listed([tiles[i].key for i in np.flatnonzero(survey.tissue < stain.LEAST_TISSUE)]),
            "outliers": _listed(
                [{"tile": tiles[i].key, "what": what, "value": value, "z": z} for i, what, value, z in outliers]
            ),
        },
        "warnings": survey.warnings,
    }


def _listed(entries: list) -> dict:
    return {"count": len(entries), "first": entries[:LISTED]}


def _classes(survey: Survey, scheme: labels.LabelScheme) -> dict:
    """Counts the pixels of every code and every label by split and by institute, without images that have no masks."""
    table = labels.lookup_table(scheme, survey.codes)
    book, counts = labels.CODE_BOOKS[survey.codes], survey.code_counts
    result = {"scheme": scheme.name, "tiles": {}, "codes": {}, "labels": {}}
    # The names of the fields are those of inspect.json.
    for group, of in (("part", lambda tile: tile.split), ("institute", lambda tile: tile.institute)):
        member = [of(tile) if tile.mask else None for tile in survey.tiles]
        result["tiles"][f"per_{group}"] = dict(collections.Counter(filter(None, member)))
        result["codes"][f"per_{group}"], result["labels"][f"per_{group}"] = {}, {}
        for name in dict.fromkeys(each for each in sorted(filter(None, member), key=_order)):
            total = counts[[each == name for each in member]].sum(axis=0)[: len(book)]
            result["codes"][f"per_{group}"][name] = dict(zip(book, total.tolist(), strict=True))
            pixels = {
                scheme.class_names[label]: int(total[table[: len(book)] == label].sum()) for label in scheme.evaluated
            }
            pixels["ignored"] = int(total.sum()) - sum(pixels.values())
            result["labels"][f"per_{group}"][name] = pixels
    return result


def _order(name: str) -> tuple:
    return (SPLITS.index(name) if name in SPLITS else len(SPLITS), name)


def _without_class(survey: Survey, scheme: labels.LabelScheme) -> list[str]:
    """Returns the keys of the tiles whose mask has no pixel of an evaluated class."""
    evaluated = np.isin(labels.lookup_table(scheme, survey.codes)[: len(labels.BCSS22_NAMES)], scheme.evaluated)
    found = survey.code_counts[:, evaluated].sum(axis=1)
    return [tile.key for tile, pixels in zip(survey.tiles, found, strict=True) if pixels == 0 and tile.mask]


def _same_pixels(survey: Survey) -> dict:
    """Finds images with exactly the same pixels."""
    groups, one_color = collections.defaultdict(list), []
    for tile, stats in zip(survey.tiles, survey.stats, strict=True):
        if stats.digest:
            groups[stats.digest].append(tile)
        else:
            one_color.append(tile.key)
    repeated = [group for group in groups.values() if len(group) > 1]
    between = [group for group in repeated if len({tile.split for tile in group}) > 1]
    within = [group for group in repeated if len({tile.split for tile in group}) == 1]
    return {
        "between_parts": _listed([[{"tile": tile.key, "part": tile.split} for tile in group] for group in between]),
        "within_a_part": _listed([[tile.key for tile in group] for group in within]),
        "of_one_colour_not_compared": _listed(one_color),
    }


def _near_copies(survey: Survey, splits: list[str]) -> dict:
    """Finds images of different splits that show the same but have different pixels."""
    split_of = np.array([tile.split for tile in survey.tiles])
    clear = survey.contrasts >= similar.LEAST_CONTRAST
    found = []
    for first, second in itertools.combinations(splits, 2):
        one, other = (np.flatnonzero((split_of == split) & clear) for split in (first, second))
        found += similar.pairs_between(survey.hashes, one, other)
    found = [
        {
            "first": survey.tiles[i].key,
            "second": survey.tiles[j].key,
            "parts": [survey.tiles[i].split, survey.tiles[j].split],
            "second_is_first": similar.ORIENTATIONS[orientation],
            "bits": bits,
        }
        for i, j, orientation, bits in sorted(found, key=lambda pair: (pair[3], pair))
        if not survey.stats[i].digest or survey.stats[i].digest != survey.stats[j].digest
    ]
    return {
        "method": f"hash of 255 bits in eight orientations, up to {similar.NEAR} may differ; "
        "bcss_jax/data/inspection/similar.py describes what it finds",
        "too_little_contrast_not_compared": int((~clear).sum()),
        **_listed(found),
    }


def report_lines(found: dict, title: str, layout: str) -> list[str]:
    """Returns a report as lines of text.

    Args:
      found: as `report` returns it.
      title: name of the data set.
      layout: of the data set.
    """
    text = _lines_of_counts(found, title, layout) + _lines_of_copies(found)
    meaning = {"0": "0, which is cut off,", "not said": "nothing"}
    said = ", ".join(
        f"{meaning.get(value, value)} in {number_of(count, 'tile')}"
        for value, count in found["mpp"]["names_say"].items()
    )
    text.append(
        f"um per pixel: declared {found['mpp']['declared']:g}, names say {said}; other than declared: "
        + _count_and_first(found["mpp"]["others"], lambda other: f"{other['tile']} {other['mpp']:g}")
    )
    text.append(
        f"stain outliers (robust z of {found['stain']['limit']:g} or more): "
        + _count_and_first(
            found["stain"]["outliers"], lambda o: f"{o['tile']} {o['what']} {o['value']:.3f} (z {o['z']:.1f})"
        )
        + f"; hardly any tissue: {found['stain']['hardly_any_tissue']['count'] or 'none'}"
    )
    if found["warnings"]:
        text.append("unusual but usable: " + _count_and_first(_listed(found["warnings"]), str))
    return text


def _lines_of_counts(found: dict, title: str, layout: str) -> list[str]:
    """Returns the lines about tiles, patients and classes."""
    tiles, patients = found["tiles"], found["patients"]
    splits = ", ".join(f"{split} {count} ({number_of(patients[split], 'patient')})" for split, count in tiles.items())
    text = [
        f"{title}: {number_of(sum(tiles.values()), 'tile')} from {number_of(len(found['institutes']), 'institute')}: "
        f"{splits}"
    ]
    if len(found["sizes"]) > 1:
        sizes = ", ".join(f"{size}: {count}" for size, count in found["sizes"].items())
        text.append(f"tiles of different sizes: {sizes}")
    known = SPLITS if layout == "kaggle224" else ("train", "val")
    for split in found["empty_parts"]:
        text.append(f"{split}: {'no tiles' if split in known else 'this layout has no such split'}")
    for split, count in found["without_masks"].items():
        text.append(f"{split}: {number_of(count, 'image')} without masks, which count in everything but the classes")
    classes = found["classes"]
    for split, pixels in classes["labels"]["per_part"].items():
        text.append(f"classes of {split} ({classes['scheme']}): {shares(pixels)}")
    text.append("masks without any evaluated class: " + _count_and_first(found["no_evaluated_class"], str))
    recurring = found["patients_in_several_parts"]
    text.append("patients in several splits: " + _count_and_first(_listed(list(recurring)), str))
    return text


def _lines_of_copies(found: dict) -> list[str]:
    """Returns the lines about tiles of different splits that show the same tissue."""
    same, near = found["same_pixels"], found["near_copies"]
    between = _count_and_first(
        same["between_parts"], lambda group: " = ".join(f"{each['tile']} ({each['part']})" for each in group)
    )
    text = [f"same pixels in several splits: {between}; within a split: {same['within_a_part']['count'] or 'none'}"]
    text.append(
        "near copies between splits: "
        + _count_and_first(
            near,
            lambda pair: (
                f"{pair['second']} is {pair['first']} {pair['second_is_first']}, {pair['bits']} of 255 bits differ"
            ),
        )
    )
    for split, count in found["neighbors_by_name"]["per_part"].items():
        if count["overlapping"] or count["touching"]:
            text.append(
                f"by their names {count['overlapping']:,} of {number_of(count['tiles'], 'tile')} of {split} overlap a "
                f"tile of another split, and {count['touching']:,} touch one"
            )
    if not any(count["overlapping"] or count["touching"] for count in found["neighbors_by_name"]["per_part"].values()):
        text.append("by their names no tiles of different splits overlap or touch")
    return text


def shares(pixels: dict[str, int]) -> str:
    """Returns the counts as percentages of all pixels."""
    total = max(1, sum(pixels.values()))
    return ", ".join(f"{name} {100 * count / total:.1f} %" for name, count in pixels.items())


def number_of(count: int, what: str) -> str:
    """Returns a number with its noun, for example "1 tile" or "1,200 tiles"."""
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def _count_and_first(entries: dict, describe: Callable[[Any], str]) -> str:
    """Returns the number of entries and the description of the first one."""
    if not entries["count"]:
        return "none"
    return f"{entries['count']}, {'first ' if entries['count'] > 1 else ''}{describe(entries['first'][0])}"
