"""Measures how fast the reader processes deliver blocks of a slide.

    python benchmarks/slide_reading.py SLIDE [SLIDE ...] [--mpp=0.25] [--block=512] [--processes=1,2] [--rounds=3]

Prints megapixels of the grid per second for each slide and number of processes: the median of the rounds and their
range. The rounds alternate between the numbers of processes, so that other work on the machine slows all of them.
"""

import argparse
import collections
import itertools
import pathlib
import statistics
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # so that it also runs as a plain script

from bcss_jax.slides.grid import grid_of  # noqa: E402
from bcss_jax.slides.reading.reader_pool import ReaderPool  # noqa: E402

AHEAD = 4  # blocks requested ahead, per process


def pixels_per_second(pool: ReaderPool, mpp: float, block: int, processes: int) -> float:
    """Reads the slide once; returns pixels of the grid per second."""
    grid = grid_of(pool.info.width, pool.info.height, pool.info.mpp, mpp)
    boxes = [
        (x, y, min(block, grid.width - x), min(block, grid.height - y))
        for y, x in itertools.product(range(0, grid.height, block), range(0, grid.width, block))
    ]
    waiting = collections.deque()
    start = time.perf_counter()
    for box in boxes:
        waiting.append(pool.submit(grid, *box))
        if len(waiting) >= AHEAD * processes:
            waiting.popleft().result()
    while waiting:
        waiting.popleft().result()
    return grid.width * grid.height / (time.perf_counter() - start)


def main() -> None:
    """Measures the slides on the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("slides", nargs="+")
    parser.add_argument("--mpp", type=float, default=0.25)
    parser.add_argument("--block", type=int, default=512)
    parser.add_argument("--processes", default="1,2", type=lambda text: [int(part) for part in text.split(",")])
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    for slide in options.slides:
        speeds = {processes: [] for processes in options.processes}
        for _ in range(options.rounds):
            for processes in options.processes:
                with ReaderPool(slide, processes) as pool:
                    pixels_per_second(pool, options.mpp, options.block, processes)  # starts and warms up all processes
                    speeds[processes].append(pixels_per_second(pool, options.mpp, options.block, processes) / 1e6)
        for processes, found in speeds.items():
            print(
                f"{slide}: {processes} process{'es' if processes > 1 else ''}, blocks of {options.block} at "
                f"{options.mpp:g} um: {statistics.median(found):.1f} Mpx/s ({min(found):.1f} to {max(found):.1f})"
            )


if __name__ == "__main__":
    main()
