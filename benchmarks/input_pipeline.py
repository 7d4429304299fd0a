"""Measures the images per second of the input pipeline and of a PyTorch DataLoader that does the same work.

Both read the same PNG files in random order, map codes to labels, augment with the same function (`augment.augment`, so
with the same Albumentations transforms and strengths) and collect uint8 batches of the same size. The pipeline has as
many threads as the DataLoader has worker processes. They differ in decoding (TensorFlow's decode_png here; OpenCV
there, which is usual with Albumentations), in threads and processes, and in how batches are transferred. Nothing
consumes the batches, so the results are the highest possible rates.

A round runs both once, one after the other, for one epoch including its start (the workers of PyTorch stay alive
between epochs). The first round is a warm-up and does not count. Ratios are taken within a round, so that other load on
the machine affects both.

    python benchmarks/input_pipeline.py --data_dir=FOLDER --threads=2

FOLDER contains `train` and `train_mask` with PNGs of equal names (the layout of the 224-pixel Kaggle tiles). Without
it, synthetic tiles are made. PyTorch is optional: pip install -e ".[benchmark]".
"""

import argparse
import contextlib
import os
import pathlib
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator

import cv2
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # so that it also runs as a plain script

from bcss_jax.data.augmentation.on_host import augment  # noqa: E402
from bcss_jax.data.augmentation.settings import FLIPS_AND_QUARTER_TURNS, FULL, NONE  # noqa: E402
from bcss_jax.labels import SCHEMES, lookup_table  # noqa: E402

SCHEME = SCHEMES["tumor_stroma"]
TABLE = lookup_table(SCHEME, "kaggle3")
RECIPES = {"decode only": NONE, "flips and quarter turns": FLIPS_AND_QUARTER_TURNS, "full recipe": FULL}


def synthetic_tiles(folder: pathlib.Path, count: int = 64, size: int = 224) -> None:
    """Writes tiles with smooth structure and fine noise, so that they compress about as well as tissue."""
    rng = np.random.default_rng(0)
    for part in ("train", "train_mask"):
        (folder / part).mkdir()
    for i in range(count):
        smooth = cv2.GaussianBlur(rng.integers(0, 256, (size, size, 3), np.uint8), (0, 0), 4)
        noisy = np.clip(4 * (smooth - 127.0) + 127 + rng.normal(0, 6, smooth.shape), 0, 255).astype(np.uint8)
        mask = np.digitize(smooth[..., 0], (122, 132)).astype(np.uint8)
        cv2.imwrite(str(folder / "train" / f"{i}.png"), noisy)
        cv2.imwrite(str(folder / "train_mask" / f"{i}.png"), mask)


@contextlib.contextmanager
def tile_files(folder: pathlib.Path | None) -> Iterator[tuple[list[str], list[str]]]:
    """Yields the paths of images and masks in a folder with train/ and train_mask/; None: of synthetic tiles."""
    with tempfile.TemporaryDirectory() as made:
        if folder is None:
            folder = pathlib.Path(made)
            synthetic_tiles(folder)
        names = sorted(path.name for path in (folder / "train").glob("*.png"))
        if not names:
            raise SystemExit(f"no PNG files in {folder / 'train'}")
        images, masks = ([str(folder / part / name) for name in names] for part in ("train", "train_mask"))
        yield images, masks


