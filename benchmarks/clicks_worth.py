"""What clicks are worth: Dice of a U-Net trained on labels that simulated clicks made, beside one with full masks.

    python benchmarks/clicks_worth.py --output=clicks_worth [--sam=runs/sam_prompts] [--clicks=1,3,10] [--seeds=3]
    python benchmarks/clicks_worth.py --output=clicks_worth_real --data=../shared/data
    python benchmarks/clicks_worth.py --output=/tmp/try --try

A SAM tuned to prompts gets 1, 3 and 10 clicks on each region of the training tiles (`clicked_labels.py`). A U-Net is
trained on what its masks say, and on the full masks, with the same recipe, steps and seeds (`label_efficiency.py`); the
last weights count. Both are scored with true masks of the same test tiles.

The SAM has seen neither the tiles that it annotates nor those that are tested, nor others of their patients:

- built-in data set: it is tuned on the patients of `configs/sam.py:sample,prompts`. Annotated are 96 tiles of 12
  patients that are drawn with another seed, and tested are 128 tiles of 16 patients of a third one.
- with --data: it is tuned on TCGA-A2-A3XX, whose mask tells tumor from all else. Annotated are the training tiles of
  TCGA-A2-A0D2, and tested its tiles of other rows: one patient, so intervals are over tiles, which is too narrow.

--sam names a run that was tuned before, of the layout sample or kaggle224; it is refused if it was trained on a tile
that is annotated or tested. Of a file that is not known: its name is an assurance. With --sam and --data, TCGA-A2-A3XX
is tested too. Without --sam, one is tuned first, from --encoder_file or from random weights.

clicks_worth.json and clicks_worth.png have Dice against the clicks in all, the difference to full masks with its paired
interval, and how the labels themselves agree with full masks. What is there of an earlier call is not done again.
"""

import argparse
import dataclasses
import hashlib
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parent)]

from clicked_labels import ClickedLabels, LabelQuality, clicked_labels, quality, regions_and_left_out  # noqa: E402
from label_efficiency import (  # noqa: E402
    EVERY_PATIENT,
    KAGGLE,
    OTHER_PATIENT,
    STEPS,
    TestSet,
    Tile,
    counts,
    gained,
    patient_test,
    region_tiles,
    rows_test,
    sample_test,
    sample_tiles,
    scored,
    stored_tiles,
    train_on,
    write_tiles,
)
from sam_tuning import trained  # noqa: E402

import bcss_jax  # noqa: E402
from bcss_jax.common import figures, files  # noqa: E402
from bcss_jax.common.json_files import read_json  # noqa: E402
from bcss_jax.common.npz_files import read_npz  # noqa: E402
from bcss_jax.data import synthetic  # noqa: E402
from bcss_jax.errors import ConfigError, DataError, UserError, printable  # noqa: E402
from bcss_jax.evaluation.statistics.bootstrap import Interval  # noqa: E402
from bcss_jax.models.sam.weights.loading import load  # noqa: E402
from bcss_jax.prompting.predictor import Predictor  # noqa: E402

CLICKS, SEEDS, FULL = "1,3,10", 3, "full"
ANNOTATED_SEED = 2000  # of the patients whose tiles are annotated; the SAM has those of 0, the test those of 1000
SAM, SAM_FILE = "sam_prompts", "sam.safetensors"
SETTINGS, LABELS = "settings.json", "labels_{}.npz"


@dataclasses.dataclass(frozen=True)
class Material:
    """The tiles of a benchmark.

    Attributes:
      annotated: tiles to train on, with full masks.
      others: tiles that the curves of a training are drawn for; nothing is chosen by them.
      tests: what is scored.
    """

    annotated: list[Tile]
    others: list[Tile]
    tests: list[TestSet]


def material(args: argparse.Namespace) -> Material:
    """Returns the tiles of the built-in data set, or those of --data."""
    if args.data:
        if not (args.data / KAGGLE / "train").is_dir():
            raise DataError(f"{printable(args.data)}: expected a folder with {KAGGLE} and bcss_roi; correct --data")
        tests = [rows_test(args.data), *([patient_test(args.data)] if args.sam else [])]
        found = Material(*(stored_tiles(args.data / KAGGLE, split) for split in ("train", "val")), tests)
    else:
        patients = range(synthetic.TRAIN_PATIENTS), range(synthetic.TRAIN_PATIENTS, EVERY_PATIENT.stop)
        found = Material(*(sample_tiles(ANNOTATED_SEED, each) for each in patients), [sample_test()])
    if not args.short:
        return found
    few = [dataclasses.replace(test, tiles=test.tiles[::8]) for test in found.tests]
    return Material(found.annotated[::10], found.others, few)


