"""What a pretrained encoder is worth: mean Dice against the number of labeled tiles, for three networks.

    python benchmarks/label_efficiency.py --encoder=runs/dino/encoder.safetensors --output=label_efficiency
    python benchmarks/label_efficiency.py --encoder=runs/dino_tiles_few/encoder.safetensors --form=vit_small16 \
        --data=../shared/data --output=label_efficiency_real

Networks: a U-Net and a vision transformer from random weights, and the same vision transformer with the encoder of a
pretraining. Each is trained on 4, 8, 16 and all labeled tiles, with five seeds, for the same number of steps, with a
learning rate that falls to zero; the last weights count, so that no further labels choose among them. The tiles of
fewer are among those of more, whole patients first where there are several.

Without --data, tiles are those of the built-in data set: 96 of 12 patients, and 128 of 16 other patients to test.
Intervals are over the test patients, and so is that of the difference between the two vision transformers. With --data,
training tiles are of TCGA-A2-A0D2, and tested are its tiles of other rows and the tumor of TCGA-A2-A3XX, of which each
is one patient: intervals over tiles are too narrow.

Every training is a run of its own in the output folder; those that are there are not trained again.
"""

import argparse
import dataclasses
import json
import re
import shutil
from pathlib import Path

import jax
import numpy as np
from matplotlib.figure import Figure
from PIL import Image

import bcss_jax
from bcss_jax import metrics
from bcss_jax.common import figures
from bcss_jax.data import synthetic
from bcss_jax.evaluation.statistics.bootstrap import Interval, interval, paired_difference
from bcss_jax.inference.slide_model import model_of_run
from bcss_jax.inference.trained_run import read_trained_run
from bcss_jax.training.sharding import make_mesh

ALL = "all"
SIZES = ("4", "8", "16", ALL)
SEEDS = 5
STEPS = 240
BATCH = 4
EPOCH = 64  # tiles, at least
TEST_SEED = 1000  # of the patients that are tested
EVERY_PATIENT = range(synthetic.TRAIN_PATIENTS + synthetic.VAL_PATIENTS)  # of the built-in data set
KAGGLE, OTHER_PATIENT = "bcss_kaggle224", "TCGA-A2-A3XX"
SIDE = 224
IGNORED, CLASSES = 0, (1, 2)  # labels of the scheme tumor_stroma, and of the masks of the layout kaggle224
EVALUATED_AT_ONCE = 16
SYSTEMS = {
    "unet": ("U-Net, random weights", "#009E73", "s", ":"),
    "vit": ("ViT, random weights", figures.VERMILION, "o", "--"),
    "vit_pretrained": ("ViT, pretrained here without labels", figures.BLUE, "D", "-"),
}


@dataclasses.dataclass(frozen=True)
class Tile:
    """A labeled tile.

    Attributes:
      name: file name of the layout kaggle224.
      patient: of the tile.
      image: uint8 [224, 224, 3].
      labels: uint8 [224, 224]; 0 is ignored, 1 tumor, 2 stroma.
    """

    name: str
    patient: str
    image: np.ndarray
    labels: np.ndarray


@dataclasses.dataclass(frozen=True)
class TestSet:
    """Tiles that are predicted, and what of them is scored.

    Attributes:
      title: of the figure.
      tiles: of the set.
      classes: whose Dice is averaged.
    """

    title: str
    tiles: list[Tile]
    classes: tuple[int, ...]

    @property
    def patients(self) -> list[str]:
        """Patient of each tile; with fewer than eight, intervals are over tiles."""
        return [tile.patient for tile in self.tiles]


def sample_tiles(seed: int, patients: range) -> list[Tile]:
    """Returns tiles of the built-in data set."""
    found = []
    for patient in patients:
        for number in range(len(synthetic.PLANS)):
            patch = synthetic.draw_patch(patient, number, seed)
            labels = np.where(np.isin(patch.mask, CLASSES), patch.mask, IGNORED).astype(np.uint8)
            name = f"TCGA-S{patient % 10}-{patient:04d}-DX1_xmin{patch.x}_ymin{patch.y}_MPP-0_{number}_0_size224.png"
            found.append(Tile(name, f"TCGA-S{patient % 10}-{patient:04d}", patch.image, labels))
    return found