class Tiles:
    """A map-style data set for PyTorch of (image uint8 [H, W, 3], label uint8 [H, W], index)."""

    def __init__(self, images, masks, recipe):
        """Stores the paths."""
        self.images, self.masks, self.recipe = images, masks, recipe

    def __len__(self):
        """Returns the number of tiles."""
        return len(self.images)

    def __getitem__(self, index):
        """Reads, decodes and augments one tile."""
        image = cv2.cvtColor(cv2.imread(self.images[index], cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
        label = TABLE[cv2.imread(self.masks[index], cv2.IMREAD_GRAYSCALE)]
        image, label = augment(image, label, (0, 0, index), self.recipe, SCHEME.ignore_index)
        return image, label, index


def torch_loader(images, masks, recipe, batch_size, workers):
    """Returns a DataLoader whose workers stay alive, or None if PyTorch is not installed."""
    try:
        from torch.utils.data import DataLoader
    except ImportError:
        return None
    # spawn: forking a process with threads of TensorFlow can hang
    return DataLoader(
        Tiles(images, masks, recipe),
        batch_size,
        shuffle=True,
        num_workers=workers,
        persistent_workers=True,
        multiprocessing_context="spawn",
    )


def our_batches(images, masks, recipe, batch_size, threads, epoch):
    """Returns one epoch of the input pipeline."""
    from bcss_jax.data import input_pipeline  # not at the top, so that PyTorch's workers do not import TensorFlow

    return input_pipeline.train_batches(
        input_pipeline.encoded_from_png(images, masks),
        len(images),
        table=TABLE,
        ignore_index=SCHEME.ignore_index,
        batch_size=batch_size,
        seed=0,
        epoch=epoch,
        augmentation=recipe,
        threads=threads,
    )


def epoch_rate(batches, num_images) -> tuple[float, float]:
    """Returns the images per second over one epoch, and the seconds until its first batch."""
    start = time.perf_counter()
    iterator = iter(batches() if callable(batches) else batches)
    next(iterator)
    first = time.perf_counter() - start
    for _ in iterator:
        pass
    return num_images / (time.perf_counter() - start), first


def augment_rate(images, masks, recipe, seconds=2.0) -> float:
    """Returns the images per second of `augment` alone, in one thread."""
    pairs = [
        (cv2.imread(image, cv2.IMREAD_COLOR), cv2.imread(mask, cv2.IMREAD_GRAYSCALE))
        for image, mask in zip(images[:32], masks[:32], strict=True)
    ]
    done, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        augment(*pairs[done % len(pairs)], (1, done), recipe, SCHEME.ignore_index)
        done += 1
    return done / (time.perf_counter() - start)


def spread(values, digits=0) -> str:
    """Returns median and range as text."""
    return f"{statistics.median(values):.{digits}f} [{min(values):.{digits}f}, {max(values):.{digits}f}]"


def main():
    """Runs the rounds and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data_dir", type=pathlib.Path, help="folder with train/ and train_mask/; synthetic if absent")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="threads here, worker processes there")
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--examples", type=int, default=720, help="tiles per epoch; the files are repeated to reach it")
    parser.add_argument("--rounds", type=int, default=5, help="rounds that count")
    arguments = parser.parse_args()
    with tile_files(arguments.data_dir) as (images, masks):
        run(images, masks, arguments)


def run(images: list[str], masks: list[str], arguments) -> None:
    """Prints the measurements for the tiles with these paths."""
    tiles = len(images)
    images, masks = ([paths[i % tiles] for i in range(arguments.examples)] for paths in (images, masks))
    kilobytes = statistics.mean(os.path.getsize(path) for path in images) / 1e3
    height, width = cv2.imread(images[0]).shape[:2]
    print(
        f"{len(set(images))} tiles of {height}x{width} ({kilobytes:.0f} kB), {len(images)} per epoch, batch"
        f" {arguments.batch_size}, {arguments.threads} threads here and worker processes there, {os.cpu_count()} CPUs;"
        f" images/s, median [least, most] of {arguments.rounds} rounds"
    )
    for title, recipe in RECIPES.items():
        if recipe is not NONE:
            print(f"{title}: augmentation alone, one thread: {augment_rate(images, masks, recipe):.0f}")
        theirs = torch_loader(images, masks, recipe, arguments.batch_size, arguments.threads)
        rates, ratios, starts = {"here": [], "PyTorch": []}, [], []
        for round_number in range(arguments.rounds + 1):

            def ours(recipe=recipe, epoch=round_number):
                return our_batches(images, masks, recipe, arguments.batch_size, arguments.threads, epoch)

            here, first = epoch_rate(ours, len(images))
            there, _ = epoch_rate(theirs, len(images)) if theirs else (None, None)
            if round_number == 0:
                continue
            rates["here"].append(here)
            starts.append(first)
            if theirs:
                rates["PyTorch"].append(there)
                ratios.append(here / there)
        print(f"{title}: here {spread(rates['here'])} (first batch after {spread(starts, 2)} s)")
        if theirs:
            print(f"{title}: PyTorch {spread(rates['PyTorch'])}; here / PyTorch {spread(ratios, 2)}")
            del theirs  # ends its workers
        else:
            print(f"{title}: PyTorch is not installed, so nothing to compare with: pip install -e '.[benchmark]'")


if __name__ == "__main__":
    main()
