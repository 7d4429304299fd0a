"""What inspection found, as JSON and as a few lines of text."""

import collections
import itertools

import numpy as np

from bcss_jax import labels
from bcss_jax.data.discovery import SPLITS
from bcss_jax.data.inspection import neighbors, similar, stain
from bcss_jax.data.inspection.survey import Survey

LISTED = 1000  # entries of a list in the JSON, at most; beside each stands how many there are


def report(survey: Survey, scheme: labels.LabelScheme) -> dict:
    """Everything that is known without a picture; lists of tiles hold their keys.

    Args:
      survey: of at least one tile.
      scheme: the label scheme, which the masks must be able to express.
    """
    tiles = survey.tiles
    parts = [part for part in SPLITS if any(tile.split == part for tile in tiles)]
    names_of_sizes = collections.Counter("x".join(map(str, stats.size[::-1])) for stats in survey.stats)
    patients = {part: {tile.patient for tile in tiles if tile.split == part} for part in parts}
    parts_of = collections.defaultdict(collections.Counter)
    for tile in tiles:
        parts_of[tile.patient][tile.split] += 1
    recurring = {patient: dict(counts) for patient, counts in sorted(parts_of.items()) if len(counts) > 1}
    said, other_mpp = neighbors.mpp_of_names(tiles)
    by_name, overlapping = neighbors.neighbors(tiles, [stats.size for stats in survey.stats])
    outliers = stain.outliers(survey.tissue, survey.densities)
    return {
        "tiles": {part: sum(tile.split == part for tile in tiles) for part in parts},
        "without_masks": {part: n for part in parts if (n := sum(t.split == part and not t.mask for t in tiles))},
        "empty_parts": [part for part in SPLITS if part not in parts],
        "sizes": dict(names_of_sizes),
        "institutes": dict(collections.Counter(tile.institute for tile in tiles).most_common()),
        "patients": {part: len(patients[part]) for part in parts},
        "patients_in_several_parts": recurring,
        "classes": _classes(survey, scheme),
        "no_evaluated_class": _listed(_without_class(survey, scheme)),
        "same_pixels": _same_pixels(survey),
        "near_copies": _near_copies(survey, parts),
        "neighbors_by_name": {
            "per_part": {part: by_name[part] for part in parts},
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
    """Pixels per part and institute: of every code, and of every label of the scheme; images without masks left out."""
    table = labels.lookup_table(scheme, survey.codes)
    book, counts = labels.CODE_BOOKS[survey.codes], survey.code_counts
    result = {"scheme": scheme.name, "tiles": {}, "codes": {}, "labels": {}}
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
    """Keys of the tiles whose mask holds no pixel of an evaluated class."""
    evaluated = np.isin(labels.lookup_table(scheme, survey.codes)[: len(labels.BCSS22_NAMES)], scheme.evaluated)
    empty = ~survey.code_counts[:, evaluated].any(axis=1)
    return [tile.key for tile, without in zip(survey.tiles, empty, strict=True) if without and tile.mask]


def _same_pixels(survey: Survey) -> dict:
    """Images that occur several times, exactly."""
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


def _near_copies(survey: Survey, parts: list[str]) -> dict:
    """Images of different parts that show the same without being the same."""
    split = np.array([tile.split for tile in survey.tiles])
    clear = survey.contrasts >= similar.LEAST_CONTRAST
    found = []
    for first, second in itertools.combinations(parts, 2):
        one, other = (np.flatnonzero((split == part) & clear) for part in (first, second))
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
        "method": f"hash of 255 bits in eight orientations, {similar.NEAR} may differ; see bcss_jax/data/inspection/similar.py for "
        "what it finds and what not",
        "too_little_contrast_not_compared": int((~clear).sum()),
        **_listed(found),
    }


def lines(found: dict, title: str, layout: str) -> list[str]:
    """A report as text."""
    tiles, patients = found["tiles"], found["patients"]
    parts = ", ".join(f"{part} {count} ({number_of(patients[part], 'patient')})" for part, count in tiles.items())
    text = [
        f"{title}: {number_of(sum(tiles.values()), 'tile')} from {number_of(len(found['institutes']), 'institute')}: {parts}"
    ]
    if len(found["sizes"]) > 1:
        sizes = ", ".join(f"{size}: {count}" for size, count in found["sizes"].items())
        text.append(f"tiles of different sizes: {sizes}")
    known = SPLITS if layout == "kaggle224" else ("train", "val")
    for part in found["empty_parts"]:
        text.append(f"{part}: {'no tiles' if part in known else 'this layout has no such part'}")
    for part, count in found["without_masks"].items():
        text.append(
            f"{part}: {number_of(count, 'image')} without masks, so no classes of theirs; all else includes them"
        )
    classes = found["classes"]
    for part, pixels in classes["labels"]["per_part"].items():
        text.append(f"classes of {part} ({classes['scheme']}): {shares(pixels)}")
    text.append("masks without any evaluated class: " + _told(found["no_evaluated_class"], str))
    recurring = found["patients_in_several_parts"]
    text.append("patients in several parts: " + _told(_listed(list(recurring)), str))
    same, near = found["same_pixels"], found["near_copies"]
    text.append(
        "same pixels in several parts: "
        + _told(same["between_parts"], lambda group: " = ".join(f"{each['tile']} ({each['part']})" for each in group))
        + f"; within a part: {same['within_a_part']['count'] or 'none'}"
    )
    text.append(
        "near copies between parts: "
        + _told(
            near,
            lambda pair: (
                f"{pair['second']} is {pair['first']} {pair['second_is_first']}, {pair['bits']} of 255 bits differ"
            ),
        )
    )
    for part, count in found["neighbors_by_name"]["per_part"].items():
        if count["overlapping"] or count["touching"]:
            text.append(
                f"by their names {count['overlapping']:,} of {number_of(count['tiles'], 'tile')} of {part} overlap a tile of "
                f"another part, and {count['touching']:,} touch one"
            )
    if not any(count["overlapping"] or count["touching"] for count in found["neighbors_by_name"]["per_part"].values()):
        text.append("by their names no tiles of different parts overlap or touch")
    meaning = {"0": "0, which is cut off,", "not said": "nothing"}
    said = ", ".join(
        f"{meaning.get(value, value)} in {number_of(count, 'tile')}"
        for value, count in found["mpp"]["names_say"].items()
    )
    text.append(
        f"um per pixel: declared {found['mpp']['declared']:g}, names say {said}; other than declared: "
        + _told(found["mpp"]["others"], lambda other: f"{other['tile']} {other['mpp']:g}")
    )
    text.append(
        f"stain outliers (robust z of {found['stain']['limit']:g} or more): "
        + _told(found["stain"]["outliers"], lambda o: f"{o['tile']} {o['what']} {o['value']:.3f} (z {o['z']:.1f})")
        + f"; hardly any tissue: {found['stain']['hardly_any_tissue']['count'] or 'none'}"
    )
    if found["warnings"]:
        text.append("odd but usable: " + _told(_listed(found["warnings"]), str))
    return text


def shares(pixels: dict[str, int]) -> str:
    """Percentages of all pixels."""
    total = max(1, sum(pixels.values()))
    return ", ".join(f"{name} {100 * count / total:.1f} %" for name, count in pixels.items())


def number_of(count: int, what: str) -> str:
    """Such as "1 tile" or "1,200 tiles"."""
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def _told(entries: dict, tell) -> str:
    """The number of entries and the first of them."""
    if not entries["count"]:
        return "none"
    return f"{entries['count']}, {'first ' if entries['count'] > 1 else ''}{tell(entries['first'][0])}"