def stored_tiles(folder: Path, split: str) -> list[Tile]:
    """Returns tiles of the layout kaggle224; the masks of a split are in `<split>_mask`."""
    found = []
    for path in sorted((folder / split).glob("*.png")):
        labels = np.asarray(Image.open(folder / f"{split}_mask" / path.name))
        found.append(Tile(path.name, path.name[:12], np.asarray(Image.open(path).convert("RGB")), labels))
    return found


def region_tiles(data: Path, patient: str) -> list[Tile]:
    """Returns the tiles of a region whose mask tells tumor from all else, which counts as 2 here."""
    image = np.asarray(Image.open(next((data / "bcss_roi" / "images").glob(f"{patient}*"))).convert("RGB"))
    mask = np.asarray(Image.open(next((data / "bcss_roi" / "tumor_masks").glob(f"{patient}*"))).convert("L"))
    return [
        Tile(
            f"{patient}_{x}_{y}",
            patient,
            image[y : y + SIDE, x : x + SIDE],
            np.where(mask[y : y + SIDE, x : x + SIDE] > 0, 1, 2).astype(np.uint8),
        )
        for y in range(0, mask.shape[0] - SIDE + 1, SIDE)
        for x in range(0, mask.shape[1] - SIDE + 1, SIDE)
    ]


def sample_test() -> TestSet:
    """Returns tiles of 16 patients of the built-in data set that no training sees."""
    return TestSet("Built-in data set", sample_tiles(TEST_SEED, EVERY_PATIENT), CLASSES)


def rows_test(data: Path) -> TestSet:
    """Returns the tiles of TCGA-A2-A0D2 in rows of the region that no training sees."""
    return TestSet("A0D2, other rows of the region", stored_tiles(data / KAGGLE, "test"), CLASSES)


def patient_test(data: Path) -> TestSet:
    """Returns the tiles of TCGA-A2-A3XX, whose mask knows tumor alone."""
    return TestSet("A3XX, another patient", region_tiles(data, OTHER_PATIENT), (1,))


def chosen(tiles: list[Tile], size: str, seed: int) -> list[Tile]:
    """Returns the labeled tiles of a training: whole patients in a random order, until there are enough."""
    rng = np.random.default_rng(seed)
    order = {patient: i for i, patient in enumerate(rng.permutation(sorted({tile.patient for tile in tiles})))}
    shuffled = [tiles[i] for i in rng.permutation(len(tiles))]
    shuffled.sort(key=lambda tile: order[tile.patient])
    return shuffled if size == ALL else shuffled[: int(size)]