def sam_file(args: argparse.Namespace, tiles: Material) -> Path:
    """Returns the file of the SAM, which is tuned if none is named."""
    if args.sam and not args.sam.is_dir():
        print(f"note: {args.sam.name} is a file: that it was not trained on tiles of this benchmark is not checked")
        return args.sam
    if args.sam:
        check_unseen(args.sam, tiles)
        return args.sam / SAM_FILE
    changes: dict[str, Any] = {"encoder": args.encoder, "pretrained": args.encoder_file}
    changes |= {"image_size": 64 if args.short else 224, "prompts.objects": 1 if args.short else 4, "epochs": 40}
    how = SimpleNamespace(data=None, layout="sample", short=args.short, output=args.output)
    if args.data:
        how.data, how.layout = args.output / "tuning_tiles", "kaggle224"
        region = [kaggle_named(tile) for tile in region_tiles(args.data, OTHER_PATIENT)]
        cut = len(region) * 3 // 4  # the lowest rows choose the epoch
        write_tiles(how.data, region[:cut], region[cut:])
    run = trained(how, "sam", SAM, "prompts", **changes, **{"data.prepared_dir": str(args.output / "prepared")})
    return run.folder / SAM_FILE


def kaggle_named(tile: Tile) -> Tile:
    """Returns a tile of `region_tiles` under a name of the layout kaggle224."""
    patient, x, y = tile.name.split("_")
    return dataclasses.replace(tile, name=f"{patient}-DX1_xmin0_ymin0_MPP-0.2500_{x}_{y}_size224.png")


def check_unseen(run: Path, tiles: Material) -> None:
    """Raises ConfigError if a run of a SAM was trained on tiles of this benchmark, or if that cannot be told."""
    data = bcss_jax.Run(run).config["data"]
    if data["layout"] == "sample":
        return  # patients of another seed than all here
    if data["layout"] != "kaggle224":
        raise ConfigError(
            f"{printable(run)}: expected a run of the layouts sample or kaggle224, of which the tiles can be compared, "
            f"found {data['layout']}; name its {SAM_FILE} if it has seen no tile of this benchmark"
        )
    folder = Path(data["dir"]).expanduser()
    seen = {
        _digest(np.asarray(Image.open(path).convert("RGB")))
        for split in ("train", "val")
        for path in folder.glob(f"{split}/*.png")
    }
    if not seen:
        raise DataError(f"{printable(folder)}: expected the tiles that {printable(run)} was trained on, found none")
    for tile in [*tiles.annotated, *(tile for test in tiles.tests for tile in test.tiles)]:
        if _digest(tile.image) in seen:
            raise ConfigError(
                f"{printable(run)}: was trained with {tile.name}, which this benchmark annotates or tests; name a run "
                "of other tiles, or leave --sam out"
            )


def _digest(*arrays: np.ndarray) -> str:
    found = hashlib.sha256()
    for array in arrays:
        found.update(array.tobytes())
    return found.hexdigest()


def claim(args: argparse.Namespace, tiles: Material, sha256: str) -> None:
    """Writes what the results depend on. Raises ConfigError if the folder has results of something else."""
    every = [*tiles.annotated, *tiles.others[:4], *(tile for test in tiles.tests for tile in test.tiles)]
    settings = {
        "sam_sha256": sha256,
        "tiles_sha256": _digest(*(array for tile in every for array in (tile.image, tile.labels))),
        **{name: getattr(args, name) for name in ("steps", "unet_width", "unet_rate")},
    }
    path = args.output / SETTINGS
    if path.exists():
        found = read_json(path, "the settings of this benchmark", "choose another --output", kind=dict)
        differing = ", ".join(name for name in settings if found.get(name) != settings[name])
        if differing:
            raise ConfigError(
                f"{printable(args.output)}: has results with other settings ({differing}); choose another --output"
            )
    elif (args.output / "runs").exists():
        raise ConfigError(f"{printable(args.output)}: has runs of something else; choose another --output")
    files.write_text(path, json.dumps(settings, indent=2) + "\n")


