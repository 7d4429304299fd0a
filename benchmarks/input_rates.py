"""Measures what one core decodes and augments, and how long a fast card waits for its input.

The first table has the images that one core reads, decodes and changes per second, for each change of the recipe alone
and for the recipes, by the time of the processor, so that other load on the machine matters little.

The second table has the share of time that training waits for batches, if each step takes as long as a card with
`--rate` images/s needs; a step is a pause of that length. The images are augmented on the host or left to the device,
and the tiles are decoded in each epoch or held decoded in memory (`--config.augment_on`, `--config.data.memory_share`).

    python benchmarks/input_rates.py --data_dir=FOLDER --threads=2

FOLDER contains `train` and `train_mask` with PNGs of equal names (the layout of the 224-pixel Kaggle tiles). Without
it, synthetic tiles are made.
"""

import argparse
import dataclasses
import os
import pathlib
import sys
import time

import cv2

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # so that it also runs as a plain script

from bcss_jax.common.timing import InputWait  # noqa: E402
from bcss_jax.data import input_pipeline  # noqa: E402
from bcss_jax.data.augmentation.on_host import augment  # noqa: E402
from bcss_jax.data.augmentation.settings import FLIPS_AND_QUARTER_TURNS, FULL, NONE  # noqa: E402
from bcss_jax.data.host_tensorflow import tf  # noqa: E402
from benchmarks.input_pipeline import SCHEME, TABLE, tile_files  # noqa: E402

CHANGES = {
    "nothing": NONE,
    "quarter turns": dataclasses.replace(NONE, rotate90=1.0),
    "flips": dataclasses.replace(NONE, horizontal_flip=1.0, vertical_flip=1.0),
    "rotation": dataclasses.replace(NONE, rotate=1.0),
    "elastic deformation": dataclasses.replace(NONE, elastic=1.0),
    "color jitter": dataclasses.replace(NONE, color_jitter=1.0),
    "blur": dataclasses.replace(NONE, blur=1.0),
    "flips and quarter turns (`,few`)": FLIPS_AND_QUARTER_TURNS,
    "full recipe": FULL,
}


def rate_per_core(work, seconds: float) -> float:
    """Returns how often `work(number)` is done per second of the processor."""
    work(0)
    done, start = 0, time.process_time()
    while time.process_time() - start < seconds:
        work(done)
        done += 1
    return done / (time.process_time() - start)


def print_rates(images: list[str], masks: list[str], seconds: float) -> None:
    """Prints the images per second and core."""
    encoded = [(pathlib.Path(i).read_bytes(), pathlib.Path(m).read_bytes()) for i, m in zip(images, masks, strict=True)]
    pairs = [
        (cv2.imread(image), TABLE[cv2.imread(mask, cv2.IMREAD_GRAYSCALE)])
        for image, mask in zip(images, masks, strict=True)
    ]

    def decode(number):
        image, mask = encoded[number % len(encoded)]
        tf.io.decode_png(image, channels=3), tf.io.decode_png(mask, channels=1)

    print("| what | images/s and core |\n| --- | --- |")
    print(f"| decoding image and mask | {rate_per_core(decode, seconds):.0f} |", flush=True)
    for title, recipe in CHANGES.items():

        def change(number, recipe=recipe):
            augment(*pairs[number % len(pairs)], (1, number), recipe, SCHEME.ignore_index)

        print(f"| {title} | {rate_per_core(change, seconds):.0f} |", flush=True)


def print_waiting(images: list[str], masks: list[str], arguments) -> None:
    """Prints the share of waiting for each way of input."""
    images, masks = ([paths[i % len(paths)] for i in range(arguments.examples)] for paths in (images, masks))
    encoded = input_pipeline.encoded_from_png(images, masks)
    decoded = input_pipeline.decode_tiles(encoded, len(images), table=TABLE, threads=arguments.threads)
    print("| augmented on | tiles | images/s | waiting |\n| --- | --- | --- | --- |")
    for place, recipe in (("host", FULL), ("device", None)):
        for title, tiles in (("decoded in each epoch", encoded), ("decoded in memory", decoded)):
            rates, shares = zip(
                *(epoch(tiles, recipe, arguments, number) for number in range(arguments.rounds)), strict=True
            )
            middle = sorted(range(len(rates)), key=rates.__getitem__)[len(rates) // 2]
            print(f"| {place} | {title} | {rates[middle]:.0f} | {shares[middle]:.1%} |", flush=True)


def epoch(tiles, recipe, arguments, number: int) -> tuple[float, float]:
    """Returns the images per second of one epoch, including its start, and the share of waiting."""
    start = time.perf_counter()
    batches = InputWait(
        input_pipeline.train_batches(
            tiles,
            arguments.examples,
            table=TABLE,
            ignore_index=SCHEME.ignore_index,
            batch_size=arguments.batch_size,
            seed=0,
            epoch=number,
            augmentation=recipe,
            threads=arguments.threads,
        )
    )
    for _ in batches:
        time.sleep(arguments.batch_size / arguments.rate)
    seconds = time.perf_counter() - start
    return arguments.examples / seconds, batches.seconds / seconds


def main():
    """Prints both tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data_dir", type=pathlib.Path, help="folder with train/ and train_mask/; synthetic if absent")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--batch_size", type=int, default=128)
    parser.add_argument("--examples", type=int, default=3840, help="tiles per epoch; the files are repeated")
    parser.add_argument("--rate", type=float, default=1500, help="images/s of the card")
    parser.add_argument("--rounds", type=int, default=3, help="epochs, of which the median counts")
    parser.add_argument("--seconds", type=float, default=3, help="time for each row of the first table")
    arguments = parser.parse_args()
    with tile_files(arguments.data_dir) as (images, masks):
        print_rates(images, masks, arguments.seconds)
        print()
        print_waiting(images, masks, arguments)


if __name__ == "__main__":
    main()