def repeated(tiles: list[Tile]) -> list[Tile]:
    """Returns the tiles as often as fill an epoch, under other places, as an epoch ends with a checkpoint."""

    def renamed(tile: Tile, copy: int) -> Tile:
        return dataclasses.replace(tile, name=re.sub(r"_xmin(\d+)", rf"_xmin{copy}0\1", tile.name))

    return [renamed(tile, copy) for copy in range(1, 1 + -(-EPOCH // len(tiles))) for tile in tiles]


def write_tiles(folder: Path, training: list[Tile], others: list[Tile]) -> None:
    """Writes a data folder of the layout kaggle224; the other tiles become its validation split."""
    for split, tiles in (("train", training), ("val", others)):
        for kind in (split, f"{split}_mask"):
            (folder / kind).mkdir(parents=True, exist_ok=True)
        for tile in tiles:
            Image.fromarray(tile.image).save(folder / split / tile.name)
            Image.fromarray(tile.labels).save(folder / f"{split}_mask" / tile.name)


def settings(system: str, args: argparse.Namespace, seed: int, tiles: int) -> dict:
    """Returns what a training changes of its config file."""
    steps_per_epoch = -(-tiles // BATCH)
    changes = {
        "seed": seed,
        "batch_size": BATCH,
        "eval_batch_size": 4,
        "epochs": max(args.steps // steps_per_epoch, 1),
        "schedule": "poly",
        "early_stopping": 0,
        "data.prepared_dir": str(args.output / "prepared"),
    }
    if system == "unet":
        return changes | {"model.width": args.unet_width, "optimizer.learning_rate": args.unet_rate}
    changes |= {"encoder": args.form, "optimizer.learning_rate": args.vit_rate}
    if system == "vit_pretrained":
        changes |= {"pretrained": str(args.encoder), "optimizer.encoder_scale": args.encoder_scale}
    return changes


def train(system: str, size: str, seed: int, tiles: list[Tile], others: list[Tile], args: argparse.Namespace) -> Path:
    """Trains a system on some of the tiles, if it was not trained before. Returns the folder of the run."""
    return train_on(f"{size}-{seed}", system, seed, chosen(tiles, size, seed), others, args)


def train_on(key: str, system: str, seed: int, tiles: list[Tile], others: list[Tile], args: argparse.Namespace) -> Path:
    """Trains a system on tiles, if no run with this key did so before. Returns the folder of the run."""
    run = args.output / "runs" / f"{system}-{key}"
    if (run / "summary.json").exists():
        return run
    training, data = repeated(tiles), args.output / "tiles" / key
    shutil.rmtree(data, ignore_errors=True)
    write_tiles(data, training, others[:4])
    name = "unet" if system == "unet" else "vit"
    changes = settings(system, args, seed, len(training)) | {"data.dir": str(data)}
    bcss_jax.train(bcss_jax.load_config(f"{name}:kaggle224,few", changes), run)
    return run


def counts(run: Path, test: TestSet) -> np.ndarray:
    """Returns the confusion counts of each test tile by the last weights of a run, int64 [tiles, 3, 3]."""
    file = run / f"counts-{test.title.split()[0]}.npy"
    if file.exists():
        return np.load(file, allow_pickle=False)
    mesh = make_mesh(jax.local_devices()[:1])
    model = model_of_run(read_trained_run(run, mesh, "latest"), mesh, tta=False)
    compute, found = jax.jit(model.probabilities), []
    for start in range(0, len(test.tiles), EVALUATED_AT_ONCE):
        tiles = test.tiles[start : start + EVALUATED_AT_ONCE]
        images = np.stack([tile.image for tile in tiles])
        padded = np.concatenate([images, np.repeat(images[:1], EVALUATED_AT_ONCE - len(images), axis=0)])
        values = np.asarray(compute(model.arrays, padded))[: len(images)]
        predicted = np.asarray(model.scheme.evaluated)[values.argmax(-1)]
        labels = np.stack([tile.labels for tile in tiles])
        found.append(np.asarray(metrics.confusion(predicted, labels, 3, IGNORED)))
    result = np.concatenate(found).astype(np.int64)
    np.save(file, result)
    return result


def scored(of_seeds: list[np.ndarray], test: TestSet) -> Interval:
    """Returns the mean over seeds and classes of the Dice of all test tiles together, with its interval."""
    return interval(np.stack(of_seeds, 1), test.patients, lambda totals: _mean_dice(totals, test.classes))


def gained(with_: list[np.ndarray], without: list[np.ndarray], test: TestSet) -> Interval:
    """Returns the difference of two systems with its paired interval."""
    pairs = np.stack(with_, 1), np.stack(without, 1)
    return paired_difference(*pairs, test.patients, lambda totals: _mean_dice(totals, test.classes))


def _mean_dice(totals: np.ndarray, classes: tuple[int, ...]) -> np.ndarray:
    """Totals [R, seeds, 3, 3] -> [R]."""
    return metrics.dice(totals, classes).mean((1, 2))


def draw(results: dict, tests: list[TestSet], amounts: dict[str, int], path: Path) -> None:
    """Draws Dice against the number of labeled tiles, a panel for each test set."""
    figure = Figure(figsize=(5.6 * len(tests), 4.6), dpi=120, layout="constrained")
    for axes, test in zip(figure.subplots(1, len(tests), squeeze=False)[0], tests, strict=True):
        for offset, (system, (label, color, marker, style)) in enumerate(SYSTEMS.items()):
            points = [(amounts[size], results[test.title, system, size]) for size in amounts]
            x = np.array([amount for amount, _ in points]) * 1.03 ** (offset - 1)  # side by side, so that all show
            y, low, high = (
                np.array([getattr(found, name) for _, found in points]) for name in ("value", "low", "high")
            )
            axes.errorbar(
                x, y, [y - low, high - y], label=label, color=color, marker=marker, linestyle=style, capsize=3
            )
        axes.set_xscale("log", base=2)
        axes.set_xticks(list(amounts.values()), [str(amount) for amount in amounts.values()])
        axes.minorticks_off()
        axes.set_xlabel("labeled tiles of 224 pixels")
        what = "tumor and stroma" if len(test.classes) > 1 else "tumor"
        over = results[test.title, "vit", next(iter(amounts))]
        axes.set_ylabel(f"Dice of {what}")
        axes.set_title(f"{test.title}\n95 % intervals over {over.n} test {over.over}", fontsize=10)
        axes.grid(color="0.9")
        axes.set_axisbelow(True)
    figure.legend(*axes.get_legend_handles_labels(), fontsize=8, loc="outside lower center")
    figures.write(figure, path)


def arguments() -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", type=Path, required=True, help="encoder.safetensors of a pretraining")
    parser.add_argument("--form", default="vit_tiny16", help="form of that encoder")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--data", type=Path, help="folder with bcss_kaggle224 and bcss_roi, in place of the sample")
    parser.add_argument("--sizes", default=",".join(SIZES))
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--steps", type=int, default=STEPS, help="of every training")
    parser.add_argument("--unet_width", type=int, default=16)
    parser.add_argument("--unet_rate", type=float, default=1e-3, help="learning rate")
    parser.add_argument("--vit_rate", type=float, default=3e-4, help="learning rate of both vision transformers")
    parser.add_argument("--encoder_scale", type=float, default=1.0, help="factor on that of the pretrained encoder")
    return parser.parse_args()


def main() -> None:
    """Trains, scores, and writes label_efficiency.png and label_efficiency.json."""
    args = arguments()
    args.output = args.output.resolve()
    if args.data:
        tiles, others = (stored_tiles(args.data / KAGGLE, split) for split in ("train", "val"))
        tests = [rows_test(args.data), patient_test(args.data)]
    else:
        train_patients = range(synthetic.TRAIN_PATIENTS)
        others = sample_tiles(0, range(train_patients.stop, EVERY_PATIENT.stop))
        tiles, tests = sample_tiles(0, train_patients), [sample_test()]
    amounts = {size: len(tiles) if size == ALL else int(size) for size in args.sizes.split(",")}
    found: dict[tuple[str, str, str], list[np.ndarray]] = {}
    for seed in range(args.seeds):  # so that an interrupted benchmark has whole seeds
        for size in amounts:
            for system in SYSTEMS:
                run = train(system, size, seed, tiles, others, args)
                for test in tests:
                    found.setdefault((test.title, system, size), []).append(counts(run, test))
    by_title = {test.title: test for test in tests}
    results = {key: scored(of_seeds, by_title[key[0]]) for key, of_seeds in found.items()}
    report = []
    for (title, system, size), result in results.items():
        row = {"test": title, "system": system, "tiles": amounts[size], "seeds": args.seeds, **result._asdict()}
        line = f"{title}, {SYSTEMS[system][0]}, {amounts[size]} tiles: {result.value:.3f} "
        line += f"[{result.low:.3f}, {result.high:.3f}]"
        if system == "vit_pretrained":
            gain = gained(found[title, system, size], found[title, "vit", size], by_title[title])
            row["gain"] = gain._asdict()
            line += f", {gain.value:+.3f} [{gain.low:+.3f}, {gain.high:+.3f}] over random weights"
        report.append(row)
        print(line)
    (args.output / "label_efficiency.json").write_text(json.dumps(report, indent=2) + "\n")
    draw(results, tests, amounts, args.output / "label_efficiency.png")
    print(f"figure: {args.output / 'label_efficiency.png'}")


if __name__ == "__main__":
    main()