def annotated(args: argparse.Namespace, tiles: list[Tile], predictor: Predictor) -> dict[int, ClickedLabels]:
    """Returns the labels after each number of clicks, which are kept in the output folder."""
    paths = {amount: args.output / LABELS.format(amount) for amount in args.clicks}
    missing = [amount for amount, path in paths.items() if not path.exists()]
    if missing:
        for amount, found in clicked_labels(tiles, predictor, missing).items():
            with files.whole_file(paths[amount]) as unfinished, open(unfinished, "wb") as file:
                np.savez_compressed(file, labels=found.labels, clicks=found.clicks)
    stored = {amount: read_npz(path, "labels", "delete it") for amount, path in paths.items()}
    found = {amount: ClickedLabels(each["labels"], each["clicks"]) for amount, each in stored.items()}
    for amount, each in found.items():
        if not each.labels.any() and not args.short:
            raise DataError(f"the SAM marks nothing after {amount} click(s) a region; tune it longer")
    return found


def dice_figure(rows: list[dict], of_labels: dict[int, LabelQuality], totals: dict[int, int], title: str) -> Figure:
    """Draws the agreement of the labels, and Dice of each test set, against the clicks in all.

    Args:
      rows: of `report`.
      of_labels: clicks a region -> how the labels agree with full masks.
      totals: clicks a region -> clicks in all.
      title: of the figure.
    """
    tests = list(dict.fromkeys(row["test"] for row in rows))
    figure = Figure(figsize=(4.9 * (1 + len(tests)), 5), dpi=120, layout="constrained")
    figure.suptitle(title, fontsize=11)
    first, *panels = figure.subplots(1, 1 + len(tests), squeeze=False)[0]
    x = list(totals.values())
    _errorbar(first, x, [each.dice for each in of_labels.values()], "Dice with the full masks", figures.BLUE, "o-")
    shares = [each.labeled for each in of_labels.values()]
    first.plot(x, shares, "s:", color="#E69F00", label="share of the pixels with truth that is labeled")
    first.set_title(_title("The labels themselves", next(iter(of_labels.values())).dice), fontsize=10)
    first.set_ylabel("Dice of tumor and stroma, or share")
    for axes, test in zip(panels, tests, strict=True):
        of_test = [row for row in rows if row["test"] == test]
        full = next(Interval(**row["dice"]) for row in of_test if row["labels"] == FULL)
        clicked = [Interval(**row["dice"]) for row in of_test if row["labels"] != FULL]
        _errorbar(axes, x, clicked, "U-Net with labels by clicks", figures.BLUE, "o-")
        axes.axhline(full.value, color=figures.VERMILION, linestyle="--", label="U-Net with full masks")
        axes.axhspan(full.low, full.high, color=figures.VERMILION, alpha=0.12, linewidth=0)
        axes.set_title(_title(test, full, "test "), fontsize=10)
        axes.set_ylabel(f"Dice of {of_test[0]['classes']}")
    for axes in (first, *panels):
        axes.set_xscale("log")
        axes.set_xticks(x, [f"{total}\n({amount} a region)" for amount, total in totals.items()])
        axes.minorticks_off()
        axes.set_xlabel("clicks in all")
        axes.margins(x=0.15)
        axes.grid(color="0.9")
        axes.set_axisbelow(True)
        axes.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.2), frameon=False)
    return figure


def _errorbar(axes, x: list[int], found: list[Interval], label: str, color: str, style: str) -> None:
    y, low, high = (np.array([getattr(each, name) for each in found]) for name in ("value", "low", "high"))
    axes.errorbar(x, y, [y - low, high - y], label=label, color=color, fmt=style, capsize=3)


def _title(name: str, over: Interval, of: str = "") -> str:
    return f"{name}\n95 % intervals over {over.n} {of}{'tiles' if over.over == 'images' else over.over}"


def report(found: dict[tuple[str, str], list[np.ndarray]], tests: list[TestSet]) -> list[dict[str, Any]]:
    """Returns a row for each test set and kind of labels: its Dice, and the difference to full masks."""
    by_title, rows = {test.title: test for test in tests}, []
    for (title, labels), of_seeds in found.items():
        test = by_title[title]
        row: dict[str, Any] = {"test": title, "labels": labels, "dice": scored(of_seeds, test)._asdict()}
        row["classes"] = "tumor and stroma" if len(test.classes) > 1 else "tumor"
        if labels != FULL:
            row["minus_full"] = gained(of_seeds, found[title, FULL], test)._asdict()
        rows.append(row)
    return rows


