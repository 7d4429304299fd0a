"""Measures the memory that preparing a data set of annotated slides takes, for one slide and for many.

    python benchmarks/slides_memory.py --slides=1 --patches=250
    python benchmarks/slides_memory.py --slides=200 --patches=250

Draws slides of random tissue-like noise as tiled TIFFs, annotates all of each as one class, prepares them in this
process, and prints the peak memory of the process, without its reader processes, which hold one slide at a time.
"""

import argparse
import json
import resource
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np
import tifffile

from bcss_jax.data import tfrecords
from bcss_jax.data.discovery import DataSettings
from bcss_jax.labels import SCHEMES

SIDE = 224


def main() -> None:
    """Parses the command line and prints the measurement as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--slides", type=int, default=2)
    parser.add_argument("--patches", type=int, default=250, help="of each slide")
    parser.add_argument("--folder", type=Path, help="for slides and prepared data; default: a temporary one")
    args = parser.parse_args()
    folder = Path(tempfile.mkdtemp(dir=args.folder))
    try:
        _write(folder, args.slides, args.patches)
        settings = DataSettings("slides", slide_list=folder / "list.csv", patch_size=SIDE, stride=SIDE)
        before, start = _peak(), time.perf_counter()
        data = tfrecords.prepare(settings, prepared_dir=folder / "prepared", scheme=SCHEMES["tumor_stroma"])
        seconds = time.perf_counter() - start
        files = sum(path.stat().st_size for path in data.folder.glob("**/*.tfrecord*"))
        print(
            json.dumps(
                {
                    "slides": args.slides,
                    "patches": sum(data.splits.values()),
                    "seconds": round(seconds, 1),
                    "peak_mb_before": before,
                    "peak_mb": _peak(),
                    "tfrecords_mb": files >> 20,
                }
            )
        )
    finally:
        shutil.rmtree(folder)


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def _write(folder: Path, count: int, patches: int) -> None:
    """Writes a slide for training with `patches` patches, and so on; one further slide, of one patch, is for val."""
    columns = int(patches**0.5)
    rows = -(-patches // columns)
    lines = ["slide,annotations,mpp,patient,split"]
    for number in range(count + 1):
        shape = (rows * SIDE, columns * SIDE) if number < count else (SIDE, SIDE)
        noise = np.random.default_rng(number).integers(100, 240, (*shape, 3), dtype=np.uint8)
        tifffile.imwrite(folder / f"s{number}.tif", noise, tile=(256, 256), photometric="rgb")
        ring = [[0, 0], [shape[1], 0], [shape[1], shape[0]], [0, shape[0]], [0, 0]]
        annotation = {
            "type": "Feature",
            "geometry": {"type": "Polygon", "coordinates": [ring]},
            "properties": {"objectType": "annotation", "classification": {"name": ("Tumor", "Stroma")[number % 2]}},
        }
        (folder / f"s{number}.geojson").write_text(json.dumps(annotation))
        lines.append(f"s{number}.tif,s{number}.geojson,0.25,p{number},{'train' if number < count else 'val'}")
    (folder / "list.csv").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
