"""Draws the figures of a data set: classes, colors, examples, stain, copies.

Each function returns a matplotlib figure.
"""

import textwrap

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from bcss_jax import labels
from bcss_jax.common.figures import BLUE, VERMILION, class_colors, legend, overlay
from bcss_jax.data.discovery import Tile
from bcss_jax.data.inspection import stain
from bcss_jax.data.inspection.report import number_of
from bcss_jax.data.inspection.source import Source
from bcss_jax.data.inspection.survey import BINS, Survey

# Color, marker and hatching of each split; no split is marked by its color only.
SPLIT_STYLES = {"train": (BLUE, "o", ""), "val": (VERMILION, "s", "///"), "test": ("#009E73", "^", "...")}
CHANNELS = (("red", VERMILION, "-"), ("green", "#009E73", "--"), ("blue", BLUE, ":"))
IGNORED = "0.8"
EXAMPLES, FEWEST_EXAMPLES = 8, 4
NUMBERED = 10  # number of outliers that a figure names
_DPI = 110


def classes(found: dict, scheme: labels.LabelScheme, title: str) -> Figure:
    """Draws the share of each class in every split and every institute as stacked bars.

    Args:
      found: as `report.report` returns it.
      scheme: the label scheme that was passed to `report.report`.
      title: of the figure.
    """
    pixels, tiles = found["classes"]["labels"], found["classes"]["tiles"]
    rows: list[tuple[str, dict | None, str] | None] = [
        (split, counts, number_of(tiles["per_part"][split], "tile")) for split, counts in pixels["per_part"].items()
    ]
    rows += [(split, None, "") for split in found["without_masks"]]
    rows.append(None)  # a gap
    rows += [
        (f"institute {name}", counts, number_of(tiles["per_institute"][name], "tile"))
        for name, counts in pixels["per_institute"].items()
    ]
    figure = Figure(figsize=(9, 2.0 + 0.3 * len(rows)), dpi=_DPI, layout="constrained")
    axes = figure.subplots()
    colors = dict(zip(scheme.class_names, class_colors(scheme) / 255, strict=True)) | {"ignored": IGNORED}
    names = [*scheme.evaluated_names, "ignored"]
    for y, row in enumerate(rows):
        if row is None:
            continue
        _, counts, note = row
        if not counts:
            axes.text(1, y, "no masks", va="center", fontsize=9)
            continue
        left, total = 0.0, max(1, sum(counts.values()))
        for name in names:
            width = 100 * counts[name] / total
            hatch = "////" if name == "ignored" else None
            axes.barh(y, width, 0.72, left, color=colors[name], edgecolor="white", linewidth=0.5, hatch=hatch)
            if width >= 6:
                frame = {"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 1}
                axes.text(left + width / 2, y, f"{width:.0f}", ha="center", va="center", fontsize=8, bbox=frame)
            left += width
        axes.text(101, y, note, va="center", fontsize=8.5)
    axes.set_yticks([y for y, row in enumerate(rows) if row], [row[0] for row in rows if row])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlim(0, 100)
    axes.set_xlabel("share of the labeled tiles' pixels, %")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    handles = [
        Patch(facecolor=colors[n], label=n, hatch="////" if n == "ignored" else None, edgecolor="white") for n in names
    ]
    figure.legend(handles=handles, loc="outside lower center", ncol=6, frameon=False, fontsize=9)
    figure.suptitle(f"{title}: classes of {scheme.name}", fontsize=11)
    return figure


def codes(found: dict, title: str) -> Figure:
    """Draws the share of each code in the masks of every split, on a logarithmic axis if the shares differ widely."""
    by_split = found["classes"]["codes"]["per_part"]
    book = list(next(iter(by_split.values())))
    total = {split: max(1, sum(counts.values())) for split, counts in by_split.items()}
    present = [name for name in book if any(counts[name] for counts in by_split.values())]
    shares = {
        split: np.array([100 * counts[name] / total[split] for name in present]) for split, counts in by_split.items()
    }
    above = np.concatenate(list(shares.values()))
    above = above[above > 0]
    log = above.max() > 30 * above.min()
    height = 0.8 / len(by_split)
    figure = Figure(figsize=(9, 1.9 + 0.17 * (len(by_split) + 0.8) * len(present)), dpi=_DPI, layout="constrained")
    axes = figure.subplots()
    if log:
        axes.set_xscale("log")
        axes.set_xlim(above.min() / 3, 180)  # room for the number at the end of a bar
        axes.xaxis.set_major_formatter("{x:g}")
    else:
        axes.set_xlim(0, 1.12 * above.max())
    for number, (split, values) in enumerate(shares.items()):
        y = np.arange(len(present)) + (number - (len(by_split) - 1) / 2) * height
        color, _, hatch = SPLIT_STYLES[split]
        axes.barh(y, values, height, color=color, hatch=hatch, edgecolor="white", linewidth=0.5, label=split)
        for value, at in zip(values, y, strict=True):
            place = value if value or not log else above.min() / 3
            text = f"{value:.2g}" if value < 10 else f"{value:.0f}"
            axes.annotate(text, (place, at), (3, 0), textcoords="offset points", va="center", fontsize=7)
    axes.set_yticks(range(len(present)), [f"{name} ({book.index(name)})" for name in present])
    axes.invert_yaxis()
    axes.set_xlabel(f"share of the split's labeled pixels, %{', logarithmic' if log else ''}")
    axes.set_ylabel("code of the masks")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure.legend(loc="outside lower center", ncol=3, frameon=False, fontsize=9)
    absent = len(book) - len(present)
    note = f"{absent} of {len(book)} codes do not occur" if absent else f"all {len(book)} codes occur"
    figure.suptitle(f"{title}: codes of the masks ({note})", fontsize=11)
    return figure


def rgb_histograms(survey: Survey, chosen: list[int], source: Source, why: str, title: str) -> Figure:
    """Draws patches with the histograms of their three channels.

    Args:
      survey: statistics of the data set.
      chosen: indices of the patches.
      source: reads their pixels.
      why: why these patches were chosen, in a few words.
      title: of the figure.
    """
    columns = len(chosen)
    figure = Figure(figsize=(1.2 + 3.2 * columns, 6.0), dpi=_DPI, layout="constrained")
    panels = figure.subplots(2, columns, squeeze=False, height_ratios=(1, 0.9))
    values = (np.arange(BINS) + 0.5) * 256 / BINS
    shares = 100 * survey.histograms[chosen] / survey.histograms[chosen].sum(axis=2, keepdims=True)
    # All patches have one scale, unless a patch of nearly one color would flatten the others.
    tops = shares.max(axis=(1, 2))
    same_scale = tops.max() <= 3 * tops.min()
    for column, index in enumerate(chosen):
        picture, axes = panels[:, column]
        _show(picture, source.pixels(survey.tiles[index])[0], _short_name(survey.tiles[index]))
        for (channel, color, style), share in zip(CHANNELS, shares[column], strict=True):
            axes.plot(values, share, style, color=color, label=channel, linewidth=1.8)
        axes.set_xlim(0, 255)
        axes.set_xticks(range(0, 256, 64))
        axes.set_ylim(0, 1.05 * (tops.max() if same_scale else tops[column]))
        axes.set_xlabel("value of the channel")
        if column == 0 or not same_scale:
            axes.set_ylabel(f"pixels, % per {256 // BINS} values")
        axes.grid(color="0.9")
    handles, names = panels[1, 0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncol=3, frameon=False, fontsize=9)
    figure.suptitle("\n".join(textwrap.wrap(f"{title}: colors of {why}", 30 * columns)), fontsize=11)
    return figure


def choose_examples(survey: Survey, scheme: labels.LabelScheme) -> list[int]:
    """Chooses the tile of each institute with the most evenly mixed classes.

    Chooses more tiles if there are few institutes.
    """
    table = labels.lookup_table(scheme, survey.codes)[: len(labels.BCSS22_NAMES)]
    pixels = np.stack([survey.code_counts[:, table == label].sum(axis=1) for label in scheme.evaluated], axis=1)
    area = np.array([np.prod(stats.size) for stats in survey.stats])
    share = pixels / area[:, None]
    mixed = -(share * np.log(np.maximum(share, 1e-12))).sum(axis=1)
    order = [int(i) for i in np.argsort(-mixed, kind="stable") if survey.tiles[i].mask]
    chosen = _first_of_each(survey, order, "institute")[:EXAMPLES]
    for more in (_first_of_each(survey, order, "split"), order):
        chosen += [index for index in more if index not in chosen][: max(0, FEWEST_EXAMPLES - len(chosen))]
    return chosen


def _first_of_each(survey: Survey, order: list[int], what: str) -> list[int]:
    first = {}
    for index in order:
        first.setdefault(getattr(survey.tiles[index], what), index)
    return list(first.values())


def examples(survey: Survey, chosen: list[int], source: Source, scheme: labels.LabelScheme, title: str) -> Figure:
    """Draws tiles, and next to each the same tile with its classes as an overlay."""
    table = labels.lookup_table(scheme, survey.codes)
    across = min(2, len(chosen))
    down = -(-len(chosen) // across)
    figure = Figure(figsize=(4.9 * across, 1.1 + 2.65 * down), dpi=_DPI, layout="constrained")
    panels = figure.subplots(down, 2 * across, squeeze=False)
    for axes in panels.flat:
        axes.axis("off")
    for number, index in enumerate(chosen):
        row, column = divmod(number, across)
        image, mask = source.pixels(survey.tiles[index])
        _show(panels[row, 2 * column], image, _short_name(survey.tiles[index]))
        _show(panels[row, 2 * column + 1], overlay(image, table[mask], scheme), "classes")
    handles = legend(scheme, correct=False)
    figure.legend(handles=handles, loc="outside lower center", ncol=6, frameon=False, fontsize=9)
    institutes = {tile.institute for tile in survey.tiles}
    shown = {survey.tiles[index].institute for index in chosen}
    note = f"examples of {len(shown)} of {len(institutes)} institute{'s' * (len(institutes) > 1)}, {scheme.name}"
    figure.suptitle(f"{title}: {note}", fontsize=11)
    return figure


def stains(survey: Survey, found: dict, title: str) -> Figure:
    """Draws hematoxylin against eosin of every tile with numbered outliers, and the optical density by institute."""
    measured = survey.tissue >= stain.LEAST_TISSUE
    density, hematoxylin, eosin, _ = stain.amounts(survey.densities).T
    figure = Figure(
        figsize=(11, 5.2 + 0.19 * min(NUMBERED, found["stain"]["outliers"]["count"])), dpi=_DPI, layout="constrained"
    )
    numbered = found["stain"]["outliers"]["first"][:NUMBERED]
    grid = figure.add_gridspec(2, 2, width_ratios=(1.15, 1), height_ratios=(1, 0.001 + 0.04 * len(numbered)))
    axes, spread, notes = figure.add_subplot(grid[0, 0]), figure.add_subplot(grid[0, 1]), figure.add_subplot(grid[1, :])
    notes.axis("off")
    size = 16 if len(measured) < 2000 else 4
    for split, (color, marker, _) in SPLIT_STYLES.items():
        of_split = measured & np.array([tile.split == split for tile in survey.tiles])
        if of_split.any():
            style = {"s": size, "color": color, "marker": marker, "alpha": 0.6, "linewidths": 0, "rasterized": True}
            axes.scatter(eosin[of_split], hematoxylin[of_split], label=split, **style)
    index = {tile.key: i for i, tile in enumerate(survey.tiles)}
    for number, entry in enumerate(numbered, 1):
        i = index[entry["tile"]]
        label = "outliers, strongest numbered" if number == 1 else None
        axes.scatter(eosin[i], hematoxylin[i], s=90, facecolor="none", edgecolor="black", label=label)
        axes.annotate(str(number), (eosin[i], hematoxylin[i]), (6, 6), textcoords="offset points", fontsize=9)
    notes_text = [
        f"{number}  {entry['tile']}: {entry['what']} {entry['value']:.3f}, z {entry['z']:.1f}"
        for number, entry in enumerate(numbered, 1)
    ]
    notes.text(0, 1, "\n".join(notes_text), va="top", fontsize=8, transform=notes.transAxes)
    axes.set_xlabel("eosin, mean optical density of the tissue")
    axes.set_ylabel("hematoxylin, mean optical density of the tissue")
    axes.grid(color="0.9")
    axes.set_axisbelow(True)
    axes.legend(fontsize=9, loc="upper right", framealpha=0.9)  # "best" is slow with many tiles
    left_out = f", {int((~measured).sum()):,} with hardly any tissue left out" if not measured.all() else ""
    axes.set_title(
        f"{int(measured.sum()):,} tiles, {found['stain']['outliers']['count']:,} outliers{left_out}", fontsize=10
    )
    _by_group(spread, survey.tiles, density, measured)
    figure.suptitle(f"{title}: stain", fontsize=11)
    return figure


def _by_group(axes, tiles: list[Tile], density: np.ndarray, measured: np.ndarray) -> None:
    """Draws median, quartiles and the middle 90 % of the density by institute.

    Groups by patient or split if there is only one institute.
    """
    for what in ("institute", "patient", "split"):
        member = np.array([getattr(tile, what) for tile in tiles])
        if len(set(member[measured])) > 1:
            break
    groups = sorted(set(member[measured]), key=lambda name: np.median(density[measured & (member == name)]))
    for y, name in enumerate(groups):
        low, first, middle, third, high = np.quantile(
            density[measured & (member == name)], (0.05, 0.25, 0.5, 0.75, 0.95)
        )
        axes.plot((low, high), (y, y), color=BLUE, linewidth=1.2, label="middle 90 %" if y == 0 else None)
        axes.plot((first, third), (y, y), color=BLUE, linewidth=5, label="middle half" if y == 0 else None)
        axes.plot(
            middle, y, "o", color="white", markeredgecolor="black", markersize=5, label="median" if y == 0 else None
        )
    counts = [int((measured & (member == name)).sum()) for name in groups]
    axes.set_yticks(
        range(len(groups)), [f"{name} ({count:,})" for name, count in zip(groups, counts, strict=True)], fontsize=8
    )
    axes.set_ylim(-0.7, len(groups) - 0.3)
    axes.set_xlabel("mean optical density of the tissue (higher is darker)")
    axes.set_ylabel(f"{what} (tiles)")
    axes.grid(color="0.9", axis="x")
    axes.set_axisbelow(True)
    axes.legend(fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncol=3, frameon=False)


def copies(survey: Survey, found: dict, source: Source, title: str) -> Figure | None:
    """Draws pairs of tiles of different splits that show the same. Returns None if there are none."""
    index = {tile.key: i for i, tile in enumerate(survey.tiles)}
    pairs = []
    for group in found["same_pixels"]["between_parts"]["first"]:
        other = next(each for each in group if each["part"] != group[0]["part"])
        pairs.append((group[0]["tile"], other["tile"], "same pixels"))
    for near in found["near_copies"]["first"]:
        pairs.append((near["first"], near["second"], f"{near['second_is_first']}, {near['bits']} of 255 bits differ"))
    if not pairs:
        return None
    total = found["same_pixels"]["between_parts"]["count"] + found["near_copies"]["count"]
    # The most and the least similar pairs: if the search is wrong, it is wrong about the latter.
    shown = pairs if len(pairs) <= 4 else pairs[:2] + pairs[-2:]
    figure = Figure(figsize=(2.9 * len(shown), 6.7), dpi=_DPI, layout="constrained")
    panels = figure.subplots(2, len(shown), squeeze=False)
    for column, (first, second, how) in enumerate(shown):
        for row, key in enumerate((first, second)):
            tile = survey.tiles[index[key]]
            _show(panels[row, column], source.pixels(tile)[0], _short_name(tile) + (f"\n{how}" if row else ""))
    text = f"{title}: {total} copies in different splits, {len(shown)} shown"
    figure.suptitle("\n".join(textwrap.wrap(text, 34 * len(shown))), fontsize=11)
    return figure


def _show(axes, picture: np.ndarray, heading: str) -> None:
    axes.axis("on")
    axes.imshow(picture, interpolation="nearest")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_title(heading, fontsize=8)


def _short_name(tile: Tile) -> str:
    """Returns a tile's slide, split and place in two short lines."""
    return f"{tile.barcode}\n{tile.split}, at {tile.x}, {tile.y}"
