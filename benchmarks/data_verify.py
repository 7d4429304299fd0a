"""Measures the tiles per second of `python -m bcss_jax.data verify` on copies of a few real tiles.

    python benchmarks/data_verify.py --data_dir=FOLDER [--copies=30760] [--processes=2]

FOLDER is a data set in the layout kaggle224 with all its masks. Its files are copied once into a temporary folder and
linked there (hard links) under other places in the region, so that every name is valid and every copy stays in its
split. The copies share their pages in memory: reading from a disk is not measured. With --processes, several processes
instead of threads are measured too, each on an equal share of the files.
"""

import argparse
import concurrent.futures
import contextlib
import itertools
import multiprocessing
import os
import pathlib
import shutil
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # so that it also runs as a plain script

from bcss_jax.common.progress import ProgressLine  # noqa: E402
from bcss_jax.data import discovery, tile_reader  # noqa: E402
from bcss_jax.data.inspection.source import Source  # noqa: E402
from bcss_jax.data.inspection.verify import verify  # noqa: E402


def make_copies(data_dir: pathlib.Path, folder: pathlib.Path, copies: int) -> None:
    """Links the tiles of a data set under new names until there are `copies` of them."""
    tiles = discovery.find_tiles(discovery.DataSettings("kaggle224", data_dir))
    for number, tile in zip(range(copies), itertools.cycle(tiles), strict=False):
        round_, _ = divmod(number, len(tiles))
        for original, kind in ((tile.image, tile.split), (tile.mask, f"{tile.split}_mask")):
            source = folder / "originals" / kind / original.name
            if not source.exists():
                source.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(original, source)
            stem = f"{tile.key.rsplit('_', 3)[0]}_{tile.x + 100_000 * round_}_{tile.y}_size224"
            (folder / "data" / kind).mkdir(parents=True, exist_ok=True)
            os.link(source, folder / "data" / kind / f"{stem}.png")


def by_processes(folder: pathlib.Path, processes: int) -> float:
    """Returns the seconds that reading all tiles takes with that many processes of one thread each.

    Includes the start of the processes.
    """
    tiles = discovery.find_tiles(discovery.DataSettings("kaggle224", folder))
    start = time.perf_counter()
    spawn = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(processes, mp_context=spawn) as pool:
        found = list(pool.map(_read_share, [tiles[i::processes] for i in range(processes)]))
    assert sum(found) == len(tiles)
    return time.perf_counter() - start


def _read_share(tiles: list[discovery.Tile]) -> int:
    os.cpu_count = lambda: 1  # one thread in each process
    return sum(len(result.stats) for _, result in tile_reader.read_pairs(tiles))


def main() -> None:
    """Prints the measurements."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", required=True, type=pathlib.Path)
    parser.add_argument("--copies", type=int, default=30_760, help="number of tiles; the published data set has 30,760")
    parser.add_argument("--processes", type=int, default=0, help="also measure this many processes")
    args = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(temporary)
        make_copies(args.data_dir, folder, args.copies)
        start = time.perf_counter()
        source = Source(discovery.DataSettings("kaggle224", folder / "data"), collect=True)
        listed = time.perf_counter() - start
        with contextlib.closing(ProgressLine("verifying", len(source.tiles))) as line:
            verdict = verify(source, line.update)
        whole = time.perf_counter() - start
        assert sum(verdict.tiles.values()) == args.copies and not verdict.defects, verdict.defects
        print(
            f"threads: {args.copies} tiles in {whole:.1f} s ({listed:.1f} s of it to list them), "
            f"{args.copies / whole:.0f} tiles/s on {cores} core(s)"
        )
        if args.processes:
            seconds = by_processes(folder / "data", args.processes)
            print(
                f"{args.processes} processes: {seconds:.1f} s, {args.copies / seconds:.0f} tiles/s on {cores} core(s)"
            )


if __name__ == "__main__":
    main()
