"""Measures the time, peak memory and size of a slide's outputs that are made from its finished labels.

    python benchmarks/slide_outputs.py [--folder=FOLDER] [--side=20000] [--sparse_side=200000]

There are two synthetic slides. One is full of ragged regions of three classes on half of its area. The other has the
sparse side and is almost empty, with one patch of such tissue. Each step runs in a separate process, so that its peak
memory is that of the step alone. The memory includes the start of the process (the line "import"); the seconds do not.
CPU seconds are given as well as elapsed seconds, for machines that do other work at the same time.
"""

import argparse
import json
import pathlib
import resource
import shutil
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))  # so that it also runs as a plain script

import cv2  # noqa: E402
import numpy as np  # noqa: E402
import rasterio.features  # noqa: E402
from scipy.ndimage import gaussian_filter  # noqa: E402

from bcss_jax.slides.classes import SlideClass  # noqa: E402
from bcss_jax.slides.grid import Grid  # noqa: E402
from bcss_jax.slides.outputs import geojson, label_pyramid  # noqa: E402
from bcss_jax.slides.regions.polygons import regions  # noqa: E402
from bcss_jax.slides.store.tile_store import TILE, TileStore  # noqa: E402

CLASSES = (
    SlideClass(1, "tumor", (230, 159, 0)),
    SlideClass(2, "stroma", (0, 114, 178)),
    SlideClass(3, "other", (204, 121, 167)),
)
MPP = 0.25


def bands(side: int, first: int, last: int):
    """Yields rows of labels, uint8 [<= TILE, side], of synthetic tissue: large blobs with ragged edges."""
    random = np.random.default_rng(0)

    def field(reduction, sigma):
        values = gaussian_filter(random.normal(size=(side // reduction + 1,) * 2).astype(np.float32), sigma)
        return values / values.std()

    classes, tissue = field(20, 5), field(100, 8)
    for start in range(first, last, TILE):
        height = min(TILE, last - start)
        rows = np.arange(start, start + height, dtype=np.float32)[:, None].repeat(side, 1)
        columns = np.arange(side, dtype=np.float32)[None].repeat(height, 0)
        large, where = (
            cv2.remap(values, columns / reduction, rows / reduction, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
            for values, reduction in ((classes, 20), (tissue, 100))
        )
        ragged = gaussian_filter(random.normal(size=(height, side)).astype(np.float32), 4) * 3.5
        labels = np.digitize(large + ragged, [-0.5, 0.9]).astype(np.uint8) + 1
        labels[where < -0.3] = 0
        yield labels


def full_store(folder: pathlib.Path, side: int) -> float:
    """Writes the full slide; returns the seconds spent in the store."""
    store, seconds = TileStore(folder, side, side), 0.0
    for row, labels in enumerate(bands(side, 0, side)):
        start = time.perf_counter()
        store.write_row(row, labels)
        seconds += time.perf_counter() - start
    return seconds


def sparse_store(folder: pathlib.Path, side: int) -> float:
    """Writes the empty slide with its patch of 8 x 8 tiles; returns the seconds spent in the store."""
    store, seconds = TileStore(folder, side, side), 0.0
    patch = list(bands(8 * TILE, 0, 8 * TILE))
    middle = store.rows // 2
    for row in range(store.rows):
        tiles = [0] * store.columns
        if middle <= row < middle + 8:
            for column in range(8):
                tiles[middle + column] = patch[row - middle][:, column * TILE : (column + 1) * TILE]
        start = time.perf_counter()
        store.write_tiles(row, tiles)
        seconds += time.perf_counter() - start
    return seconds


def step(name: str, folder: pathlib.Path, side: int) -> dict:
    """Runs one step; returns its time, memory and results."""
    store, found, seconds = TileStore(folder / "store", side, side), {}, None
    grid = Grid(side, side, MPP, (1.0, 1.0))
    clock, cpu = time.perf_counter(), time.process_time()
    if name in ("write full", "write sparse"):
        seconds = (full_store if name == "write full" else sparse_store)(folder / "store", side)
        found["bytes"] = sum(path.stat().st_size for path in (folder / "store").iterdir())
    elif name == "read":
        found["pixels of classes"] = int(store.counts()[1:].sum())
    elif name == "pyramid":
        label_pyramid.write(folder / "labels.ome.tif", store, mpp=MPP, classes=CLASSES, name="synthetic")
        found["bytes"] = (folder / "labels.ome.tif").stat().st_size
    elif name == "polygons":
        found["regions"] = found["points"] = 0
        for region in regions(store, [1, 2, 3], folder):
            found["regions"] += 1
            found["points"] += sum(len(points) for ring in region.rings for points in ring)
    elif name == "geojson":
        found["regions"] = geojson.write(folder / "regions.geojson", store, grid, CLASSES)
        found["bytes"] = (folder / "regions.geojson").stat().st_size
    elif name == "rasterio":  # on the whole array in memory
        tiles = [[store.pixels(row, column) for column in range(store.columns)] for row in range(store.rows)]
        labels = np.block(tiles)
        clock, cpu = time.perf_counter(), time.process_time()
        found["regions"] = sum(1 for _ in rasterio.features.shapes(labels, mask=labels > 0, connectivity=4))
    if seconds is None:
        seconds, cpu = time.perf_counter() - clock, time.process_time() - cpu
    else:  # the seconds in the store do not include drawing the labels
        cpu = None
    return {
        "step": name,
        "side": side,
        "seconds": round(seconds, 2),
        "cpu_seconds": cpu and round(cpu, 2),
        "megapixels_per_second": round(side**2 / 1e6 / max(seconds, 1e-9), 1),
        "peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    } | found


def main() -> None:
    """Runs all steps, or the requested one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--folder", type=pathlib.Path, help="folder for the slides and outputs; a temporary one by default"
    )
    parser.add_argument("--side", type=int, default=20_000)
    parser.add_argument("--sparse_side", type=int, default=200_000)
    parser.add_argument("--step", help="run only this step, in this process, in FOLDER")
    arguments = parser.parse_args()
    if arguments.step:
        print(json.dumps(step(arguments.step, arguments.folder, arguments.side)))
        return
    folder = arguments.folder or pathlib.Path(tempfile.mkdtemp())
    try:
        for kind, side in (("full", arguments.side), ("sparse", arguments.sparse_side)):
            steps = ["import", f"write {kind}", "read", "pyramid", "polygons", "geojson"]
            for name in [*steps, "rasterio"] if kind == "full" else steps:
                command = [sys.executable, __file__, f"--folder={folder / kind}", f"--side={side}", f"--step={name}"]
                print(subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip(), flush=True)
    finally:
        if not arguments.folder:
            shutil.rmtree(folder)


if __name__ == "__main__":
    main()