def arguments() -> argparse.Namespace:
    """Parses the command line. Raises ConfigError if numbers are none."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sam", type=Path, help="run of configs/sam.py:LAYOUT,prompts, or file; it is tuned without")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--data", type=Path, help="folder with bcss_kaggle224 and bcss_roi, in place of the sample")
    parser.add_argument("--clicks", default=CLICKS, help="on each region")
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--steps", type=int, default=STEPS, help="of every training of a U-Net")
    parser.add_argument("--unet_width", type=int, default=16)
    parser.add_argument("--unet_rate", type=float, default=1e-3, help="learning rate")
    parser.add_argument("--encoder", default="vit_tiny16", help="of the SAM that is tuned if --sam is not given")
    parser.add_argument("--encoder_file", default="", help="its weights to start from, such as those of a pretraining")
    parser.add_argument("--try", dest="short", action="store_true", help="few tiles and steps, of small networks")
    args = parser.parse_args()
    if args.short:
        args.steps, args.unet_width, args.seeds = 16, 4, 1
    try:
        args.clicks = sorted({int(each) for each in args.clicks.split(",")})
    except ValueError:
        raise ConfigError(f"--clicks={args.clicks}: expected numbers such as {CLICKS}") from None
    if args.clicks[0] < 1 or args.seeds < 1 or args.steps < 1:
        raise ConfigError("--clicks, --seeds and --steps: must be at least 1")
    args.output = args.output.resolve()
    return args


def main() -> None:
    """Annotates, trains, scores, and writes clicks_worth.png and clicks_worth.json."""
    args = arguments()
    tiles = material(args)
    file = sam_file(args, tiles)
    sam = load(file)
    claim(args, tiles, sam.sha256)
    regions, left_out = regions_and_left_out(tiles.annotated)
    clicked = annotated(args, tiles.annotated, Predictor(sam.model))
    of_labels = {amount: quality(each.labels, tiles.annotated) for amount, each in clicked.items()}
    totals = {amount: int(each.clicks.sum()) for amount, each in clicked.items()}
    kinds = {FULL: tiles.annotated} | {
        str(amount): [
            dataclasses.replace(tile, labels=labels) for tile, labels in zip(tiles.annotated, each.labels, strict=True)
        ]
        for amount, each in clicked.items()
    }
    found: dict[tuple[str, str], list[np.ndarray]] = {}
    for seed in range(args.seeds):  # so that an interrupted benchmark has whole seeds
        for kind, of_kind in kinds.items():
            run = train_on(f"labels_{kind}-{seed}", "unet", seed, of_kind, tiles.others, args)
            for test in tiles.tests:
                found.setdefault((test.title, kind), []).append(counts(run, test))
    summary = {
        "command": sys.argv,
        "sam": str(file),
        "tiles": len(tiles.annotated),
        "regions": regions,
        "share_in_regions_without_clicks": left_out,
        "seeds": args.seeds,
    }
    write(args.output, summary, of_labels, totals, report(found, tiles.tests))


def write(
    folder: Path, summary: dict[str, Any], of_labels: dict[int, LabelQuality], totals: dict[int, int], rows: list[dict]
) -> None:
    """Writes and prints the results; the arguments are those of `dice_figure`, and what else is known."""
    document = {
        **summary,
        "labels": {
            amount: {
                "clicks": totals[amount],
                "clicks_per_tile": totals[amount] / summary["tiles"],
                **dataclasses.asdict(each),
                "dice": each.dice._asdict(),
            }
            for amount, each in of_labels.items()
        },
        "networks": rows,
    }
    files.write_text(folder / "clicks_worth.json", json.dumps(document, indent=2) + "\n")
    amounts = f"{summary['tiles']} tiles with {summary['regions']} regions"
    title = f"{amounts}, {summary['seeds']} training(s) of a U-Net each"
    figures.write(dice_figure(rows, of_labels, totals, title), folder / "clicks_worth.png")
    left_out = summary["share_in_regions_without_clicks"]
    print(f"\n{title}; {left_out:.2%} of the pixels with truth are in regions that are too small for clicks")
    for amount, each in of_labels.items():
        print(
            f"{amount:3} a region, {totals[amount]} clicks: Dice of the labels {_text(each.dice)}, "
            f"{each.labeled:.1%} labeled, {each.right:.1%} of them right, {each.beyond:.1%} labeled without truth"
        )
    for row in rows:
        line = f"{row['test']}, {row['labels']:>4}: Dice {_text(Interval(**row['dice']))}"
        print(line + (f", minus full {_text(Interval(**row['minus_full']))}" if "minus_full" in row else ""))
    print(f"figure: {folder / 'clicks_worth.png'}")


def _text(found: Interval) -> str:
    return f"{found.value:.3f} [{found.low:.3f}, {found.high:.3f}]"


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
