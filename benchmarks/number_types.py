"""Trains the U-Net in several types of computation from the same seeds and compares the Dice of the validation tiles.

    python benchmarks/number_types.py --data_dir=FOLDER_WITH_LAYOUT_KAGGLE224

Each type is compiled once. For every seed, all types start from the same weights and see the same crops, flipped and
turned by quarters, in the same order. The learning rate falls to 0 in the course of a run. Evaluation takes the four
corners of each validation tile.
"""

import argparse
import pathlib
import sys
import time

import jax
import numpy as np
from PIL import Image

from bcss_jax import labels, losses, metrics, models
from bcss_jax.config import DTYPES
from bcss_jax.data.discovery import CODES
from bcss_jax.training import loss_scale, sharding, step
from bcss_jax.training.optimizer import Poly, adamw

SCHEME = labels.find_scheme("tumor_stroma")


def arguments() -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", type=pathlib.Path, required=True, help="folder with the layout kaggle224")
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=["float32", "float16"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=1000, help="training steps of each run")
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument("--size", type=int, default=96, help="side of the crops in pixels")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--learning_rate", type=float, default=1e-3)
    return parser.parse_args()


def tiles(folder: pathlib.Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns images uint8 [N, 224, 224, 3] and labels uint8 [N, 224, 224]."""
    table = np.asarray(labels.lookup_table(SCHEME, CODES["kaggle224"]))
    names = sorted(path.name for path in (folder / split).glob("*.png"))
    images = [np.asarray(Image.open(folder / split / name).convert("RGB")) for name in names]
    masks = [np.asarray(Image.open(folder / f"{split}_mask" / name)) for name in names]
    return np.stack(images), table[np.stack(masks)].astype(np.uint8)


def crops(images: np.ndarray, truth: np.ndarray, args: argparse.Namespace, seed: int):
    """Yields the batches of a training: random crops, flipped and turned by quarters."""
    random, (height, width) = np.random.default_rng(seed), images.shape[1:3]
    for _ in range(args.steps):
        batch = []
        for index in random.integers(0, len(images), args.batch):
            y, x = random.integers(0, height - args.size + 1), random.integers(0, width - args.size + 1)
            turns, flip = random.integers(0, 4), random.integers(0, 2)
            cut = (array[index, y : y + args.size, x : x + args.size] for array in (images, truth))
            batch.append([np.rot90(each, turns)[:: -1 if flip else 1] for each in cut])
        yield tuple(np.stack(each) for each in zip(*batch, strict=True))


class Contestant:
    """The compiled steps of one type of computation."""

    def __init__(self, dtype: str, args: argparse.Namespace):
        """Builds the steps; they are compiled when they are first called."""
        self.dtype, self.args, self.mesh = dtype, args, sharding.make_mesh()
        self.tx, self.schedule = adamw(args.learning_rate, 1e-4), Poly(args.steps)
        objective = losses.Objective(SCHEME.num_classes, SCHEME.ignore_index, SCHEME.evaluated)
        model = self._model(0)
        self._train = step.make_train_step(model, self.tx, self.mesh, objective)
        self._evaluate = step.make_eval_step(model, self.mesh, objective)

    def _model(self, seed: int):
        arguments = {"width": self.args.width, "depth": self.args.depth, "seed": seed, "dtype": self.dtype}
        return models.create("unet", num_classes=SCHEME.num_classes, **arguments)

    def dice(self, seed: int, train, validation) -> str:
        """Trains from a seed. Returns the Dice of each class and their mean, the skipped steps, and the time."""
        start, skipped = time.perf_counter(), 0
        state = step.TrainState.create(self._model(seed), self.tx, self.schedule, loss_scale.loss_scale_for(self.dtype))
        state = sharding.place_replicated(state, self.mesh)
        for images, truth in crops(*train, self.args, seed):
            placed = sharding.place_batch({"image": images, "label": truth}, self.mesh)
            state, report = self._train(state, placed["image"], placed["label"])
            scale = self.schedule.update(jax.device_get(state.schedule), float(report["loss"]))
            state.schedule = sharding.place_replicated(scale, self.mesh)
            skipped += bool(report["skipped_by_loss_scale"])
            if not report["finite"] and not report["skipped_by_loss_scale"]:
                sys.exit(f"{self.dtype}: loss {report['loss']}, gradient norm {report['grad_norm']}")
        counts, size = 0, self.args.size
        ends = (slice(size), slice(-size, None))
        corners = [
            np.concatenate([array[:, rows, columns] for rows in ends for columns in ends]) for array in validation
        ]
        for first in range(0, len(corners[0]) - self.args.batch + 1, self.args.batch):
            images, truth = (array[first : first + self.args.batch] for array in corners)
            placed = sharding.place_batch({"image": images, "label": truth}, self.mesh)
            report = self._evaluate(state.params, state.model_state, placed["image"], placed["label"])
            counts = counts + np.asarray(report["confusion"], np.int64).sum(0)
        values = metrics.dice(counts, SCHEME.evaluated)
        skips = f", {skipped} steps skipped, loss scale {float(state.loss_scale.scale):g}" if state.loss_scale else ""
        named = zip((*SCHEME.evaluated_names, "mean"), (*values, values.mean()), strict=True)
        dice = ", ".join(f"{name} {value:.4f}" for name, value in named)
        return f"{dice}{skips}; {time.perf_counter() - start:.0f} s"


def main() -> None:
    """Trains all types from each seed, and prints a line per run."""
    args = arguments()
    train, validation = tiles(args.data_dir, "train"), tiles(args.data_dir, "val")
    print(
        f"unet, width {args.width}, depth {args.depth}, {args.steps} steps of {args.batch} crops of {args.size}x"
        f"{args.size}; {len(train[0])} training and {len(validation[0])} validation tiles; "
        f"{jax.devices()[0].device_kind}, jax {jax.__version__}",
        flush=True,
    )
    contestants = [Contestant(dtype, args) for dtype in args.dtypes]
    for seed in range(args.seeds):
        for contestant in contestants:
            print(f"seed {seed}, {contestant.dtype}: {contestant.dice(seed, train, validation)}", flush=True)


if __name__ == "__main__":
    main()
